"""What a run will take, from a few of its own steps: time, memory, disk."""

import math
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import lightning as L
import psutil
import torch

from ldd.callbacks import CrossArchitecture
from ldd.classes import Labelled
from ldd.data import DistillationData
from ldd.data.sources import Split
from ldd.distilled import DistilledSet
from ldd.evaluation import Protocol
from ldd.evaluation.baselines import Baseline, Setting, StoredSet, default_baselines
from ldd.evaluation.report import DISTILLED
from ldd.evaluation.sets import INITIAL, nested_sets
from ldd.evaluation.students import Lesson, Student
from ldd.evaluation.workers import count_workers, run_students
from ldd.memory import peak_memory_mib
from ldd.objectives import Objective

FLOAT_IN_CHECKPOINT = 9
"""Bytes by which the loss curve in a checkpoint grows with each step: a pickled float."""

SHORT, LONG = 2, 6  # epochs of the students that are timed
FULL_BATCHES = 4  # batches of the full real data that they are timed on


class StepClock(L.Callback):
    """Times every step, and what the callbacks do between two of them.

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
        """Mean of the steps after the first, which also finds the memory plan; the first if it is the only one."""
        later = self.steps[1:] or self.steps
        return sum(later) / len(later)

    @property
    def gap(self) -> float:
        """The shortest time between two steps: one in which nothing is written."""
        return min(self._gaps, default=0.0)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def since_start() -> float:
    """Seconds that this process has run, its imports included."""
    return time.time() - psutil.Process().create_time()


# Disk


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is nothing."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def run_bytes(
    run: Path, steps: int, probed: int, *, checkpoints: int, previews: int, initial: bool, rows: int
) -> dict[str, int]:
    """Bytes of each part of a run's folder after `steps` steps, from one of `probed` steps in `run`.

    Args:
        run: the short run.
        steps: of the planned run.
        probed: of the short run.
        checkpoints: how often the planned run saves; the last two stay.
        previews: its pictures.
        initial: the codes before the first step are kept, too.
        rows: of evaluation.csv.
    """
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
"""Of evaluation.csv, with its share of evaluation.json."""


def cache_bytes(data: DistillationData) -> int:
    """Bytes of the decoded splits in `data.cache_dir`; 0 without one."""
    if data.cache_dir is None:
        return 0
    images = sum(len(data.source.items(split)) for split in get_args(Split))
    return images * 3 * data.spec.image_size**2


def expert_bytes(objective: Objective) -> int:
    """Bytes of the recordings that an objective reads; 0 for most."""
    return sum(
        size_of(Path(folder).expanduser()) for folder in {need.trajectories for need in objective.experts()}
    )


# Evaluation


@dataclass(frozen=True)
class EvaluationCost:
    """What one evaluation takes.

    Attributes:
        students: networks trained.
        seconds: on this machine's workers.
        peak_memory_mib: of all worker processes together on a CPU, of the device otherwise.
    """

    students: int = 0
    seconds: float = 0.0
    peak_memory_mib: float = 0.0


def measure_evaluation(
    callback: CrossArchitecture, distilled: DistilledSet, data: DistillationData, device: torch.device
) -> EvaluationCost:
    """Time each network for a few epochs on the distilled set and on some of the full data; the rest follows.

    Args:
        callback: the run's evaluation.
        distilled: a set of the size that will be evaluated.
        data: set up.
        device: where students are trained.
    """
    protocol = callback.protocol
    factories = dict(callback.networks) if callback.networks is not None else protocol.factories()
    lesson = Lesson(data.spec, protocol, factories, callback.seed)
    baselines = default_baselines(distilled) if callback.baselines is None else callback.baselines
    sets = [StoredSet(DISTILLED, distilled), *baselines]
    sets += nested_sets(callback.budgets, distilled, sets)
    if callback.initial:
        sets.append(StoredSet(INITIAL, distilled))
    setting = Setting(
        data, torch.bincount(distilled.labels, minlength=data.spec.num_classes).tolist(), callback.seed
    )
    full_batch = protocol.full_data_batch_size or protocol.batch_size
    everything = Labelled(data.train_images.images, data.train_images.labels)
    some = torch.randperm(len(everything.labels))[: FULL_BATCHES * full_batch]
    given = {
        (DISTILLED, 0): Labelled(distilled.images, distilled.labels),
        ("full", 0): Labelled(everything.images[some], everything.labels[some]),
    }
    probes = [Student(DISTILLED, name, 0, epochs) for name in factories for epochs in (SHORT, LONG)]
    if any(part.full_data for part in sets):
        probes += [Student("full", name, 0, SHORT, full_batch) for name in factories]
    workers = count_workers(callback.num_workers) if device.type == "cpu" else 1
    outcomes = run_students(
        lesson,
        probes,
        given,
        Labelled(
            *(part[:: protocol.test_every] for part in (data.test_images.images, data.test_images.labels))
        ),
        device=device,
        num_workers=callback.num_workers,
    )
    seconds = {student: outcome.seconds for student, outcome in outcomes.items()}
    total, students = 0.0, 0
    for part in sets:
        repeats = part.repeats or callback.repeats
        students += repeats * len(factories)
        for name in factories:
            total += repeats * _student_seconds(part, name, seconds, protocol, setting, full_batch)
    shared = min(workers, students)
    in_workers = workers > 1 and len(probes) > 1
    memory = shared * _children_mib() if in_workers else peak_memory_mib(device)
    return EvaluationCost(students, total / shared, memory)


def _student_seconds(
    part: Baseline,
    name: str,
    seconds: Mapping[Student, float],
    protocol: Protocol,
    setting: Setting,
    full_batch: int,
) -> float:
    short, long = (seconds[Student(DISTILLED, name, 0, epochs)] for epochs in (SHORT, LONG))
    epoch = max(0.0, long - short) / (LONG - SHORT)
    before = max(0.0, short - SHORT * epoch)  # building and testing
    if not part.full_data:
        return before + protocol.budget(setting.counts)[0] * epoch
    probe = seconds[Student("full", name, 0, SHORT, full_batch)]
    images = len(setting.data.train_images.labels)
    batches = math.ceil(min(images, FULL_BATCHES * full_batch) / full_batch)
    batch = max(0.0, probe - before) / (SHORT * batches)
    return before + protocol.full_data_epochs * math.ceil(images / full_batch) * batch


def _children_mib() -> float:
    """Peak resident set of the largest child process that has ended."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
