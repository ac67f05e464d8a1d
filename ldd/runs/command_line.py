"""The command line of all runs of a trainer: linked seeds, a guarded folder with its logs, exit codes of signals."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from ldd.artefact.manifest import RESUMED
from ldd.callbacks import CrossArchitecture, Export, LastCheckpoints, Metrics, Preview, RecordExperts
from ldd.data import DistillationData
from ldd.disk.files import atomic_file, check_writable, read_yaml, remove
from ldd.disk.locks import writing_in
from ldd.disk.stores import as_named
from ldd.distiller.module import Distiller
from ldd.errors import LostRankError, UserError, in_a_line
from ldd.runs import history
from ldd.runs.ahead import check_run
from ldd.runs.ending import Ending, ending_of_run, without
from ldd.runs.folder import (
    changed_on_resume,
    changes,
    find_fault,
    find_last,
    note_resumption,
    settings_of,
)
from ldd.runs.options import mistakes_named, name_urls, raised_in, refuse_nulls, spell_paths
from ldd.runs.parser import Parser, arrange
from ldd.runtime.logs import RANKS, logged
from ldd.runtime.processes import end_with_parent, requeue, signals_interrupt
from ldd.runtime.ranks import rank_zero_info, starts_first
from ldd.runtime.trainer import (
    check_callbacks,
    expect_warnings,
    is_lost_connection,
    rank_started_by_lightning,
    refused_setting,
)

_TRAINER_DEFAULTS = {
    "max_steps": 1000,
    "max_epochs": 1,  # one epoch is the whole run, so validation comes at its end
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "use_distributed_sampler": False,  # the models draw their own batches
}


_LOGS = "logs"  # folder of our own logger's files

_OF_A_START = {"config.yaml", history.NAME, _LOGS, RANKS}  # what a run has written before its first step


class _Parser(Parser, LightningArgumentParser):
    """Lightning's parser, with short errors."""


class _SaveConfig(SaveConfigCallback):
    """Writes the run's resolved config.yaml, at fit only, and notes which settings a resumed run has changed."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save before anything is computed."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        if stage == "fit" and trainer.is_global_zero and not path.exists():
            self._save(path)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what has changed, once the checkpoint has been accepted."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        if not trainer.is_global_zero:
            return
        now = yaml.safe_load(self.parser.dump(self._recipe(), skip_none=False))
        changed = changed_on_resume(before := read_yaml(path), now)
        if changed and self.config.ckpt_path is not None:
            note_resumption(path.parent, Path(self.config.ckpt_path), changed)
        if before != now:
            self._save(path)

    def _save(self, path: Path) -> None:
        with atomic_file(path) as beside:
            self.parser.save(self._recipe(), str(beside), skip_none=False, multifile=False, overwrite=True)

    def _recipe(self) -> Namespace:
        config: Namespace = self.config.clone()
        name_urls(config)
        config.overwrite = False  # decisions about the folder as it was
        config.pop("part", None)
        if "ckpt_path" in config:  # `plan` resumes nothing
            config.ckpt_path = None
        return config


class RunCLI(LightningCLI):
    """A LightningModule over DistillationData in a run folder.

    Attributes:
        run_files: what marks a folder as holding a run, and what `--overwrite` removes.
        program: what its help calls it.
        held: the lock of the run's folder; without `arguments` it is closed when the verb has ended.
    """

    run_files: tuple[str, ...] = ("checkpoints", "config.yaml", RESUMED, _LOGS)
    seeded: tuple[str, ...] = ("model.seed", "data.seed")
    program: str = "latentdd"
    _starts_again = _locked = False

    def __init__(
        self,
        model_class: type[L.LightningModule],
        default_root_dir: str,
        arguments: Sequence[str] | None = None,
    ) -> None:
        self._typed = [*self.program.split()[1:], *(sys.argv[1:] if arguments is None else arguments)]
        expect_warnings()
        self.held = ExitStack()
        with ExitStack() as until_built:
            until_built.push(self.held)
            super().__init__(
                model_class,
                DistillationData,
                save_config_callback=_SaveConfig,
                seed_everything_default=0,
                trainer_defaults={**_TRAINER_DEFAULTS, "default_root_dir": default_root_dir},
                auto_configure_optimizers=False,
                parser_kwargs={"prog": self.program},
                run=arguments is None,
                args=None if arguments is None else list(arguments),
            )
            if arguments is not None:
                until_built.pop_all()

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Set up the parsers with our sections before Lightning's and a usage of one line."""
        self.parser_class = _Parser
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        for verb, parser in (self._subcommand_parsers if add_subcommands else {"": self.parser}).items():
            arrange(parser, f"{self.program} {verb}".rstrip(), verb)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections `checkpoint` and `metrics`, `--overwrite`, and the links from data and seed to the model."""
        parser.add_lightning_class_args(LastCheckpoints, "checkpoint")
        parser.add_lightning_class_args(Metrics, "metrics")
        about = "Replace a run that is in the folder."
        parser.add_argument("--overwrite", type=bool, default=False, help=about)
        parser.link_arguments("data.spec", "model.data_spec", apply_on="instantiate")
        for target in self.seeded:
            parser.link_arguments("seed_everything", target, compute_fn=_as_seed)

    @property
    def options(self) -> Namespace:
        """The parsed options of the verb that runs."""
        options: Namespace = self.config[self.subcommand] if self.subcommand else self.config
        return options

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; refuse null where a value is needed; give every path one spelling."""
        super().parse_arguments(parser, args)
        self.subcommand = self.config.get("subcommand")
        refuse_nulls(self._parser(self.subcommand), self.options)
        spell_paths(self.options)
        if self.options.trainer.default_root_dir is None:
            raise UserError("trainer.default_root_dir (null) must be a folder; leave it out for the default")
        seed = self.options.seed_everything
        if not 0 <= seed < 2**32:
            raise UserError(f"seed_everything ({seed}) must be a number from 0 to 4294967295")

    def before_instantiate_classes(self) -> None:
        """Resolve `--ckpt_path`; refuse a folder that already holds a run."""
        if self.options.trainer.fast_dev_run:
            self._thrown_away = tempfile.TemporaryDirectory(prefix="latentdd-try-")
            self.options.trainer.default_root_dir = str(Path(self._thrown_away.name) / "run")
            rank_zero_info("trainer.fast_dev_run: a try in a folder that is thrown away, without evaluation")
        run = Path(self.options.trainer.default_root_dir)
        if starts_first():
            self._lock(run)
        resumed = self._resolve_checkpoint(run)
        if "weights_only" in self.options and self.options.weights_only is None:
            self.options.weights_only = True  # somebody else's checkpoint must not run code
        if self.subcommand == "validate":
            return
        if resumed:
            self._refuse_other_settings(run)
        elif self._found(run) and not self.options.overwrite:
            raise UserError(
                f"trainer.default_root_dir ({run}) already holds a run; continue it with --ckpt_path last, replace "
                "it with --overwrite, or choose another folder"
            )
        rank_zero_info(f"{'continuing' if resumed else 'starting'} the run in {as_named(run)}")

    def _lock(self, run: Path) -> None:
        """Let no other process write in the run's folder from here on; the other ranks of this run share that."""
        if not self._locked:
            self.held.enter_context(writing_in(run, "trainer.default_root_dir"))
            self._locked = True

    def _resolve_checkpoint(self, run: Path) -> bool:
        """Put a file, or None to start, in the place of `--ckpt_path`; whether an earlier run is gone on with."""
        options = self.options
        if self.subcommand == "validate" and options.ckpt_path is None:
            options.ckpt_path = "last"
        if options.ckpt_path == "auto":
            options.ckpt_path = "last" if self._found(run) else None
        if options.ckpt_path is None:
            return False
        if options.ckpt_path == "last":
            begun = self.subcommand != "validate" and (run / "config.yaml").is_file()
            if begun and not any((run / "checkpoints").glob("*.ckpt")):
                rank_zero_info(f"the run in {run} was stopped before its first checkpoint; it starts again")
                options.ckpt_path, self._starts_again = None, True
            else:
                options.ckpt_path = str(find_last(run))
            return True
        if not Path(options.ckpt_path).is_file():
            raise UserError(
                f"ckpt_path ({options.ckpt_path}) does not exist; name a checkpoint file, or 'last'"
            )
        if fault := find_fault(Path(options.ckpt_path)):
            raise UserError(
                f"ckpt_path ({options.ckpt_path}) is damaged ({fault}); name another checkpoint file, or 'last'"
            )
        return True

    def _found(self, run: Path) -> list[Path]:
        return [run / name for name in self.run_files if os.path.lexists(run / name)]

    def _refuse_other_settings(self, run: Path) -> None:
        # A checkpoint brings its own learning rates and draws: another setting here would be ignored.
        path = run / "config.yaml"
        if not path.is_file():
            return
        now = yaml.safe_load(self._parser(self.subcommand).dump(self.options, skip_none=False))
        changed = [*changes(settings_of(self._settings_in(path)), settings_of(now)).values()]
        if changed:
            raise UserError(
                f"ckpt_path: the run in {run} was started with other settings ({'; '.join(changed[:5])}); resume with "
                f"its own {path}, or start another run"
            )

    def _settings_in(self, path: Path) -> dict[str, Any]:
        """Read a run's `config.yaml`; options that an earlier version did not have yet take their defaults."""
        written: dict[str, Any] = read_yaml(path)
        parser = self._parser(self.subcommand)
        exits, parser.exit_on_error = parser.exit_on_error, False
        try:
            # `fit` writes options that other verbs with its recipe have not; parsing changes what it is given.
            known = {name: value for name, value in read_yaml(path).items() if name in self.options}
            parsed = parser.parse_object(known)
            return {**written, **yaml.safe_load(parser.dump(parsed, skip_none=False))}
        except (ArgumentError, ValueError, TypeError, KeyError):
            return written  # of a class that is gone: compared as it stands
        finally:
            parser.exit_on_error = exits

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:  # noqa: ANN401 - LightningCLI's signature
        """Log to `<run>/logs/` unless a logger is given; print no summary of modules unless it is asked for."""
        trainer = self.options.trainer
        if trainer.logger in (None, True):
            kwargs["logger"] = CSVLogger(trainer.default_root_dir, name=_LOGS)
        if trainer.enable_model_summary is None:
            kwargs["enable_model_summary"] = False  # counts nothing that a user of ours asks for
        given = self._get(self.config_init, "trainer").callbacks or []
        callbacks = list(given) if isinstance(given, (list, tuple)) else [given]
        check_callbacks(callbacks)
        try:
            made = super().instantiate_trainer(**kwargs, callbacks=[*callbacks])
        except Exception as error:
            ours = [self._get(self.config_init, name) for name in self._parser(self.subcommand).callback_keys]
            settings = {**vars(self._get(self.config_init, "trainer")), **kwargs}
            raise refused_setting({**settings, "callbacks": [*callbacks, *ours]}, error) from error
        self.model.check_trainer(made)  # every module that is run here has it
        check_writable(trainer.default_root_dir, "trainer.default_root_dir")
        return made

    def instantiate_classes(self) -> None:
        """Instantiate data, model, callbacks and trainer."""
        with mistakes_named(self.options):
            super().instantiate_classes()

    def fit(self, **kwargs: Any) -> None:  # noqa: ANN401 - Trainer.fit's arguments
        """Call `Trainer.fit` in a folder that is now this run's."""
        run, leader = Path(self.trainer.default_root_dir), self.trainer.is_global_zero
        there = set(run.iterdir())
        if leader:
            self._lock(run)
            for path in self._found(run) if self.options.ckpt_path is None else ():
                # By its config.yaml ranks that start later know a run that starts again.
                if not self._starts_again or path.name != "config.yaml":
                    remove(path)
            there = set(run.iterdir())
            begun = self._starts_again or self.options.ckpt_path is not None
            history.record_command(run, self._typed, anew=not begun)
        try:
            self._call(self.trainer.fit, **kwargs)
        except UserError:
            made = set(run.iterdir()) - there
            if leader and {path.name for path in made} <= _OF_A_START:
                for path in made:
                    remove(path)  # refused before its first step
            raise

    def validate(self, **kwargs: Any) -> None:  # noqa: ANN401 - Trainer.validate's arguments
        """Call `Trainer.validate`."""
        if self.trainer.is_global_zero:
            history.record_command(self.trainer.default_root_dir, self._typed)
        self._call(self.trainer.validate, **kwargs)

    def _call(self, function: Callable[..., object], **kwargs: Any) -> None:  # noqa: ANN401
        # Lightning ends the process with 1 on Ctrl-C, which becomes 128 + signal here.
        if (rank := rank_started_by_lightning(self.trainer)) > 0:
            end_with_parent(f"rank {rank} stops: rank 0, which started it, has ended")
        trainer, anew = self.trainer, self.options.get("ckpt_path") is None and not self._starts_again
        folder = Path(trainer.default_root_dir) / RANKS
        log = logged(folder, trainer.global_rank, trainer.world_size, anew=anew)
        try:
            with log, signals_interrupt() as received:
                function(**kwargs)
        except Exception as error:
            if raised_in(error, "lightning"):  # e.g. gradient_clip_val under manual optimisation
                raise UserError(f"trainer: {in_a_line(error)}; leave that setting out") from error
            if self.trainer.world_size == 1 or not is_lost_connection(error):
                raise
            raise LostRankError(
                f"rank {self.trainer.global_rank} stops: another rank has ended, or does not answer "
                f"({str(error).partition(chr(10))[0]}); what that one printed tells why. The last checkpoint is kept: "
                "resume with --ckpt_path last"
            ) from error
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            callbacks = self.trainer.checkpoint_callbacks
            received += [c.received for c in callbacks if isinstance(c, LastCheckpoints) and c.received]
            number = received[-1] if received else signal.SIGINT
            if number == signal.SIGUSR1 and self.trainer.is_global_zero:
                requeue()
            raise SystemExit(128 + number) from None


def _as_seed(value: bool | int) -> int:
    if isinstance(value, bool):
        raise UserError(f"seed_everything ({value}) must be a number: a run must be repeatable")
    return value


_SECTIONS = {"experts": RecordExperts, "evaluation": CrossArchitecture, "export": Export, "preview": Preview}


class DistillationCLI(RunCLI):
    """The two Lightning verbs, with sections for experts, evaluation, artefact and pictures."""

    run_files = (
        *RunCLI.run_files,
        *("distilled", "initial", "evaluation.csv", "evaluation.json", "evaluated", "previews"),
    )
    seeded = (*RunCLI.seeded, "evaluation.seed")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return what a distiller does."""
        verbs = LightningCLI.subcommands()
        return {verb: verbs[verb] for verb in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections `experts`, `evaluation`, `export` and `preview`."""
        for section, callback in _SECTIONS.items():
            parser.add_lightning_class_args(callback, section)
        super().add_arguments_to_parser(parser)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:  # noqa: ANN401 - LightningCLI's signature
        """Refuse what the run could only refuse later; keep an evaluation off that is off."""
        options, trainer = self.options, self.options.trainer
        evaluation, experts = (self._get(self.config_init, name) for name in ("evaluation", "experts"))
        evaluation.off = trainer.limit_val_batches == 0  # overfit_batches would switch it on again
        wanted = None if evaluation.off or trainer.fast_dev_run else evaluation
        steps = self.subcommand != "validate" and trainer.max_steps != 0
        resumed = Path(trainer.default_root_dir) if options.get("ckpt_path") else None
        assert isinstance(self.model, Distiller)
        check_run(self.model, self.datamodule, experts, wanted, steps=steps, folder=resumed)
        return super().instantiate_trainer(**kwargs)


def fit_or_validate(verb: str, arguments: Sequence[str]) -> Ending:
    """Run `latentdd fit` or `latentdd validate` on the process's own arguments, which `run_verb` has set."""
    cli = DistillationCLI(Distiller, "runs/default")
    if cli.options.trainer.fast_dev_run:
        return Ending(next=(verb, *without("--trainer.fast_dev_run", arguments)))
    return ending_of_run(cli.trainer.default_root_dir)
