"""Measurements on a short run: the time of its steps, and the disk that the whole run will take."""

import time
from pathlib import Path
from typing import get_args

import lightning as L
import psutil
import torch

from ldd.data import DistillationData
from ldd.data.sources import Split
from ldd.objectives import Objective

FLOAT_IN_CHECKPOINT = 9
"""Bytes by which the loss curve in a checkpoint grows with each step: a pickled float."""


class StepClock(L.Callback):
    """Times every step, and the work of the callbacks between two steps.

    Attributes:
        steps: seconds of each step.
        started: when the first step began, on the clock of `time.perf_counter`.
        ended: when the last one ended.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.started = self.ended = 0.0
        self._began = 0.0
        self._gaps: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._began = _now(pl_module.device)
        if self.steps:
            self._gaps.append(self._began - self.ended)
        else:
            self.started = self._began

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Stop it, before the other callbacks do their work."""
        self.ended = _now(pl_module.device)
        self.steps.append(self.ended - self._began)

    @property
    def seconds_per_step(self) -> float:
        """Mean of the steps after the first, which also plans memory; of the first if it is the only one."""
        later = self.steps[1:] or self.steps
        return sum(later) / len(later)

    @property
    def gap(self) -> float:
        """The shortest time between two steps, in which nothing is written."""
        return min(self._gaps, default=0.0)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def since_start() -> float:
    """Return the seconds that this process has run, its imports included."""
    return time.time() - psutil.Process().create_time()


# Disk


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 where there is nothing."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def run_bytes(
    run: Path, steps: int, probed: int, *, checkpoints: int, previews: int, initial: bool, rows: int
) -> dict[str, int]:
    """Return the bytes of each part of a run's folder after `steps` steps, from a short run of `probed` steps."""
    last = size_of(run / "checkpoints" / "last.ckpt")
    checkpoint = last + FLOAT_IN_CHECKPOINT * (steps - probed) if last else 0
    pictures = sorted((run / "previews").glob("step-*.png"))
    picture = sum(map(size_of, pictures)) / len(pictures) if pictures else 0
    artefact = size_of(run / "distilled")
    logs = size_of(run / "logs")
    return {
        "checkpoints": min(2, checkpoints) * checkpoint,
        "artefact": artefact,
        "initial": artefact if initial else 0,
        "previews": round(previews * picture) + size_of(run / "previews" / "loss.png"),
        "logs": round(logs * steps / max(1, probed)),
        "evaluation": rows * BYTES_OF_A_ROW,
        "config": size_of(run / "config.yaml"),
    }


BYTES_OF_A_ROW = 90
"""Bytes of a row of evaluation.csv, with its share of evaluation.json."""


def cache_bytes(data: DistillationData) -> int:
    """Return the bytes of the decoded splits in `data.cache_dir`; 0 without one."""
    if data.cache_dir is None:
        return 0
    images = sum(len(data.source.items(split)) for split in get_args(Split))
    return images * 3 * data.spec.image_size**2


def expert_bytes(objective: Objective) -> int:
    """Return the bytes of the recordings that an objective reads; 0 for most."""
    return sum(
        size_of(Path(folder).expanduser()) for folder in {need.trajectories for need in objective.experts()}
    )
