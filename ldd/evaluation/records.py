"""Training the students of an evaluation, and keeping the outcome of each, so that none is trained twice."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor, nn

from ldd import __version__
from ldd.artefact.identity import add_tensor
from ldd.disk.table import Store
from ldd.evaluation.request import Request
from ldd.images import Labelled
from ldd.networks.base import dotted_name
from ldd.runtime.progress import progress
from ldd.runtime.ranks import from_first_rank, this_rank
from ldd.students.training import Lesson, Outcome, Student, fresh_network
from ldd.students.workers import Sets, run_students

FOLDER = "evaluated"
"""Name of the folder of records in a run's folder."""


def run_missing(
    lesson: Lesson, students: Sequence[Student], sets: Sets, request: Request
) -> dict[Student, Outcome]:
    """Return the outcomes of all students: those on record, and the others trained now and put on record one by one.

    Args:
        lesson: what they share.
        students: the same list on every rank.
        sets: what they learn from.
        request: splits to test on, folder of the records, device and workers.

    Raises:
        UserError: what `run_students` or the folder of the records refuses.
    """
    test, selection = request.test_split(), request.selection_split()
    kept = None
    if request.records is not None:
        kept = Records(request.records, lesson, sets, test, request.device, selection)
    outcomes = {} if kept is None else kept.find(students)
    missing = [student for student in students if student not in outcomes]
    if kept is not None:
        missing = kept.distinct(missing)
    here, total = len(outcomes), len(missing) + len(outcomes)
    with progress("evaluating", total, unit="networks", done=here, shown=request.progress) as counter:

        def done(student: Student, outcome: Outcome) -> None:
            if kept is not None:
                kept.add(student, outcome)
            # The other ranks are at theirs meanwhile.
            tested = f"{student.network} on {student.set}: {100 * outcome.accuracy:.1f} %"
            counter.add(this_rank()[1], tested)

        outcomes |= run_students(
            lesson,
            missing,
            sets,
            test,
            device=request.device,
            num_workers=request.num_workers,
            done=done,
            selection=selection,
        )
    if kept is not None:
        kept.merge()
        outcomes |= kept.find([student for student in students if student not in outcomes])
    return {student: outcomes[student] for student in students}


class Records:
    """Outcomes by everything they follow from: a set's bytes, protocol, network, repeat and seed, the test images.

    The versions of this package and of torch, the kind of device and the precision of its products count too, so that a
    record is never stale, and its folder may be deleted at any time. Several processes may add to it.

    Args:
        folder: where they are kept.
        lesson: what the students share.
        sets: what they learn from.
        test: the test images.
        device: where they are trained.
        selection: the selection split, by which an epoch may be chosen.
    """

    def __init__(
        self,
        folder: Path | str,
        lesson: Lesson,
        sets: Sets,
        test: Labelled,
        device: torch.device,
        selection: Labelled | None = None,
    ) -> None:
        # Files of one folder share their columns: what protocols with looks keep lies in a folder of its own.
        looks = selection is not None
        names = [f.name for f in fields(Outcome) if looks or f.default is MISSING]
        place = Path(folder) / "looks" if looks else Path(folder)
        self._store = Store(place, {name: pa.float64() for name in names})
        self._names = names
        self._lesson = lesson
        self._held = sets, test, selection  # held, since digests are remembered by identity
        self._digests: dict[int, str] = {}
        self._networks = {name: self._network(name) for name in lesson.factories}
        self._common = {
            "versions": [__version__, str(torch.__version__)],
            "device": [device.type, torch.get_float32_matmul_precision(), str(torch.get_default_dtype())],
            "protocol": lesson.protocol.hash,
            "spec": [lesson.spec.image_size, lesson.spec.num_classes, lesson.spec.mean, lesson.spec.std],
            "seed": lesson.seed,
            "test": self._digest(test),
        }
        if selection is not None:
            self._common["selection"] = self._digest(selection)
        if lesson.teacher is not None:
            self._common["teacher"] = _digest_of(lesson.teacher, repr(lesson.teacher))

    def find(self, students: Sequence[Student]) -> dict[Student, Outcome]:
        """Return the outcomes on record; under torch.distributed what rank 0 finds, on every rank."""
        found: dict[Student, Outcome] = {}
        if this_rank()[0] == 0:
            rows = self._store.find([self._key(student) for student in students]).to_pylist()
            found = {
                student: Outcome(**row)
                for student, row in zip(students, rows, strict=True)
                if row["accuracy"] is not None
            }
        return from_first_rank(found)

    def distinct(self, students: Sequence[Student]) -> list[Student]:
        """Return the first of all students whose outcomes must be equal: two sets may hold the same images."""
        return list({self._key(student): student for student in reversed(students)}.values())[::-1]

    def add(self, student: Student, outcome: Outcome) -> None:
        """Keep one outcome.

        Raises:
            UserError: the folder cannot be written.
        """
        values = {name: pa.array([getattr(outcome, name)], pa.float64()) for name in self._names}
        self._store.add([self._key(student)], **values)

    def merge(self) -> None:
        """Let rank 0 put all outcomes into one file, once every rank has added its own.

        Raises:
            UserError: the folder cannot be written.
        """
        if this_rank()[0] == 0:
            self._store.merge()

    def _key(self, student: Student) -> str:
        facts = {
            **self._common,
            "set": self._digest(self._held[0][student.set, student.repeat]),
            "network": [student.network, self._networks[student.network]],
            "student": [student.repeat, student.epochs, student.batch_size],
        }
        if not student.augmented:
            facts["augmented"] = False
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _network(self, name: str) -> str:
        """Digest of a network's code, layers and first weights, whatever factory makes it."""
        network = fresh_network(self._lesson.factories[name], self._lesson.spec, self._lesson.seed, name, 0)
        try:
            source = inspect.getsource(inspect.getmodule(type(network)) or type(network))
        except OSError:  # typed in by hand
            source = ""
        return _digest_of(network, f"{dotted_name(type(network))}\n{network!r}\n{source}")

    def _digest(self, tensors: Iterable[Tensor | None]) -> str:
        digest = hashlib.sha256()
        for tensor in tensors:
            if tensor is not None and id(tensor) not in self._digests:
                own = hashlib.sha256()
                add_tensor(own, tensor)
                self._digests[id(tensor)] = own.hexdigest()
            digest.update(b"-" if tensor is None else self._digests[id(tensor)].encode())
        return digest.hexdigest()


def _digest_of(network: nn.Module, described: str) -> str:
    digest = hashlib.sha256(described.encode())
    for value in network.state_dict().values():
        add_tensor(digest, value)
    return digest.hexdigest()
