"""Checkpoints that survive: the last two, written at the end of a step, atomically; signals wait for that end."""

import os
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ldd.errors import NonFiniteError, UserError
from ldd.files import atomic_file

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class LastCheckpoints(Checkpoint):
    """Keeps `<run>/checkpoints/last.ckpt` and the one before it, `previous.ckpt`.

    SIGINT, SIGTERM and SIGUSR1 set a flag; the step in flight is finished, its checkpoint written, and the run
    stops. A second SIGINT stops at once.

    Args:
        every_n_steps: training steps between checkpoints; the last step always has one.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise UserError(f"checkpoint.every_n_steps ({every_n_steps}) must be at least 1")
        self.every_n_steps = every_n_steps
        self.received: int | None = None
        self._in_step = False
        self._saved_step = -1
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals."""
        self._saved_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """From here a signal waits."""
        self._in_step = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Save when it is time; stop when a signal came."""
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if due or self.received is not None:
            self._save(trainer)
        self._in_step = False
        if self.received is not None:
            rank_zero_info(f"stopped by signal {self.received}; resume with --ckpt_path last")
            raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what another callback's stop has not; give the signals back."""
        self._save(trainer)
        self._restore_signals()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a finished run be continued with more steps: its loop must not think that it is done."""
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """After a non-finite loss the codes are still good (the step was not taken): keep them."""
        self._restore_signals()
        if isinstance(exception, NonFiniteError):
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self._saved_step:
            return
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        with atomic_file(last) if trainer.is_global_zero else nullcontext(last) as beside:
            # Collective: every rank calls it, rank 0 writes.
            trainer.save_checkpoint(beside, weights_only=False)
            if trainer.is_global_zero and last.exists():
                os.replace(last, last.with_name("previous.ckpt"))
        self._saved_step = trainer.global_step

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        at_once = not self._in_step or (self.received is not None and number == signal.SIGINT)
        self.received = number
        if at_once:
            raise KeyboardInterrupt
        rank_zero_warn("stopping at the end of this step (press Ctrl-C again to stop at once)")

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def find_last(run: Path) -> Path:
    """The newest checkpoint of a run folder.

    Raises:
        UserError: there is none.
    """
    for name in ("last.ckpt", "previous.ckpt"):
        path = run / "checkpoints" / name
        if path.is_file():
            return path
    raise UserError(
        f"ckpt_path (last): no checkpoint in {run / 'checkpoints'}; drop --ckpt_path to start the run"
    )
