"""What our models put in the place of a trainer's own (bar, no advertisements), and what of its own is refused."""

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from inspect import signature
from typing import Any

import lightning as L
import psutil
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar, WeightAveraging
from torch import distributed

from ldd.errors import UserError, in_a_line
from ldd.runtime.progress import Counter, progress
from ldd.runtime.ranks import rank_zero_info

_EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the frozen prior, on purpose
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # lightning 2.6 on torch 2.15, out of our control
    r"You're resuming from a checkpoint that ended before the epoch ended",  # steps do not read the loader
    r"LightningCLI's args parameter is intended",  # the process's own arguments name the verb as well
    r"The '(train|val)_dataloader' does not have many workers",  # the loaders only count steps
    r"Using `DistributedSampler` with the dataloaders",  # likewise
    r"The `srun` command is available",  # a run on a login node, or a cell of a sweep that is itself a job
    r"Starting from v1.9.0, `tensorboardX` has been removed",  # advertisement
)
_EXPECTED_WORDS = (
    "💡 Tip: For seamless cloud",  # advertisements
    "SLURM auto-requeueing enabled",  # its handlers give way to ours
    "Seed set to",  # said by the recipe, and once more by each part of a federation
    "`Trainer.fit` stopped: `max_steps=",  # the end of every run of ours
)
_ENDLESS = 2**31  # steps of an epoch of `DistillationData` where no number of steps is asked for
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.trainer.connectors.signal_connector",
)


_UNFIT = {
    *("GradientAccumulationScheduler", "BatchSizeFinder", "LearningRateFinder"),
    *("ModelPruning", "BaseFinetuning", "SpikeDetection"),
}
"""Callbacks of Lightning that need its own loop of optimisation, or break in ours."""


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_EXPECTED_WORDS)


def expect_warnings() -> None:
    """Silence what the trainer says of things that are so on purpose, and its advertisements."""
    for expected in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", expected)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_worth_saying)  # the same function is added once


@contextmanager
def silent() -> Iterator[None]:
    """Let a trainer, and what runs beside it, say nothing but warnings while a block lasts."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


expect_warnings()  # before a trainer is made, which tells its advertisements at once


class TrainingBar(ProgressBar):
    """Shows the steps of a whole run with the latest loss, in the display that all other work shares."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._open = ExitStack()
        self._counter: Counter | None = None

    def disable(self) -> None:
        """Show nothing; the trainer calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin at the step of a resumed run."""
        self._counter = self._open.enter_context(
            progress("training", _steps(trainer), unit="steps", done=trainer.global_step, shown=self._enabled)
        )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: L.pytorch.utilities.types.STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Count the steps; losses are read only when they are shown, since a GPU would have to wait."""
        if self._counter is not None:
            self._counter.add(trainer.global_step - self._counter.done, lambda: _losses(trainer))
            if self._counter.done == _steps(trainer):  # what is left is evaluation
                self._open.close()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar away."""
        self._open.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away."""
        self._open.close()


def own_bar(trainer: L.Trainer) -> list[L.Callback]:
    """Return our bar where the trainer has the bar that it makes by default, which is taken out."""
    callbacks = _callbacks(trainer)
    expect_warnings()  # again: a program may have set filters of its own
    others = [one for one in callbacks if type(one) not in (RichProgressBar, TQDMProgressBar)]
    if len(others) == len(callbacks):
        return []
    trainer.callbacks = others  # type: ignore[attr-defined]
    bar = TrainingBar()
    if not trainer.is_global_zero:
        bar.disable()
    return [bar]


def tell_of_evaluation(trainer: L.Trainer) -> None:
    """Say in one line what to attach where nothing evaluates the codes: the command line attaches it itself."""
    if trainer.limit_val_batches == 0 or any(getattr(one, "evaluates", False) for one in _callbacks(trainer)):
        return
    rank_zero_info(
        "no accuracy will be measured: give the trainer callbacks=[ldd.CrossArchitecture(), ldd.Export()], as the "
        "command line does, or call ldd.evaluate(model.distilled_set(), None, data); limit_val_batches=0 says that "
        "this is meant"
    )


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def _steps(trainer: L.Trainer) -> int | None:
    """Steps of the whole run; None where only time or the user ends it."""
    batches, epochs = trainer.num_training_batches, trainer.max_epochs or 0
    by_epochs = epochs * batches if epochs > 0 else float("inf")
    steps = min(by_epochs, trainer.max_steps if trainer.max_steps >= 0 else float("inf"))
    return int(steps) if steps < _ENDLESS else None


def _losses(trainer: L.Trainer) -> str:
    shown: Mapping[str, float] = trainer.progress_bar_metrics
    return ", ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in shown.items())


def check_callbacks(callbacks: Iterable[L.Callback]) -> None:
    """Raise for callbacks of Lightning that need its own loop of optimisation, or break in ours."""
    for callback in callbacks:
        kinds = {base.__name__ for base in type(callback).__mro__}
        if kinds & _UNFIT or type(callback) is WeightAveraging:
            raise UserError(
                f"trainer.callbacks ({type(callback).__name__}) changes how Lightning optimises, and here the "
                "model takes its own steps; leave it out"
            )


def refused_setting(settings: dict[str, Any], error: Exception) -> UserError:
    """Return what Lightning's trainer said of its settings, under those without which it can be made."""
    defaults = {name: parameter.default for name, parameter in signature(L.Trainer).parameters.items()}
    given = {name: value for name, value in settings.items() if value != defaults[name]}
    named = []
    for name in sorted(given.keys() - {"callbacks", "default_root_dir", "logger"}):
        with suppress(Exception):
            # Lightning adds to the list that it is given.
            others = {key: value for key, value in given.items() if key != name}
            L.Trainer(**{**others, "callbacks": [*given["callbacks"]]})
            named.append(f"trainer.{name} ({given[name]})")
    return UserError(f"{', '.join(named) or 'trainer'}: {in_a_line(error)}; change it, or leave it out")


def rank_started_by_lightning(trainer: L.Trainer) -> int:
    """Return the number of this process on its machine if rank 0 of the machine started it, else 0."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, LightningEnvironment):
        return 0
    # The same variables may come from a script; Lightning's launcher runs its own command once more.
    parent = psutil.Process().parent()
    own = sys.argv[1:]
    return environment.local_rank() if parent is not None and parent.cmdline()[-len(own) :] == own else 0


def is_lost_connection(error: Exception) -> bool:
    """Return whether a collective failed because another rank has ended or does not answer."""
    # gloo raises plain RuntimeErrors, which name its source file.
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
