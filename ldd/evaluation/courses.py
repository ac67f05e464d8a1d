"""The sets of an evaluation as students meet them: which sets there are, how long students learn them, and the cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ldd.artefact.identity import refuse_other_data
from ldd.artefact.set import DistilledSet, first_rows
from ldd.artefact.size import Amount, Storage, Units
from ldd.errors import UserError
from ldd.evaluation.baselines.base import Baseline, FullReal, RandomReal, Setting
from ldd.evaluation.baselines.equal import equal_baselines
from ldd.evaluation.baselines.stored import StoredSet
from ldd.evaluation.baselines.variants import Plain, SoftLabels
from ldd.evaluation.request import Request
from ldd.evaluation.results.rows import DISTILLED, DISTILLED_HARD, INITIAL, budget_name
from ldd.labels.base import Labeller
from ldd.labels.crops import CropTeacher, crop_teacher
from ldd.runtime.seeding import derive_seed
from ldd.students.protocol import LEAST_EPOCHS, Protocol
from ldd.students.training import Lesson, Student, check_networks
from ldd.students.training_set import Draws, Size, TrainingCost, TrainingSet, draws_for, draws_of


@dataclass(frozen=True, eq=False)
class Course:
    """One set as its students meet it. Nothing is made before `training` asks for it.

    Attributes:
        part: makes the set.
        setting: what it is told of the evaluation.
        protocol: how its students are trained.
        repeats: students of each network.
        passes: epochs, unless `steps_of` decides on them.
        batch_size: images per step.
        steps_of: the course whose number of steps is taken, to the nearest epoch; None takes `passes`.
    """

    part: Baseline
    setting: Setting
    protocol: Protocol
    repeats: int
    passes: int
    batch_size: int
    steps_of: "Course | None" = None

    @property
    def name(self) -> str:
        """Name of the set in results."""
        return self.part.name

    def size(self, repeat: int) -> Size:
        """Count what the students of a repeat learn from."""
        return self.part.size(repeat, self.setting)

    def training(self, repeat: int) -> TrainingSet:
        """Return what the students of a repeat learn from, made once; under DDP every rank asks in the same order."""
        return self.setting.made(self.part, repeat)

    def epochs(self, repeat: int) -> int:
        """Return the passes of the students of a repeat."""
        if self.steps_of is None:
            return self.passes
        # The same batches, so that steps are alike in size as well as in number.
        each = self.size(repeat).cost(self.protocol, 1, self.batch_size).steps
        return max(LEAST_EPOCHS, round(self.steps_of.cost(0).steps / each))

    def cost(self, repeat: int) -> TrainingCost:
        """Return the work of training one student."""
        return self.size(repeat).cost(self.protocol, self.epochs(repeat), self.batch_size)

    def last_batch(self, repeat: int) -> int:
        """Return the images of the last step of an epoch, which is as long a step as any."""
        images = self.cost(repeat).images_per_epoch
        return images % self.batch_size or min(images, self.batch_size)

    def looks(self, repeat: int) -> int:
        """Return how often a student is tested during training."""
        return len(self.protocol.look_epochs(self.epochs(repeat)))

    @property
    def needs_teacher(self) -> bool:
        """Whether its students need the labels of a teacher for every crop."""
        return self.protocol.has_teacher and not self.size(0).crops

    def storage(self) -> Storage:
        """Return what the set takes on disk; labels that a teacher gives every crop are charged as if stored."""
        own, labeller = self.part.storage(self.training(0), self.setting), self.setting.labeller
        if labeller is None or not self.needs_teacher:
            return own
        work = self.cost(self.repeats - 1)
        return _with_crop_labels(own, work.epochs * work.images_per_epoch, labeller)

    def units(self) -> Units:
        """Return the images, pixels and bytes of each class."""
        size = self.size(0)
        return self.storage().units(None if size.draws else size.images)

    def students(self, networks: Iterable[str]) -> list[Student]:
        """Return the students of all networks, each with all its repeats."""
        batch = None if self.batch_size == self.protocol.batch_size else self.batch_size
        return [
            Student(self.name, network, repeat, self.epochs(repeat), batch, self.part.augmented)
            for network in networks
            for repeat in range(self.repeats)
        ]


def courses(distilled: DistilledSet, request: Request) -> tuple[list[Course], dict[str, str] | None]:
    """Build the courses of an evaluation, the set's own first, and refuse now what would fail later.

    Also return why baselines were left out, by name; None where the request names its baselines.
    """
    protocol, setting = request.protocol, request.setting(distilled)
    request.selection_split()  # or refuses
    for made in filter(None, (distilled, request.initial)):
        refuse_other_data(made, request.data.spec)
    beside, left_out = request.baselines, None
    if beside is None:
        beside, left_out = equal_baselines(distilled, setting, protocol)
    seed = derive_seed(request.seed, "samples")
    draws = draws_for(protocol, distilled, request.sampler, seed, must_fit=request.draws_must_fit)
    if request.crops is not None:
        request.crops.check(distilled, protocol)
    sets = [*_own_sets(distilled, request, draws), *beside]
    sets += _needed_by_scores(protocol, distilled, sets)
    nested = _nested_sets(distilled, request, sets, draws)
    _check_sets([*sets, *(part for part, _ in nested)], protocol)
    found: list[Course] = []
    for part, counts in (*((part, part.per_class(setting)) for part in sets), *nested):
        found.append(_course(part, setting, request, counts, found[0] if found else None))
        found[-1].size(0)  # or refuses
    lesson_of(request, found)  # or refuses
    return found, left_out


def lesson_of(request: Request, found: Sequence[Course]) -> Lesson:
    """Return what the students of all courses share."""
    check_networks(request.factories, request.data.spec)
    teacher = None
    if any(course.needs_teacher for course in found):
        teacher = teacher_of(request.protocol, request.labeller)
    return Lesson(request.data.spec, request.protocol, request.factories, request.seed, teacher)


def teacher_of(protocol: Protocol, labeller: Labeller | None) -> CropTeacher | None:
    """Return what labels every batch, where the protocol has a teacher."""
    if not protocol.has_teacher:
        return None
    if labeller is None:
        raise UserError(
            f"protocol {protocol.id} has the labels of a teacher for every crop, and there is none; give --labels (in "
            "a run model.labels), for instance configs/labels/expert.yaml, or a protocol with labels: own. Labels of "
            'crops in store serve their own set alone: without a teacher leave all others out (--baselines "")'
        )
    return crop_teacher(labeller, protocol)


def _course(
    part: Baseline, setting: Setting, request: Request, counts: Sequence[int], own: Course | None
) -> Course:
    """Return the course of a set, whose epochs and batches follow from the budget of `counts` images per class."""
    protocol = request.protocol
    epochs, batch_size = protocol.budget(counts)
    if part.full_data and not part.equal_steps:
        epochs, batch_size = protocol.full_data_budget()
    steps_of = own if part.equal_steps else None
    return Course(part, setting, protocol, part.repeats or request.repeats, epochs, batch_size, steps_of)


def _own_sets(distilled: DistilledSet, request: Request, draws: Draws | None) -> list[Baseline]:
    """Return the set with its labels, with hard ones where those are soft, and as it was at first."""
    sets: list[Baseline] = [StoredSet(DISTILLED, distilled, samples=draws, crops=request.crops)]
    if distilled.soft_labels is not None and not request.protocol.has_teacher:
        sets.append(StoredSet(DISTILLED_HARD, distilled, soft=False, samples=draws))
    if request.initial is not None:
        sets.append(StoredSet(INITIAL, request.initial))
    return sets


def _needed_by_scores(
    protocol: Protocol, distilled: DistilledSet, sets: Sequence[Baseline]
) -> list[Baseline]:
    """Return the sets that label- and augmentation-robust scores compare with, without those that are there."""
    if protocol.scores == "none":
        return []
    there = {part.name: part for part in sets}
    random: Baseline = RandomReal() if distilled.soft_labels is None else SoftLabels(RandomReal())
    wanted = [random, FullReal(), Plain(there[DISTILLED]), Plain(random)]
    return [part for part in wanted if part.name not in there]


def _nested_sets(
    distilled: DistilledSet, request: Request, sets: Sequence[Baseline], draws: Draws | None
) -> list[tuple[Baseline, Sequence[int]]]:
    """Return the first images of each class for every budget, and equally many random ones where those are a set."""
    smaller = [budget for budget in sorted(set(request.budgets)) if distilled.images_per_class != budget]
    nested: list[tuple[Baseline, Sequence[int]]] = []
    for budget in smaller:
        first, own = distilled.first(budget), None
        if draws is not None:  # as many as its own epochs take, of its own codes
            rows = first_rows(distilled.labels, budget)
            own = draws_of(
                request.protocol, first, partial(_rows_of, draws, rows), must_fit=request.draws_must_fit
            )
        nested.append((StoredSet(budget_name(DISTILLED, budget), first, samples=own), [budget]))
    if any(isinstance(part, RandomReal) for part in sets):
        nested += [(RandomReal(budget), [budget]) for budget in smaller]
    return nested


def _rows_of(draws: Draws, rows: Tensor, number: int) -> Tensor:
    return draws[number][rows]


def _check_sets(sets: Sequence[Baseline], protocol: Protocol) -> None:
    """Raise for two sets of one name, and for budgets in bytes where labels of crops are charged."""
    names = [part.name for part in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"baselines: {', '.join(twice)} is there twice; give every set a name of its own")
    if protocol.has_teacher and (charged := [part.name for part in sets if part.by_bytes]):
        raise UserError(
            f"baselines: {', '.join(charged)} count the bytes of the set's own labels, and protocol {protocol.id} "
            "charges a label for every crop, equally many for each image of any set; leave them out"
        )


def _with_crop_labels(storage: Storage, crops: int, labeller: Labeller) -> Storage:
    """Charge hard labels and a teacher's label of each crop, which only the teacher could make again (as SRe2L)."""
    images, each = storage.images.floats // (3 * storage.image_size**2), labeller.amount_per_label
    labels = Amount(crops * each.floats, images * torch.int64.itemsize + crops * each.bytes)
    return replace(storage, labels=labels)
