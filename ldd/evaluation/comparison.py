"""Evaluation of a distilled set: the same students on it and on the sets beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldd.artefact.identity import identity, refuse_other_data
from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount, Storage
from ldd.data.real import EvaluationData
from ldd.errors import UserError
from ldd.evaluation.baselines.base import Baseline, Setting
from ldd.evaluation.baselines.equal import equal_baselines
from ldd.evaluation.results.report import LEFT_OUT, Report
from ldd.evaluation.results.rows import Row
from ldd.evaluation.running import Device, run_missing, students_of, teacher_of
from ldd.evaluation.sets import all_sets, counts_by_set
from ldd.images import Labelled
from ldd.labels.base import Labeller
from ldd.labels.crops import CropLabels
from ldd.networks import NetworkFactory
from ldd.networks.base import canonical, dotted_name
from ldd.priors import Prior
from ldd.runtime.devices import pick_device
from ldd.students.protocol import Protocol
from ldd.students.training import Lesson, Outcome, Student, fresh_network
from ldd.students.training_set import Sampler, TrainingSet
from ldd.students.workers import NumWorkers, count_workers


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
    crops: CropLabels | None = None,
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
        baselines: sets to compare with; None takes all at equal images, bytes and training steps that can be had
            (`ldd.evaluation.equal_baselines`), and the facts say why others were `left_out`.
        initial: the codes before their first step, compared as `initial`; without draws.
        budgets: nested budgets: the first so many images of each class are a set too, `distilled_ipc<number>`, beside
            as many random real ones where `RandomReal` is among the baselines.
        sampler: draws of the set's codes, which a set whose codes have a spread needs.
        labeller: what labelled the set, for real images with labels of the same kind, and the teacher of protocols
            whose labels are a teacher's.
        crops: labels of the set's own crops in store, with which it needs no teacher.
        prior: what the set was made through, for plain samples of it.
        step: training step of the codes, for the rows; None takes the manifest's, or 0.
        records: folder in which every tested student is kept at once, and found by later calls: an evaluation that
            was killed goes on where it was. None keeps none.
        num_workers: worker processes on a CPU.
        device: where to train; "auto" takes the accelerator if there is one.
        progress: show a progress bar.

    Raises:
        UserError: an unknown protocol, settings out of range, a set whose classes or image size are not the data's,
            a baseline that the data cannot give, codes with a spread without a sampler, a budget beyond the set, labels
            of other crops.
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
        refuse_other_data(part, data.spec)
    device = pick_device() if device == "auto" else device
    setting = Setting.of(distilled, data, seed, labeller=labeller, prior=prior, device=device)
    beside, left_out = (
        equal_baselines(distilled, setting, protocol) if baselines is None else (baselines, None)
    )
    sets = all_sets(distilled, initial, beside, budgets, protocol, sampler, seed, crops)
    given = {
        (part.name, repeat): setting.made(part, repeat)
        for part in sets
        for repeat in range(part.repeats or repeats)
    }
    counts = counts_by_set(distilled, budgets)
    students = students_of(sets, list(factories), repeats, protocol, counts, given)
    unlabelled = any(training.crop_labels is None for training in given.values())
    teacher = teacher_of(protocol, labeller) if unlabelled else None
    lesson = Lesson(data.spec, protocol, factories, seed, teacher)
    test, selection = splits(data, protocol)
    outcomes = run_missing(
        lesson,
        students,
        given,
        test,
        selection,
        records=records,
        device=device,
        num_workers=num_workers,
        progress=progress,
    )
    step = int(distilled.manifest.get("step", 0)) if step is None else step
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
        "cost": _costs(students, given, storages, protocol, labeller),
    }
    if crops is not None:
        facts["teacher"] = {**crops.teacher, "labelling": dict(crops.cost)}
    elif teacher is not None and labeller is not None:
        facts["teacher"] = {**labeller.facts, "temperature": protocol.temperature}
    if left_out is not None:
        facts[LEFT_OUT] = left_out
    return Report(_rows(lesson, outcomes, distilled, step), {protocol.id: protocol.hash}, facts)


def splits(data: EvaluationData, protocol: Protocol) -> tuple[Labelled, Labelled | None]:
    """The test images that the protocol takes, and the selection split where it looks at it."""
    every = slice(None, None, protocol.test_every)
    test = Labelled(data.test_images.images[every], data.test_images.labels[every])
    if not protocol.looks:
        return test, None
    return test, Labelled(data.selection_images.images, data.selection_images.labels)


def _rows(
    lesson: Lesson, outcomes: Mapping[Student, Outcome], distilled: DistilledSet, step: int
) -> tuple[Row, ...]:
    seen = {canonical(path) for path in distilled.manifest["seen_networks"]}
    unseen = {name: _class_of(lesson, name) not in seen for name in lesson.factories}
    return tuple(
        Row(
            step=step,
            set=student.set,
            network=student.network,
            unseen=unseen[student.network],
            repeat=student.repeat,
            seed=lesson.seed,
            accuracy=outcome.accuracy,
            seconds=outcome.seconds,
            protocol=lesson.protocol.id,
            selected=outcome.selected,
            best_on_test=outcome.best_on_test,
        )
        for student, outcome in outcomes.items()
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
        work = training.cost(protocol, student.epochs, student.batch_size or protocol.batch_size)
        if protocol.labels == "teacher" and labeller is not None and training.crop_labels is None:
            storage = with_crop_labels(storage, work.epochs * work.images_per_epoch, labeller)
        costs[student.set] = {"storage": storage.to_dict(), "training": work.to_dict()}
    return costs


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


def _class_of(lesson: Lesson, name: str) -> str:
    return dotted_name(type(fresh_network(lesson.factories[name], lesson.spec, lesson.seed, name, 0)))
