"""The time and memory that the evaluation of a run will take, from a few epochs of each network."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from ldd.artefact.set import DistilledSet
from ldd.callbacks import CrossArchitecture
from ldd.callbacks.cross_architecture import Distils, known_of
from ldd.data.real import EvaluationData
from ldd.evaluation import FullReal
from ldd.evaluation.courses import Course, courses, lesson_of
from ldd.evaluation.request import Request
from ldd.evaluation.results.rows import DISTILLED, FULL
from ldd.images import Labelled
from ldd.runtime.devices import peak_memory_mib, peak_of_children_mib
from ldd.students.training import Lesson, Student, fresh_network, one_thread
from ldd.students.training_set import TrainingCost
from ldd.students.workers import count_workers, run_students

SHORT, LONG = 2, 6  # epochs of the students that are timed
FULL_BATCHES = 4  # batches of the full real data that they are timed on


@dataclass(frozen=True)
class EvaluationCost:
    """What one evaluation takes, without the making of its sets: drawing codes, sampling a prior, finding centroids.

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
    """The seconds that students of one network take: `before` (to build and test), each step, image and look."""

    before: float
    step: float
    image: float
    look: float

    @classmethod
    def of(
        cls, timed: Sequence[tuple[TrainingCost, float]], *, before: float = 0.0, look: float = 0.0
    ) -> Self:
        """Work out the pace from two students' work and seconds.

        Noise can make one of the two costs negative, and batches of one size do not tell them apart: then all time is
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
        """Return the seconds of a student."""
        images = work.epochs * work.images_per_epoch
        return self.before + work.steps * self.step + images * self.image + looks * self.look


def measure_evaluation(
    callback: CrossArchitecture, distils: Distils, data: EvaluationData, device: torch.device
) -> EvaluationCost:
    """Time each network for a few epochs on the distilled set and on some of the full data; the rest is counted."""
    distilled = distils.distilled_set()
    request = callback.request(data, **known_of(distils), device=device)
    request = replace(request, initial=distilled if callback.initial else None)
    planned, _ = courses(distilled, request)
    workers = count_workers(request.num_workers) if device.type == "cpu" else 1
    paces, in_workers = _paces(distilled, request, planned, workers)
    seconds = [
        paces[network].seconds(course.cost(repeat), course.looks(repeat))
        for course in planned
        for network in request.factories
        for repeat in range(course.repeats)
    ]
    shared = min(workers, len(seconds))
    memory = shared * peak_of_children_mib() if in_workers else peak_memory_mib(device)
    return EvaluationCost(len(seconds), sum(seconds) / shared, memory)


def _paces(
    distilled: DistilledSet, request: Request, planned: Sequence[Course], workers: int
) -> tuple[dict[str, Pace], bool]:
    """Pace of each network, and whether worker processes found it."""
    real, device, lesson = request.data.train_images, request.device, lesson_of(request, planned)
    full_real = replace(request, baselines=[FullReal()], initial=None, budgets=())
    in_full = {course.name: course.batch_size for course in courses(distilled, full_real)[0]}
    batch, full_batch = in_full[DISTILLED], in_full[FULL]
    some = torch.randperm(len(real))[: FULL_BATCHES * full_batch]
    seen = distilled.unpacked()
    given = {
        (DISTILLED, 0): Labelled(seen.images, seen.labels),
        (FULL, 0): Labelled(real.take(some), real.labels[some]),
    }
    probes = {
        (name, kind): Student(kind if kind == FULL else DISTILLED, name, 0, epochs, size)
        for name in request.factories
        for kind, epochs, size in (("short", SHORT, batch), ("long", LONG, batch), (FULL, SHORT, full_batch))
    }
    test, selection = request.test_split(), request.selection_split()
    outcomes = run_students(lesson, list(probes.values()), given, test, device=device, num_workers=workers)
    paces = {}
    for name in request.factories:
        short, long, full = (outcomes[probes[name, kind]].seconds for kind in ("short", "long", FULL))
        more = max(0.0, long - short)
        before = max(0.0, short - more * SHORT / (LONG - SHORT))
        timed = [
            (TrainingCost.of(LONG - SHORT, len(seen.images), batch), more),
            (TrainingCost.of(SHORT, len(some), full_batch), max(0.0, full - before)),
        ]
        look = 0.0 if selection is None else _look_seconds(lesson, name, [test, selection], device)
        paces[name] = Pace.of(timed, before=before, look=look)
    return paces, workers > 1 and len(probes) > 1


def _look_seconds(lesson: Lesson, name: str, tested: Sequence[Labelled], device: torch.device) -> float:
    """Time a test of a network on all splits, with as many threads as students have."""
    network = fresh_network(lesson.factories[name], lesson.spec, lesson.seed, name, 0).to(device)
    there = [Labelled(*(part.to(device) for part in split)) for split in tested]
    with one_thread(device):
        lesson.accuracy(network, there[0])  # the first pass also chooses kernels
        started = time.perf_counter()
        for split in there:
            lesson.accuracy(network, split)
        return time.perf_counter() - started
