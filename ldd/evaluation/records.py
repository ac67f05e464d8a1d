"""Training the students of an evaluation, and keeping the outcome of each, so that none is trained twice."""

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
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
from ldd.networks.settings import settings_of
from ldd.runtime.classes import dotted_name
from ldd.runtime.progress import progress
from ldd.runtime.ranks import from_first_rank, this_rank
from ldd.students.training import Lesson, Outcome, Student, fresh_network
from ldd.students.training_set import Draws
from ldd.students.workers import Sets, run_students

FOLDER = "evaluated"
"""Name of the folder of records in a run's folder."""


def run_missing(
    lesson: Lesson, students: Sequence[Student], sets: Sets, request: Request
) -> dict[Student, Outcome]:
    """Return the outcomes of all students; those that are not on record are trained now and recorded one by one."""
    test, selection = request.test_split(), request.selection_split()
    kept, outcomes, missing = None, dict[Student, Outcome](), list(students)
    if request.records is not None:
        kept = Records(request.records, lesson, sets, test, request.device, selection)
        outcomes = kept.find(students)
        missing = kept.distinct([student for student in students if student not in outcomes])
    done, total = len(outcomes), len(missing) + len(outcomes)
    with progress("evaluating", total, unit="networks", done=done, shown=request.progress) as counter:

        def keep(student: Student, outcome: Outcome) -> None:
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
            done=keep,
            selection=selection,
        )
    if kept is not None:
        kept.merge()
        outcomes |= kept.find([student for student in students if student not in outcomes])
    return {student: outcomes[student] for student in students}


class Records:
    """Outcomes on disk, by all that they follow from: the set's bytes, protocol, network, repeat, seed, test images.

    The versions of this package and of torch, the kind of device and the precision of its products count too, so that a
    record is never stale. The folder may be deleted at any time, and several processes may add to it.
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
            self._common["teacher"] = _digest_of(lesson.teacher)

    def find(self, students: Sequence[Student]) -> dict[Student, Outcome]:
        """Return the outcomes on record; under torch.distributed every rank gets what rank 0 finds."""
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
        """Return one of all students whose outcomes must be equal, the first: two sets may hold the same images."""
        return list({self._key(student): student for student in reversed(students)}.values())[::-1]

    def add(self, student: Student, outcome: Outcome) -> None:
        """Keep one outcome."""
        values = {name: pa.array([getattr(outcome, name)], pa.float64()) for name in self._names}
        self._store.add([self._key(student)], **values)

    def merge(self) -> None:
        """Let rank 0 put all outcomes into one file, once every rank has added its own."""
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
        """Digest of a network, whatever factory makes it."""
        factory, spec, seed = self._lesson.factories[name], self._lesson.spec, self._lesson.seed
        return _digest_of(fresh_network(factory, spec, seed, name, 0))

    def _digest(self, tensors: Iterable[Tensor | Draws | None]) -> str:
        digest = hashlib.sha256()
        for tensor in tensors:
            if tensor is not None and id(tensor) not in self._digests:
                own = hashlib.sha256()
                if isinstance(tensor, Draws):  # each follows from its number: the ends stand for all
                    own.update(f"{len(tensor)} draws".encode())
                for part in (tensor,) if isinstance(tensor, Tensor) else (tensor[0], tensor[len(tensor) - 1]):
                    add_tensor(own, part)
                self._digests[id(tensor)] = own.hexdigest()
            digest.update(b"-" if tensor is None else self._digests[id(tensor)].encode())
        return digest.hexdigest()


def _digest_of(network: nn.Module) -> str:
    """Digest of a network's code, layers, settings and weights."""
    described = dotted_name(type(network)), repr(network), *settings_of(network), *_sources(network)
    digest = hashlib.sha256("\n".join(described).encode())
    for value in network.state_dict().values():
        add_tensor(digest, value)
    return digest.hexdigest()


def _sources(network: nn.Module) -> Iterator[str]:
    """Yield the text of each file that a class of the network is from; torch's version is known."""
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    for name in sorted({kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] != "torch"}):
        with suppress(OSError, TypeError):  # typed in by hand, or built in
            yield inspect.getsource(sys.modules[name])
