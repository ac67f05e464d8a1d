"""Training many students: over ranks, and in worker processes on a CPU or one after another on an accelerator."""

import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import cloudpickle
import numpy as np
import numpy.typing as npt
import torch
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from torch import Tensor, distributed

from ldd.disk.shared import MappedPart
from ldd.errors import UserError
from ldd.images import Labelled
from ldd.runtime.devices import available_cores, resident
from ldd.runtime.processes import end_with_parent
from ldd.runtime.ranks import dealt, this_rank
from ldd.students.side_by_side import grouped, run_side_by_side
from ldd.students.training import Lesson, Outcome, Student
from ldd.students.training_set import Draws, TrainingSet

Array = npt.NDArray[Any]
Sent = Array | MappedPart
"""A tensor on its way to a worker process."""

Sets = Mapping[tuple[str, int], Labelled | TrainingSet]
"""(set, repeat) -> what its students learn from, on the CPU."""

NumWorkers = int | Literal["auto"]
"""Worker processes on a CPU: 0 or 1 trains in this process; "auto": one per core, shared by the ranks of a machine."""

Done = Callable[[Student, Outcome], None]
"""Called in the parent process when a student has been tested."""

Results = Generator[tuple[Student, Outcome], None, None]

Splits = tuple[Labelled, Labelled | None]
"""The test split, and the selection split where a protocol looks at it."""


def run_students(
    lesson: Lesson,
    students: Sequence[Student],
    sets: Sets,
    test: Labelled,
    *,
    device: torch.device,
    num_workers: NumWorkers = "auto",
    done: Done | None = None,
    selection: Labelled | None = None,
    side_by_side: int | None = None,
) -> dict[Student, Outcome]:
    """Train and test all students and give every rank all outcomes.

    On a CPU every student uses one thread, so its accuracy is the same bit for bit with any number of workers. An
    accelerator trains in this process. `done` is called with each student of this rank. `side_by_side` students are
    trained at once, their weights stacked; None takes as many as suit an accelerator, and one on a CPU.
    """
    rank, world_size = this_rank()
    # The longest first, so that no worker is left with one at the end.
    order = sorted(
        students, key=lambda student: -student.epochs * len(sets[student.set, student.repeat].labels)
    )
    mine = [order[place] for place in dealt(len(order), rank, world_size)]
    # Draws are made where their prior is: in this process.
    drawn = any(isinstance(part, Draws) for student in mine for part in sets[student.set, student.repeat])
    workers = min(count_workers(num_workers), len(mine)) if device.type == "cpu" and not drawn else 1
    outcomes: dict[Student, Outcome] = {}
    results = (
        _in_workers(lesson, mine, sets, (test, selection), workers)
        if workers > 1
        else _here(lesson, mine, sets, (test, selection), device, side_by_side)
    )
    with closing(results):
        for student, outcome in results:
            outcomes[student] = outcome
            if done:
                done(student, outcome)
    if world_size > 1:
        gathered: list[dict[Student, Outcome]] = [{} for _ in range(world_size)]
        distributed.all_gather_object(gathered, outcomes)
        outcomes = {student: outcome for part in gathered for student, outcome in part.items()}
    return {student: outcomes[student] for student in students}


def count_workers(num_workers: NumWorkers) -> int:
    """Return the number of worker processes that `num_workers` means on this machine."""
    if num_workers == "auto":
        return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if num_workers < 0:
        raise UserError(f"num_workers ({num_workers}) must be 'auto', 0 (in this process) or more")
    return max(1, num_workers)


def _here(
    lesson: Lesson,
    students: Sequence[Student],
    sets: Sets,
    splits: Splits,
    device: torch.device,
    side_by_side: int | None,
) -> Results:
    there = [
        Labelled(resident(split.images, device), split.labels.to(device))
        for split in splits
        if split is not None
    ]
    test, *rest = there
    if lesson.teacher is not None:
        lesson = replace(lesson, teacher=lesson.teacher.to(device))
    most = 1 if side_by_side is None and device.type == "cpu" else side_by_side
    learned = [TrainingSet(*sets[student.set, student.repeat]) for student in students]
    groups = [[place] for place in range(len(students))]
    if most != 1:
        groups = list(grouped(lesson, students, learned, most))
    for group in groups:
        some, trainings = [students[place] for place in group], [learned[place].to(device) for place in group]
        if len(some) > 1:
            try:
                yield from zip(some, run_side_by_side(lesson, some, trainings, test), strict=True)
                continue
            except torch.OutOfMemoryError:  # which one after another need less of
                torch.cuda.empty_cache()
        for student, training in zip(some, trainings, strict=True):
            yield student, lesson.run(student, training, test, *rest)


def _in_workers(
    lesson: Lesson, students: Sequence[Student], sets: Sets, splits: Splits, workers: int
) -> Results:
    # joblib's processes rather than multiprocessing's: they take lambdas and classes of the main script, do not run
    # that script again, map a large array instead of copying it, and notice when one of them is killed.
    lesson = replace(lesson, factories={name: _bare(made) for name, made in lesson.factories.items()})
    _check_sendable(lesson)
    sent: dict[int, Sent] = {}

    def shared(data: Labelled | TrainingSet) -> tuple[Sent | None, ...]:
        # One array object per tensor: joblib writes each object to its temporary file once.
        for part in data:
            if isinstance(part, Tensor) and id(part) not in sent:
                sent[id(part)] = MappedPart.of(part) or part.numpy()
        return tuple(None if part is None else sent[id(part)] for part in data)

    numerics, tested = _Numerics.of_this_process(), [shared(split) for split in splits if split is not None]
    tasks = (
        delayed(_work)(numerics, lesson, student, shared(sets[student.set, student.repeat]), tested)
        for student in students
    )
    try:
        with closing(
            Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")(tasks)
        ) as results:
            yield from results
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process that trained a student was killed, most likely because memory ran out; lower "
            f"num_workers ({workers})"
        ) from error
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _bare(value: Any) -> Any:  # noqa: ANN401 - a factory, or an argument of one
    """Return a factory without the parser in it, which the command line adds and which holds the whole run."""
    if not isinstance(value, partial):
        return value
    arguments = {name: _bare(one) for name, one in value.keywords.items()}
    instantiator, *classes = value.args or (None,)
    if type(instantiator).__module__.startswith("jsonargparse.") and len(classes) == 1:
        return partial(classes[0], **arguments)
    return partial(value.func, *value.args, **arguments)


def _check_sendable(lesson: Lesson) -> None:
    for name, factory in lesson.factories.items():
        try:
            cloudpickle.dumps(factory)
        except Exception as error:  # whatever an object's own pickling raises
            raise UserError(
                f"networks: {name} cannot be sent to worker processes ({error}); let its factory hold no locks, files "
                "or generators, or set num_workers to 1"
            ) from error


@dataclass(frozen=True)
class _Numerics:
    """Settings of the parent process that change a result's last bits."""

    matmul_precision: str
    deterministic: bool
    dtype: torch.dtype

    @classmethod
    def of_this_process(cls) -> Self:
        return cls(
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
        )

    def apply(self) -> None:
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.use_deterministic_algorithms(self.deterministic)
        torch.set_default_dtype(self.dtype)


def _work(
    numerics: _Numerics,
    lesson: Lesson,
    student: Student,
    training: tuple[Sent | None, ...],
    splits: Sequence[tuple[Sent, Sent]],
) -> tuple[Student, Outcome]:
    """Train and test one student in a worker process."""
    end_with_parent()
    numerics.apply()
    learned = TrainingSet(*(None if part is None else _tensor(part) for part in training))  # type: ignore[arg-type]
    return student, lesson.run(student, learned, *(Labelled(*map(_tensor, split)) for split in splits))


def _tensor(array: Sent) -> Tensor:
    if isinstance(array, MappedPart):
        return array.open()
    with warnings.catch_warnings():
        # What joblib maps is read-only, and nobody writes to it; a copy might not fit into memory.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
