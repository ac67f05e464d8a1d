"""What a run's evaluation will take, from a few epochs of each network and the work of every student."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from ldd.artefact.set import DistilledSet
from ldd.callbacks import CrossArchitecture
from ldd.callbacks.cross_architecture import Distils, prior_of
from ldd.data.real import EvaluationData
from ldd.evaluation import Setting, equal_baselines
from ldd.evaluation.comparison import splits
from ldd.evaluation.results.rows import DISTILLED
from ldd.evaluation.running import students_of, teacher_of
from ldd.evaluation.sets import all_sets, counts_by_set
from ldd.images import Labelled
from ldd.networks import NetworkFactory
from ldd.runtime.devices import peak_memory_mib
from ldd.students.training import Lesson, Student, fresh_network, one_thread
from ldd.students.training_set import TrainingCost
from ldd.students.workers import count_workers, run_students

SHORT, LONG = 2, 6  # epochs of the students that are timed
FULL_BATCHES = 4  # batches of the full real data that they are timed on
_FULL = "full"


@dataclass(frozen=True)
class EvaluationCost:
    """What one evaluation takes, but for making its sets: drawing codes, sampling a prior, finding centroids.

    Attributes:
        students: networks trained.
        seconds: on this machine's workers.
        peak_memory_mib: of all worker processes together on a CPU, of the device otherwise.
    """

    students: int = 0
    seconds: float = 0.0
    peak_memory_mib: float = 0.0


@dataclass(frozen=True)
class Pace:
    """Seconds that students of one network take.

    Attributes:
        before: building and testing.
        step: for each step of the optimiser.
        image: for each image in it.
        look: to test on both splits during training.
    """

    before: float
    step: float
    image: float
    look: float

    @classmethod
    def of(
        cls, timed: Sequence[tuple[TrainingCost, float]], *, before: float = 0.0, look: float = 0.0
    ) -> Self:
        """From the seconds of two students' work.

        Noise can make one of the two costs negative, and batches of one size tell nothing apart: then all time is
        charged to the images, or to the steps where images seem to cost nothing.
        """
        (one, first), (two, second) = timed
        images = [work.epochs * work.images_per_epoch for work in (one, two)]
        steps = [one.steps, two.steps]
        both = steps[0] * images[1] - steps[1] * images[0]
        step = (first * images[1] - second * images[0]) / both if both else -1.0
        image = (steps[0] * second - steps[1] * first) / both if both else 0.0
        if image < 0:
            step, image = (first + second) / sum(steps), 0.0
        elif step < 0:
            step, image = 0.0, (first + second) / sum(images)
        return cls(before, step, image, look)

    def seconds(self, work: TrainingCost, looks: int) -> float:
        """Of a student."""
        images = work.epochs * work.images_per_epoch
        return self.before + work.steps * self.step + images * self.image + looks * self.look


def planned_students(
    callback: CrossArchitecture, distilled: DistilledSet, setting: Setting
) -> dict[Student, TrainingCost]:
    """The students of an evaluation and what training each of them takes, as `evaluate` counts; no image is picked.

    Args:
        callback: the run's evaluation.
        distilled: a set of the size and form that will be evaluated.
        setting: of its evaluation.

    Raises:
        UserError: baselines that cannot be had, or draws of codes that do not fit into memory.
    """
    protocol = callback.protocol
    beside = callback.baselines
    if beside is None:
        beside, _ = equal_baselines(distilled, setting, protocol)
    for part in beside:
        part.check(setting)
    initial = distilled if callback.initial else None
    sets = all_sets(
        distilled,
        initial,
        beside,
        callback.budgets,
        protocol,
        lambda _: distilled.images,  # the number of draws counts, not what they show
        callback.seed,
    )
    given = {
        (part.name, repeat): part.outline(repeat, setting)
        for part in sets
        for repeat in range(part.repeats or callback.repeats)
    }
    counts = counts_by_set(distilled, callback.budgets)
    students = students_of(sets, list(_factories(callback)), callback.repeats, protocol, counts, given)
    return {
        student: given[student.set, student.repeat].cost(
            protocol, student.epochs, student.batch_size or protocol.batch_size
        )
        for student in students
    }


def measure_evaluation(
    callback: CrossArchitecture, distils: Distils, data: EvaluationData, device: torch.device
) -> EvaluationCost:
    """Time each network for a few epochs on the distilled set and on some of the full data; the rest follows.

    Args:
        callback: the run's evaluation.
        distils: what makes the set that will be evaluated.
        data: set up.
        device: where students are trained.

    Raises:
        UserError: what the evaluation would refuse.
    """
    protocol, factories = callback.protocol, _factories(callback)
    distilled, labeller = distils.distilled_set(), distils.labeller
    setting = Setting.of(
        distilled, data, callback.seed, labeller=labeller, prior=prior_of(distils), device=device
    )
    lesson = Lesson(data.spec, protocol, factories, callback.seed, teacher_of(protocol, labeller))
    work = planned_students(callback, distilled, setting)
    workers = count_workers(callback.num_workers) if device.type == "cpu" else 1
    paces, in_workers = _paces(lesson, distilled, data, device, workers)
    total = sum(
        paces[student.network].seconds(cost, len(protocol.look_epochs(student.epochs)))
        for student, cost in work.items()
    )
    shared = min(workers, len(work))
    memory = shared * _children_mib() if in_workers else peak_memory_mib(device)
    return EvaluationCost(len(work), total / shared, memory)


def _factories(callback: CrossArchitecture) -> Mapping[str, NetworkFactory]:
    return callback.networks if callback.networks is not None else callback.protocol.factories()


def _paces(
    lesson: Lesson, distilled: DistilledSet, data: EvaluationData, device: torch.device, workers: int
) -> tuple[dict[str, Pace], bool]:
    """Pace of each network, and whether worker processes found it."""
    protocol = lesson.protocol
    _, batch = protocol.budget(distilled.counts)
    full_batch = protocol.full_data_batch_size or protocol.batch_size
    some = torch.randperm(len(data.train_images))[: FULL_BATCHES * full_batch]
    given = {
        (DISTILLED, 0): Labelled(distilled.images, distilled.labels),
        (_FULL, 0): Labelled(data.train_images.take(some), data.train_images.labels[some]),
    }
    probes = {
        (name, kind): Student(kind if kind == _FULL else DISTILLED, name, 0, epochs, size)
        for name in lesson.factories
        for kind, epochs, size in (("short", SHORT, batch), ("long", LONG, batch), (_FULL, SHORT, full_batch))
    }
    test, selection = splits(data, protocol)
    outcomes = run_students(lesson, list(probes.values()), given, test, device=device, num_workers=workers)
    paces = {}
    for name in lesson.factories:
        short, long, full = (outcomes[probes[name, kind]].seconds for kind in ("short", "long", _FULL))
        more = max(0.0, long - short)
        before = max(0.0, short - more * SHORT / (LONG - SHORT))
        timed = [
            (TrainingCost.of(LONG - SHORT, len(distilled.images), batch), more),
            (TrainingCost.of(SHORT, len(some), full_batch), max(0.0, full - before)),
        ]
        look = 0.0 if selection is None else _look_seconds(lesson, name, [test, selection], device)
        paces[name] = Pace.of(timed, before=before, look=look)
    return paces, workers > 1 and len(probes) > 1


def _look_seconds(lesson: Lesson, name: str, tested: Sequence[Labelled], device: torch.device) -> float:
    """Of testing a network on all splits, with as many threads as students have."""
    network = fresh_network(lesson.factories[name], lesson.spec, lesson.seed, name, 0).to(device)
    there = [Labelled(*(part.to(device) for part in split)) for split in tested]
    with one_thread(device):
        lesson.accuracy(network, there[0])  # the first pass also chooses kernels
        started = time.perf_counter()
        for split in there:
            lesson.accuracy(network, split)
        return time.perf_counter() - started


def _children_mib() -> float:
    """Peak resident set of the largest child process that has ended."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
