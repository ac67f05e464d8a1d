"""Evaluation within a run: networks that the codes never met are trained on the set as saved and on baselines."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol as Interface, cast

import lightning as L
import rich
import torch
from torch import Tensor

from ldd.artefact import manifest as manifests
from ldd.artefact.set import DistilledSet
from ldd.data.real import EvaluationData
from ldd.errors import UserError, check_at_least
from ldd.evaluation import Baseline, Protocol, Report
from ldd.evaluation.baselines.equal import chosen_baselines
from ldd.evaluation.comparison import compare, report_in
from ldd.evaluation.courses import courses, teacher_of
from ldd.evaluation.records import FOLDER
from ldd.evaluation.request import Request, Tested
from ldd.evaluation.results.rows import DISTILLED, INITIAL, of_a_step
from ldd.labels.base import Labeller
from ldd.networks import NetworkFactory
from ldd.priors import Prior
from ldd.runtime.ledger import EVALUATE
from ldd.runtime.ranks import rank_zero_warn
from ldd.students.workers import NumWorkers, count_workers


class Distils(Interface):
    """What this callback needs of a LightningModule (`Distiller` has it).

    Attributes:
        num_steps_done: 0-d tensor, training steps behind the codes; restored with the weights.
        labeller: gives the set its soft labels, or None.
    """

    num_steps_done: Tensor

    labeller: Labeller | None

    def distilled_set(self) -> DistilledSet:
        """Return the codes as they are now, as they would be saved."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw every code once, (N, 3, H, W) uint8; asked for only where the codes have a spread."""


class CrossArchitecture(L.Callback):
    """Evaluates the codes at every validation, at the end of a fit without one, and at `Trainer.validate`.

    Writes `<run>/initial/` (the codes before the first step), `<run>/evaluation.csv` and `<run>/evaluation.json`, logs
    `val/accuracy/<network>` and `val/accuracy/mean_unseen`, and prints a table at the end. Every network that has been
    tested is kept in `<run>/evaluated/`, so that a killed run trains none twice. Sets that do not depend on the step
    are evaluated once per process, and their rows carry the step of the latest comparison.
    `--trainer.limit_val_batches 0` switches the evaluation off.

    Args:
        networks: networks by name; null takes the protocol's.
        protocol: name of a shipped protocol, or path of a protocol file.
        repeats: networks of each kind for each set.
        baselines: sets to compare with: classes, or names as `latentdd evaluate --baselines` takes them (`none` for
            no baselines). Null takes all that can be had at equal images, bytes and training steps: real images drawn
            at random, near centroids and easy first, plain samples of the prior, and the full real data.
        initial: compare with the codes before the first step.
        budgets: numbers of images: the first that many of each class are evaluated too, as `distilled_ipc<number>`,
            and as many random real images where these are among the baselines.
        num_workers: worker processes on a CPU ("auto": one per core); the accuracies do not depend on it.
        seed: of everything random in the evaluation (linked to `seed_everything` on the command line).
        split: what students are tested on: `test`, as the protocol takes it, or all of `selection`, to choose settings.

    Raises:
        UserError: an unknown protocol, or numbers out of range.
    """

    evaluates = True  # what a distiller asks of its trainer's callbacks

    def __init__(
        self,
        networks: dict[str, NetworkFactory] | None = None,
        protocol: str = "ld3m",
        repeats: int = 5,
        baselines: Sequence[Baseline] | str | None = None,
        initial: bool = True,
        budgets: Sequence[int] = (),
        num_workers: NumWorkers = "auto",
        seed: int = 0,
        split: Tested = "test",
    ) -> None:
        check_at_least(1, "evaluation", repeats=repeats)
        if networks is not None and not networks:
            raise UserError(
                "evaluation.networks ({}) is empty; name at least one, or leave it null for the protocol's; without an "
                "evaluation: --trainer.limit_val_batches 0"
            )
        count_workers(num_workers)
        self.networks = networks
        self.protocol = Protocol.load(protocol)
        self.repeats = repeats
        self.baselines = chosen_baselines(baselines)
        self.initial = initial
        self.budgets = tuple(budgets)
        self.num_workers = num_workers
        self.seed = seed
        self.split: Tested = split
        self.off = False  # set by the command line
        self.report: Report | None = None
        self._beside: Report | None = None
        self._evaluated_step: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse, before any step, results of another version of the protocol, and a protocol without its teacher."""
        if self._switched_on(trainer):
            data = trainer.datamodule  # type: ignore[attr-defined]
            report_in(trainer.default_root_dir, self.protocol, data, self.split)
            if getattr(pl_module, "labels", None) is None:
                teacher_of(self.protocol, None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what cannot be evaluated; save the first codes, or make up for an evaluation that was cut off."""
        self._check(trainer, pl_module)
        if trainer.global_step == 0:
            self._save_initial(trainer, pl_module)
        elif self._switched_on(trainer) and self._is_owed(trainer, int(_distils(pl_module).num_steps_done)):
            self._evaluate(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the codes as they are."""
        if trainer.sanity_checking or not self._switched_on(trainer):
            return
        self._evaluate(trainer, pl_module)
        if trainer.state.fn == "validate":
            self._show(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the final codes unless a validation just has (none was due, or `max_steps` is 0)."""
        if not self._switched_on(trainer):
            return
        step = int(_distils(pl_module).num_steps_done)
        if step == 0:
            self._save_initial(trainer, pl_module)
        if step != self._evaluated_step:
            self._evaluate(trainer, pl_module)
        self._show(trainer)

    def _is_owed(self, trainer: L.Trainer, step: int) -> bool:
        # Lightning takes a checkpoint of a step with a validation for one that was made after it.
        if trainer.val_check_batch is None or trainer.global_step % trainer.val_check_batch:
            return False
        earlier = report_in(trainer.default_root_dir, self.protocol, split=self.split)
        done = () if earlier is None else earlier.rows
        return not any((r.set, r.step, r.protocol) == (DISTILLED, step, self.protocol.id) for r in done)

    def request(self, data: EvaluationData, **rest: Any) -> Request:  # noqa: ANN401 - fields
        """Return what an evaluation by these settings is asked for; `rest` are other fields of `Request`."""
        settings: dict[str, Any] = {
            "networks": self.networks,
            "repeats": self.repeats,
            "seed": self.seed,
            "baselines": self.baselines,
            "budgets": self.budgets,
            "num_workers": self.num_workers,
            "split": self.split,
        }
        return Request(data, self.protocol, **settings | rest)

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse now what a long run would find out at its end."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not self._switched_on(trainer) or data is None:
            return
        distilled = _distils(pl_module).distilled_set()
        request = self.request(
            data,
            **known_of(_distils(pl_module)),
            # Where none are named, those that cannot be had are left out, and there is nothing to refuse.
            baselines=self.baselines or (),
            initial=distilled if self.initial else None,
            device=pl_module.device,
        )
        courses(distilled, request)

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise UserError(
                "CrossArchitecture needs real images; pass the trainer a datamodule (DistillationData)"
            )
        step = int(_distils(pl_module).num_steps_done)
        first = self._beside is None
        request = self.request(
            data,
            **known_of(_distils(pl_module)),
            baselines=self.baselines if first else (),
            initial=self._load_initial(trainer) if first else None,
            records=Path(trainer.default_root_dir) / FOLDER,
            device=pl_module.device,
            progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
        )
        earlier = report_in(trainer.default_root_dir, self.protocol, split=self.split)
        report = compare(_distils(pl_module).distilled_set(), request, step, earlier)
        if self._beside is None:
            self._beside = replace(report, rows=tuple(row for row in report.rows if not of_a_step(row.set)))
        else:
            of_step = tuple(row for row in report.rows if of_a_step(row.set))
            report = replace(report, rows=of_step).beside(self._beside)
        self.report = report
        self._evaluated_step = step
        if trainer.is_global_zero:
            whole = report if earlier is None else report.after(earlier)
            whole.write(trainer.default_root_dir)
            written = Path(trainer.default_root_dir) / "distilled"
            if (written / manifests.NAME).is_file():
                manifests.charge(written, EVALUATE, whole.spent())
            for logger in trainer.loggers:
                logger.log_metrics(report.metrics(), step=step)
        trainer.callback_metrics.update(
            {name: torch.tensor(value) for name, value in report.metrics().items()}
        )

    def _save_initial(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.initial or not self._switched_on(trainer):
            return
        distilled = _distils(pl_module).distilled_set()
        if trainer.is_global_zero:
            distilled.save(Path(trainer.default_root_dir) / INITIAL)
        trainer.strategy.barrier()

    def _load_initial(self, trainer: L.Trainer) -> DistilledSet | None:
        folder = Path(trainer.default_root_dir) / INITIAL
        if not self.initial:
            return None
        if not folder.is_dir():
            rank_zero_warn(
                f"there is no {folder}: this run was started without evaluation, so its first codes are lost"
            )
            return None
        return DistilledSet.load(folder)

    def _switched_on(self, trainer: L.Trainer) -> bool:
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        return trainer.limit_val_batches != 0 and not self.off and not dry

    def _show(self, trainer: L.Trainer) -> None:
        if self.report is not None and trainer.is_global_zero:
            rich.print(*self.report.tables())


def known_of(distils: Distils) -> dict[str, Any]:
    """Return the fields of a `Request` that a module knows: its labeller, its draws, and its prior if it has one."""
    prior = getattr(distils, "prior", None)
    known = prior if isinstance(prior, Prior) else None
    return {"labeller": distils.labeller, "sampler": distils.sample, "prior": known}


def _distils(pl_module: L.LightningModule) -> Distils:
    # Not isinstance: from Python 3.12 on that would overlook the buffers of a module.
    assert callable(getattr(pl_module, "distilled_set", None)), "a module that distils"
    return cast(Distils, pl_module)
