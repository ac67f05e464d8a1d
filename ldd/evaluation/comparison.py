"""Evaluation of a distilled set: the same students on it and on the sets beside it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from ldd.classes import Labelled
from ldd.distilled import DistilledSet, first_rows
from ldd.errors import UserError
from ldd.evaluation.baselines import (
    Baseline,
    EvaluationData,
    FullReal,
    RandomReal,
    Setting,
    StoredSet,
    default_baselines,
)
from ldd.evaluation.belonging import identity
from ldd.evaluation.labels import Labeller
from ldd.evaluation.protocols import LEAST_EPOCHS, Protocol, canonical, dotted_name
from ldd.evaluation.records import Records
from ldd.evaluation.report import DISTILLED, DISTILLED_HARD, Report, Row, budget_name
from ldd.evaluation.students import Lesson, Outcome, Student, fresh_network
from ldd.evaluation.training_set import Sampler, TrainingSet, draw_samples
from ldd.evaluation.variants import Plain, SoftLabels
from ldd.evaluation.workers import Done, NumWorkers, count_workers, run_students
from ldd.networks import NetworkFactory
from ldd.priors import Prior
from ldd.seeding import derive_seed
from ldd.storage import Amount, Storage

INITIAL = "initial"
"""Name of the codes as they were before the first step."""

Device = Literal["auto"] | torch.device


def evaluate(
    distilled: DistilledSet,
    networks: Mapping[str, NetworkFactory] | None,
    data: EvaluationData,
    protocol: str | Protocol = "ld3m",
    repeats: int = 5,
    seed: int = 0,
    *,
    baselines: Sequence[Baseline] | None = None,
    initial: DistilledSet | None = None,
    budgets: Sequence[int] = (),
    sampler: Sampler | None = None,
    labeller: Labeller | None = None,
    prior: Prior | None = None,
    step: int | None = None,
    records: Path | str | None = None,
    num_workers: NumWorkers = "auto",
    device: Device = "auto",
    progress: bool = True,
) -> Report:
    """Train every network `repeats` times on the set as saved and on each baseline, and test it.

    Students see the images as uint8 gives them, and learn from soft labels where a set has them; such a set is also
    trained on with its hard labels, as `distilled_hard`. Where codes have a spread, draws of them stand beside or in
    the place of the images, as the protocol says. All sets meet the same networks: initial weights, shuffling,
    augmentation and dropout follow from (seed, network, repeat). The same call gives the same accuracies, on a CPU
    with any number of workers. Under DDP every rank calls this; students are dealt over ranks, and each rank gets
    the whole report.

    Args:
        distilled: the set.
        networks: networks by name; None takes the protocol's.
        data: the real images (`DistillationData`).
        protocol: a shipped protocol's name, the path of a protocol file, or a protocol.
        repeats: networks of each kind for each set, unless a baseline says otherwise.
        seed: of everything random.
        baselines: sets to compare with; None takes `default_baselines`.
        initial: the codes before their first step, compared as `initial`; without draws.
        budgets: nested budgets: the first so many images of each class are a set too, `distilled_ipc<number>`, beside
            as many random real ones where `RandomReal` is among the baselines.
        sampler: draws of the set's codes, which a set whose codes have a spread needs.
        labeller: what labelled the set, for real images with labels of the same kind, and the teacher of protocols
            whose labels are a teacher's.
        prior: what the set was made through, for plain samples of it.
        step: training step of the codes, for the rows; None takes the manifest's, or 0.
        records: folder in which every tested student is kept at once, and found by later calls: an evaluation that
            was killed goes on where it was. None keeps none.
        num_workers: worker processes on a CPU.
        device: where to train; "auto" takes the accelerator if there is one.
        progress: show a progress bar.

    Raises:
        UserError: an unknown protocol, settings out of range, a set whose classes or image size are not the data's,
            a baseline that the data cannot give, codes with a spread without a sampler, a budget beyond the set.
    """
    protocol = Protocol.load(protocol) if isinstance(protocol, str) else protocol
    if repeats < 1:
        raise UserError(f"repeats ({repeats}) must be at least 1")
    count_workers(num_workers)
    factories = dict(networks) if networks is not None else protocol.factories()
    if not factories:
        raise UserError("networks is empty; name at least one, or leave it null for the protocol's")
    data.setup()
    for part in filter(None, (distilled, initial)):
        check_set(part, data)
    samples = _samples(distilled, protocol, sampler, seed)
    sets = _own_sets(distilled, initial, samples, protocol)
    sets += default_baselines(distilled, labeller) if baselines is None else baselines
    sets += needed_by_scores(protocol, distilled, sets)
    sets += nested_sets(budgets, distilled, sets, samples)
    _check_names(sets)

    storage = distilled.storage.total().bytes
    setting = Setting(data, distilled.counts, seed, storage, labeller, prior)
    given = {
        (part.name, repeat): TrainingSet(*part.set_for(repeat, setting))
        for part in sets
        for repeat in range(part.repeats or repeats)
    }
    nested = {budget_name(name, n): [n] for n in budgets for name in (DISTILLED, RandomReal.name)}
    students = [
        _student(
            part, network, repeat, protocol, protocol.budget(nested.get(part.name, distilled.counts)), given
        )
        for part in sets
        for network in factories
        for repeat in range(part.repeats or repeats)
    ]
    lesson = Lesson(data.spec, protocol, factories, seed, teacher_of(protocol, labeller))
    seen = {canonical(path) for path in distilled.manifest["seen_networks"]}
    unseen = {name: _class_of(lesson, name) not in seen for name in factories}
    device = pick_device() if device == "auto" else device
    every = slice(None, None, protocol.test_every)
    test = Labelled(data.test_images.images[every], data.test_images.labels[every])
    selection = None
    if protocol.looks:
        selection = Labelled(data.selection_images.images, data.selection_images.labels)
    kept = None if records is None else Records(records, lesson, given, test, device, selection)
    outcomes = {} if kept is None else kept.find(students)
    with _progress_bar(len(students), len(outcomes), shown=progress) as shown:

        def done(student: Student, outcome: Outcome) -> None:
            if kept is not None:
                kept.add(student, outcome)
            shown(student, outcome)

        missing = [student for student in students if student not in outcomes]
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
    step = int(distilled.manifest.get("step", 0)) if step is None else step
    rows = tuple(
        _row(student, outcomes[student], step, seed, protocol, unseen=unseen[student.network])
        for student in students
    )
    storages = {part.name: part.storage(given[part.name, 0], setting) for part in sets}
    facts = {
        "seed": seed,
        "repeats": repeats,
        "images_per_set": {name: len(given[name, 0].labels) for name, _ in given},
        "test_images": len(test.labels),
        "sets": {str(step): identity(distilled)},
        "test_split_fingerprint": data.spec.fingerprint,
        "test_split_of_the_set": distilled.manifest["test_split_fingerprint"],
        "device": str(device),
        "labels": distilled.manifest.get("labels"),
        "teacher": dict(labeller.facts) if lesson.teacher is not None and labeller is not None else None,
        "cost": _costs(students, given, storages, protocol, labeller),
    }
    facts = {key: value for key, value in facts.items() if key != "teacher" or value is not None}
    return Report(rows, {protocol.id: protocol.hash}, facts)


def _samples(
    distilled: DistilledSet, protocol: Protocol, sampler: Sampler | None, seed: int
) -> torch.Tensor | None:
    """The draws that the protocol asks of codes with a spread."""
    if not (distilled.is_distribution and protocol.samples):
        return None
    if sampler is None:
        raise UserError(
            f"the set's codes have a spread, of which protocol {protocol.id} needs draws (samples: "
            f"{protocol.samples}), but nothing draws them; give a sampler, or a protocol with samples: 0"
        )
    n, size = len(distilled.images), distilled.image_size
    epochs, _ = protocol.budget(distilled.counts)
    return draw_samples(sampler, protocol, n, size, derive_seed(seed, "samples"), epochs)


def _row(
    student: Student, outcome: Outcome, step: int, seed: int, protocol: Protocol, *, unseen: bool
) -> Row:
    return Row(
        step=step,
        set=student.set,
        network=student.network,
        unseen=unseen,
        repeat=student.repeat,
        seed=seed,
        accuracy=outcome.accuracy,
        seconds=outcome.seconds,
        protocol=protocol.id,
        selected=outcome.selected,
        best_on_test=outcome.best_on_test,
    )


def _costs(
    students: Sequence[Student],
    given: Mapping[tuple[str, int], TrainingSet],
    storages: Mapping[str, Storage],
    protocol: Protocol,
    labeller: Labeller | None,
) -> dict[str, dict[str, Any]]:
    """Set -> what it stores, and what training one student on it takes."""
    costs = {}
    for student in students:
        training, storage = given[student.set, student.repeat], storages[student.set]
        if protocol.labels == "teacher" and labeller is not None:
            storage = with_crop_labels(storage, student.epochs * len(training.labels), labeller)
        work = training.cost(protocol, student.epochs, student.batch_size or protocol.batch_size)
        costs[student.set] = {"storage": storage.to_dict(), "training": work.to_dict()}
    return costs


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


def teacher_of(protocol: Protocol, labeller: Labeller | None) -> nn.Module | None:
    """What labels every batch, where the protocol has it so.

    Raises:
        UserError: it does, and there is no labeller.
    """
    if protocol.labels == "own":
        return None
    if labeller is None:
        raise UserError(
            f"protocol {protocol.id} has the labels of a teacher for every crop, and there is none; give --labels (in "
            "a run model.labels), for instance configs/labels/expert.yaml, or a protocol with labels: own"
        )
    return labeller.network


def with_crop_labels(storage: Storage, crops: int, labeller: Labeller) -> Storage:
    """What a set takes with a teacher's label for each of so many crops, in the place of one for each image.

    They are charged as if stored in the labeller's form, as SRe2L's family stores them: who has the teacher can make
    them again, but then needs the teacher. Hard labels stay charged.
    """
    images = storage.images.floats // (3 * storage.image_size**2)
    labels = Amount(
        crops * labeller.floats_per_label,
        images * torch.int64.itemsize + crops * labeller.bytes_per_label,
    )
    return replace(storage, labels=labels)


def needed_by_scores(protocol: Protocol, distilled: DistilledSet, sets: Sequence[Baseline]) -> list[Baseline]:
    """The sets that label- and augmentation-robust scores compare with, as far as they are not there."""
    if protocol.scores == "none":
        return []
    there = {part.name: part for part in sets}
    random: Baseline = RandomReal() if distilled.soft_labels is None else SoftLabels(RandomReal())
    wanted = [random, FullReal(), Plain(there[DISTILLED]), Plain(random)]
    return [part for part in wanted if part.name not in there]


def _own_sets(
    distilled: DistilledSet,
    initial: DistilledSet | None,
    samples: torch.Tensor | None,
    protocol: Protocol,
) -> list[Baseline]:
    """The set with the labels it has, with hard ones where those are soft, and as it was at first."""
    sets: list[Baseline] = [StoredSet(DISTILLED, distilled, samples=samples)]
    if distilled.soft_labels is not None and protocol.labels == "own":
        sets.append(StoredSet(DISTILLED_HARD, distilled, soft=False, samples=samples))
    if initial is not None:
        sets.append(StoredSet(INITIAL, initial))
    return sets


def nested_sets(
    budgets: Sequence[int],
    distilled: DistilledSet,
    beside: Sequence[Baseline],
    samples: torch.Tensor | None = None,
) -> list[Baseline]:
    """The first so many images of each class, and as many random real ones where those are among the sets beside.

    Args:
        budgets: images per class; that of the whole set is no set of its own.
        distilled: the set.
        beside: the other sets of the evaluation.
        samples: (P, N, 3, H, W) uint8, draws of all its codes, or None.

    Raises:
        UserError: a budget below 1 or beyond the set.
    """
    smaller = [budget for budget in sorted(set(budgets)) if distilled.images_per_class != budget]
    sets: list[Baseline] = []
    for budget in smaller:
        own = None if samples is None else samples[:, first_rows(distilled.labels, budget)]
        sets.append(StoredSet(budget_name(DISTILLED, budget), distilled.first(budget), samples=own))
    if any(isinstance(part, RandomReal) for part in beside):
        sets += [RandomReal(budget) for budget in smaller]
    return sets


def check_set(distilled: DistilledSet, data: EvaluationData) -> None:
    """Refuse a set that was not made for these classes in this order, or for another image size.

    Raises:
        UserError: names the first class that differs, or the two sizes.
    """
    theirs, ours = [info.wnid for info in distilled.classes], [info.wnid for info in data.spec.classes]
    for label, (one, other) in enumerate(itertools.zip_longest(theirs, ours)):
        if one != other:
            raise UserError(
                f"class {label} of the set is {one} but {other} in the data; the set needs the data (and "
                "data.subset) it was distilled from, with the classes in the same order"
            )
    size = distilled.images.shape[-1]
    if size != data.spec.image_size:
        raise UserError(
            f"data.image_size ({data.spec.image_size}) differs from the set's images ({size} px); "
            f"set data.image_size to {size}"
        )


def pick_device() -> torch.device:
    """The accelerator, or the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def _check_names(sets: Sequence[Baseline]) -> None:
    names = [part.name for part in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"baselines: {', '.join(twice)} is there twice; give every set a name of its own")


def _class_of(lesson: Lesson, name: str) -> str:
    return dotted_name(type(fresh_network(lesson.factories[name], lesson.spec, lesson.seed, name, 0)))


@contextmanager
def _progress_bar(total: int, done_before: int, *, shown: bool) -> Iterator[Done]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, disable=not shown) as bar:
        task = bar.add_task("evaluating", total=total, completed=done_before)

        def done(student: Student, outcome: Outcome) -> None:
            latest = f"evaluating: {student.network} on {student.set} {100 * outcome.accuracy:.1f} %"
            bar.update(task, advance=1, description=latest)

        yield done
