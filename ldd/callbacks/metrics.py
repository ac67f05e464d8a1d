"""What a run is doing, in a file that monitoring programs read."""

import os
import socket
import time
from pathlib import Path

import lightning as L
import psutil
import torch

from ldd.disk.files import atomic_file
from ldd.errors import UserError

_STATES = ("training", "evaluating", "finished", "stopped", "failed")

_MEANINGS = {
    "step": "Training steps done.",
    "max_steps": "Training steps that the run is to do.",
    "steps_per_second": "Since the file was last written.",
    "seconds_left": "Of training, at this rate.",
    "memory_bytes": "Held by this process, and by its tensors on an accelerator.",
    "state": "1 for what the run is doing, 0 for the others.",
    "updated_seconds": "When this was written, in seconds of Unix time.",
}


class Metrics(L.Callback):
    """Writes the health of a run to a file in Prometheus' text format (version 0.0.4), at regular times.

    A collector of text files (node_exporter's `--collector.textfile.directory`) serves it as it is. All figures are
    gauges whose names start with `latentdd_`, labelled with the run's folder, host and batch job. No step waits for a
    device on their account, and a file that cannot be written later on does not stop the run.

    Args:
        file: ends in .prom; null writes none. Rank 0 writes it.
        every_seconds: at least this long between two writings while steps are taken.

    Raises:
        UserError: another ending, a folder that is missing, or a number of seconds that is not positive.
    """

    def __init__(self, file: str | None = None, every_seconds: float = 15.0) -> None:
        if file is not None and Path(file).suffix != ".prom":
            raise UserError(f"metrics.file ({file}) must end in .prom, by which collectors know it")
        if file is not None and not Path(file).parent.is_dir():
            raise UserError(f"metrics.file ({file}): its folder does not exist; make it, or name another")
        if not 0 < every_seconds < float("inf"):
            raise UserError(f"metrics.every_seconds ({every_seconds}) must be a positive number of seconds")
        self.file, self.every_seconds = file, every_seconds
        self._state = "training"
        self._latest = (0.0, 0)  # time and step of the latest writing

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write that it has begun."""
        self._state, self._latest = "training", (time.monotonic(), trainer.global_step)
        self._write(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Write when it is time."""
        if time.monotonic() - self._latest[0] >= self.every_seconds:
            self._write(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write that the codes are evaluated."""
        self._tell(trainer, "evaluating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write that steps are taken again."""
        self._tell(trainer, "training")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write that all is done; without this word a run that writes no more was killed."""
        self._tell(trainer, "finished")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write how it ended: stopped by a signal, or failed."""
        self._tell(trainer, "stopped" if isinstance(exception, KeyboardInterrupt) else "failed")

    def _tell(self, trainer: L.Trainer, state: str) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._state = state
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if self.file is None or not trainer.is_global_zero:
            return
        now, step = time.monotonic(), trainer.global_step
        before, done = self._latest
        rate = (step - done) / (now - before) if now > before else 0.0
        self._latest = (now, step)
        text = self._text(trainer, step, rate)
        try:
            with atomic_file(Path(self.file)) as beside:
                beside.write_text(text, encoding="utf-8")
        except UserError:  # a full disk, say: the run is worth more than its figures
            return

    def _text(self, trainer: L.Trainer, step: int, rate: float) -> str:
        labels = {"run": trainer.default_root_dir, "host": socket.gethostname()}
        if (job := os.environ.get("SLURM_JOB_ID")) is not None:
            labels["job"] = job
        figures: dict[str, list[tuple[dict[str, str], float]]] = {"step": [({}, step)]}
        if trainer.max_steps >= 0:
            figures["max_steps"] = [({}, trainer.max_steps)]
        if self._state == "training":
            figures["steps_per_second"] = [({}, rate)]
            if rate and trainer.max_steps >= 0:
                figures["seconds_left"] = [({}, (trainer.max_steps - step) / rate)]
        memory: list[tuple[dict[str, str], float]] = [({"of": "process"}, psutil.Process().memory_info().rss)]
        device = trainer.strategy.root_device
        if device.type == "cuda":
            memory.append(({"of": "tensors"}, torch.cuda.memory_allocated(device)))
        figures["memory_bytes"] = memory
        figures["state"] = [({"state": state}, float(state == self._state)) for state in _STATES]
        figures["updated_seconds"] = [({}, time.time())]
        lines = []
        for name, values in figures.items():
            lines += [f"# HELP latentdd_{name} {_MEANINGS[name]}", f"# TYPE latentdd_{name} gauge"]
            lines += [f"latentdd_{name}{{{_labels(labels | own)}}} {value:.16g}" for own, value in values]
        return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    """Labels with their values escaped."""
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for name, value in labels.items()
    }
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())
