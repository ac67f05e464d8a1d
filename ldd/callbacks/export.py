"""Writing the artefact of a run, `<run>/distilled/`, also when the run is stopped."""

from pathlib import Path
from typing import Any

import lightning as L

from ldd.artefact.manifest import NAME, Manifest, resumptions
from ldd.artefact.set import DistilledSet
from ldd.disk.files import read_yaml
from ldd.distiller.module import Distiller
from ldd.errors import NonFiniteError, check_at_least
from ldd.runtime.ledger import EVALUATE


class Export(L.Callback):
    """Writes the distilled set before each evaluation, at the end, and when the run is interrupted.

    Args:
        every_n_steps: training steps after which it is also written; 0 for never.

    Raises:
        UserError: a negative number.
    """

    def __init__(self, every_n_steps: int = 0) -> None:
        check_at_least(0, "export", every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._written_step = -1
        self._codes_are_whole = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the codes are whole: they have been initialised or restored."""
        self._codes_are_whole = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Note that a step may have moved some of the codes only."""
        self._codes_are_whole = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Write the set if it is due."""
        self._codes_are_whole = True
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._write(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is about to be evaluated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the result."""
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write where no step was taken (max_steps: 0)."""
        self._write(trainer, pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Keep the last good codes."""
        # A non-finite loss is found before its step is taken.
        stopped = isinstance(exception, KeyboardInterrupt) and self._codes_are_whole
        if stopped or isinstance(exception, NonFiniteError):
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Distiller)
        step = int(pl_module.num_steps_done)
        if step == self._written_step or not trainer.is_global_zero:
            return
        run = Path(trainer.default_root_dir)
        facts = {"config": _resolved_config(run), "resumed": resumptions(run) or None}
        distilled = pl_module.distilled_set().with_facts(**facts)
        _with_evaluation(distilled, run).save(run / "distilled")
        self._written_step = step


def _with_evaluation(distilled: DistilledSet, run: Path) -> DistilledSet:
    """Return the set with the cost of evaluations, which charge the set on disk that it is about to replace."""
    path = run / "distilled" / NAME
    stages = Manifest.read(path).ledger.stages if path.is_file() else {}
    if EVALUATE not in stages:
        return distilled
    return distilled.charged({**distilled.manifest.ledger.stages, EVALUATE: stages[EVALUATE]})


def _resolved_config(run: Path) -> dict[str, Any] | None:
    path = run / "config.yaml"
    return read_yaml(path) if path.is_file() else None
