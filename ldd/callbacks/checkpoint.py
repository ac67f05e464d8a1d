"""Checkpoints that survive: the last two, written at the end of a step, atomically; signals wait for that end."""

import os
import secrets
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed

from ldd.disk.files import atomic_file, remove_leftovers, sync_file
from ldd.errors import NonFiniteError, check_at_least
from ldd.runtime.processes import SIGNALS, is_preparing
from ldd.runtime.ranks import rank_zero_info, rank_zero_warn

FOLDER = "checkpoints"
"""Folder of the checkpoints in a run's."""


class LastCheckpoints(Checkpoint):
    """Keeps `<run>/checkpoints/last.ckpt` and the one before it, `previous.ckpt`.

    After SIGINT, SIGTERM or SIGUSR1 the run finishes its step, writes the checkpoint and stops. A second SIGINT stops
    at once. With several ranks a signal to one of them stops all after the same step. While the codes are evaluated a
    signal stops at once: they have been saved, and so has every student that is done. It also stops at once a step
    that prepares data (latents of a prior's training); the checkpoint is then from before that step.

    Args:
        every_n_steps: training steps between checkpoints; the last step always has one.

    Attributes:
        received: the signal that stopped the run, or None.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        check_at_least(1, "checkpoint", every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.received: int | None = None
        self._evaluating = self._in_preparation = False
        self._saved_step = -1
        self._handlers: dict[int, Any] = {}
        self._ranks: distributed.ProcessGroup | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write where `atomic_file` says, unless the user has chosen how checkpoints are written."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _InPlace()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals."""
        self._saved_step = trainer.global_step
        self.received = None
        if trainer.is_global_zero:
            remove_leftovers(_folder(trainer))
        if trainer.world_size > 1:
            # On the host: asking the device every step would wait for all its work.
            self._ranks = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo"))
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Save when it is time; stop when a signal came."""
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        self._stop_if_told(trainer)
        if due:
            self._save(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what is about to be evaluated; from here a signal stops at once."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_told(trainer)
            self._save(trainer)
            self._evaluating = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let signals wait for the end of a step again."""
        self._evaluating = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what another callback's stop has not; give the signals back."""
        self._save(trainer)
        self._restore_signals()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a finished run be continued with more steps: its loop must not think that it is done."""
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Warn of a checkpoint from before runs knew their images, which `DistillationData` compares."""
        data = getattr(trainer, "datamodule", None)
        if data is not None and type(data).__qualname__ not in checkpoint:
            rank_zero_warn(
                "this checkpoint does not say which images its run was started with, so that they cannot be compared"
            )

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save the state before a step that was not taken, after a non-finite loss or a stop in preparation."""
        self._restore_signals()
        stopped = isinstance(exception, KeyboardInterrupt) and self._in_preparation
        # Of several ranks one may have been told alone, and saving takes all of them.
        if isinstance(exception, NonFiniteError) or (stopped and trainer.world_size == 1):
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self._saved_step:
            return
        last = _folder(trainer) / "last.ckpt"
        with atomic_file(last) if trainer.is_global_zero else nullcontext(last) as beside:
            # Collective: every rank calls it, rank 0 writes.
            trainer.save_checkpoint(beside, weights_only=False)
            if trainer.is_global_zero and last.exists():
                sync_file(beside)  # before the older of the two goes
                _keep(last, last.with_name("previous.ckpt"))
        self._saved_step = trainer.global_step

    def _stop_if_told(self, trainer: L.Trainer) -> None:
        """Stop the run after a signal to any rank; all ranks ask after the same step."""
        told = torch.tensor(self.received or 0)
        if self._ranks is not None:
            distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self._ranks)
        if told:
            self.received = int(told)
            self._save(trainer)
            rank_zero_info(f"stopped by signal {self.received}; resume with --ckpt_path last")
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._in_preparation = is_preparing()
        again = self.received is not None and number == signal.SIGINT
        at_once = self._evaluating or self._in_preparation or again
        self.received = number
        if at_once:
            raise KeyboardInterrupt
        rank_zero_warn("stopping at the end of this step (press Ctrl-C again to stop at once)")

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers, self._evaluating, self._ranks = {}, False, None


class _InPlace(TorchCheckpointIO):
    """Writes our checkpoints in place: Lightning first writes to the temporary folder, which may be on another disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        if Path(path).parent.name == FOLDER and Path(path).name.endswith(".tmp"):  # from `atomic_file`
            torch.save(checkpoint, path)
        else:  # of the user's own callbacks, wherever these are
            super().save_checkpoint(checkpoint, path, storage_options)


def _keep(last: Path, previous: Path) -> None:
    """Let `previous` be what `last` is, without a moment in which there is no `last`."""
    link = previous.with_name(f".{previous.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(last, link)
        os.replace(link, previous)
        # It is still there where `previous` was that file already: a kill came after this line.
        link.unlink(missing_ok=True)
    except OSError:  # a file system without links
        os.replace(last, previous)


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / FOLDER
