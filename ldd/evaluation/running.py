"""Training and testing the students of an evaluation, those left out that an earlier call has tested."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ldd.errors import UserError
from ldd.evaluation.baselines.base import Baseline
from ldd.evaluation.records import Records
from ldd.evaluation.results.rows import DISTILLED
from ldd.images import Labelled
from ldd.labels.base import Labeller
from ldd.labels.crops import CropTeacher, crop_teacher
from ldd.students.protocol import LEAST_EPOCHS, Protocol
from ldd.students.training import Lesson, Outcome, Student
from ldd.students.training_set import TrainingSet
from ldd.students.workers import Done, NumWorkers, run_students

Device = Literal["auto"] | torch.device


def students_of(
    sets: Sequence[Baseline],
    networks: Sequence[str],
    repeats: int,
    protocol: Protocol,
    counts: Mapping[str, Sequence[int]],
    given: Mapping[tuple[str, int], TrainingSet],
) -> list[Student]:
    """Each network's repeats on each set.

    Args:
        sets: the sets.
        networks: their names.
        repeats: of each, unless a set says otherwise.
        protocol: gives epochs and batches.
        counts: set -> images per class, which decide on its epochs; `distilled` for those that are not named.
        given: (set, repeat) -> what is learned from.
    """
    return [
        _student(
            part, network, repeat, protocol, protocol.budget(counts.get(part.name, counts[DISTILLED])), given
        )
        for part in sets
        for network in networks
        for repeat in range(part.repeats or repeats)
    ]


def run_missing(
    lesson: Lesson,
    students: Sequence[Student],
    given: Mapping[tuple[str, int], TrainingSet],
    test: Labelled,
    selection: Labelled | None,
    *,
    records: Path | str | None,
    device: torch.device,
    num_workers: NumWorkers,
    progress: bool,
) -> dict[Student, Outcome]:
    """All students' outcomes: those on record, and the others trained now and put on record one by one.

    Args:
        lesson: what they share.
        students: the same list on every rank.
        given: (set, repeat) -> what is learned from.
        test: the test split.
        selection: the selection split, for protocols that look during training.
        records: folder of what has been tested, or None.
        device: where students are trained.
        num_workers: worker processes on a CPU.
        progress: show a bar.
    """
    kept = None if records is None else Records(records, lesson, given, test, device, selection)
    outcomes = {} if kept is None else kept.find(students)
    missing = [student for student in students if student not in outcomes]
    if kept is not None:
        missing = kept.distinct(missing)
    with _progress_bar(len(missing) + len(outcomes), len(outcomes), shown=progress) as shown:

        def done(student: Student, outcome: Outcome) -> None:
            if kept is not None:
                kept.add(student, outcome)
            shown(student, outcome)

        outcomes |= run_students(
            lesson,
            missing,
            given,
            test,
            device=device,
            num_workers=num_workers,
            done=done,
            selection=selection,
        )
    if kept is not None:
        kept.merge()
        outcomes |= kept.find([student for student in students if student not in outcomes])
    return {student: outcomes[student] for student in students}


def _student(
    part: Baseline,
    network: str,
    repeat: int,
    protocol: Protocol,
    budget: tuple[int, int],
    given: Mapping[tuple[str, int], TrainingSet],
) -> Student:
    """How long a network learns from a set, and in which batches."""
    epochs, batch_size = budget
    if part.equal_steps:
        # The same batches, so that steps are alike in size as well as in number.
        wanted = given[DISTILLED, 0].cost(protocol, epochs, batch_size).steps
        each = given[part.name, repeat].cost(protocol, 1, batch_size).steps
        epochs = max(LEAST_EPOCHS, round(wanted / each))
    elif part.full_data:
        epochs, batch_size = protocol.full_data_epochs, protocol.full_data_batch_size or protocol.batch_size
    own_batch = None if batch_size == protocol.batch_size else batch_size
    return Student(part.name, network, repeat, epochs, own_batch, part.augmented)


def teacher_of(protocol: Protocol, labeller: Labeller | None) -> CropTeacher | None:
    """What labels every batch, where the protocol has it so.

    Raises:
        UserError: it does, and there is no labeller.
    """
    if protocol.labels == "own":
        return None
    if labeller is None:
        raise UserError(
            f"protocol {protocol.id} has the labels of a teacher for every crop, and there is none; give --labels (in "
            "a run model.labels), for instance configs/labels/expert.yaml, or a protocol with labels: own. Labels of "
            'crops in store serve their own set alone: without a teacher leave all others out (--baselines "")'
        )
    return crop_teacher(labeller, protocol)


@contextmanager
def _progress_bar(total: int, done_before: int, *, shown: bool) -> Iterator[Done]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, disable=not shown) as bar:
        task = bar.add_task("evaluating", total=total, completed=done_before)

        def done(student: Student, outcome: Outcome) -> None:
            latest = f"evaluating: {student.network} on {student.set} {100 * outcome.accuracy:.1f} %"
            bar.update(task, advance=1, description=latest)

        yield done
