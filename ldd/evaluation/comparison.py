"""Evaluation of a distilled set: the same students learn from it and from its baselines."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from ldd.artefact.identity import identity
from ldd.artefact.set import DistilledSet
from ldd.data.real import EvaluationData
from ldd.evaluation.baselines.base import Baseline
from ldd.evaluation.baselines.stored import StoredSet
from ldd.evaluation.courses import Course, courses, lesson_of
from ldd.evaluation.records import run_missing
from ldd.evaluation.request import Device, Request, Tested
from ldd.evaluation.results.report import DATA, LEFT_OUT, Report
from ldd.evaluation.results.rows import Row
from ldd.evaluation.results.scores import LABELLER, SPLIT, TEACHER
from ldd.labels.base import Labeller
from ldd.labels.crops import CropLabels, teacher_facts
from ldd.networks import Network, NetworkFactory
from ldd.networks.base import TORCHVISION, name_of
from ldd.priors import Prior
from ldd.runtime.classes import canonical, loaded_class
from ldd.runtime.devices import pick_device
from ldd.runtime.precision import reduced_matmul
from ldd.runtime.ranks import rank_zero_warn
from ldd.students.protocol import Protocol
from ldd.students.training import Lesson, Outcome, Student, fresh_network
from ldd.students.training_set import Sampler
from ldd.students.workers import NumWorkers


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
    split: Tested = "test",
) -> Report:
    """Train every network `repeats` times on the set as saved and on each baseline, and test it.

    `Request` describes the arguments, `compare` what is trained.

    Args:
        distilled: the set.
        networks: networks by name; None takes the protocol's.
        data: the real images (`DistillationData`).
        protocol: a shipped protocol's name, the path of a protocol file, or a protocol.
        repeats: networks of each kind for each set, unless a baseline says otherwise.
        seed: of everything random.
        baselines: sets to compare with; None takes all that can be had at equal images, bytes and training steps
            (`ldd.evaluation.equal_baselines`), and the facts of the report say why others were `left_out`.
        initial: the codes before their first step, compared as `initial`; without draws.
        budgets: numbers of images: the first that many of each class are a set too, `distilled_ipc<number>`, and as
            many random real ones where `RandomReal` is among the baselines.
        sampler: draws all codes of the set once; needed where its codes have a spread.
        labeller: labelled the set; it labels real images likewise, and is the teacher of protocols that have one.
        crops: stored labels of the set's own crops, with which it needs no teacher.
        prior: the set was made through it; plain samples of it are a baseline.
        step: training step of the codes, for the rows; None takes the manifest's, or 0.
        records: folder in which every tested student is kept at once and found by later calls, so that an evaluation
            that was killed continues; None keeps none.
        num_workers: worker processes on a CPU.
        device: where to train; "auto" takes the accelerator if there is one.
        progress: show a progress bar.
        split: what students are tested on: `test`, as the protocol takes it, or all of `selection`, to choose settings.

    Raises:
        UserError: an unknown protocol, settings out of range, or what `compare` refuses.
    """
    protocol = Protocol.load(protocol) if isinstance(protocol, str) else protocol
    device = pick_device() if device == "auto" else device
    request = Request(data, protocol, networks, repeats, seed, baselines, initial, budgets, sampler, labeller)
    rest: dict[str, Any] = {"crops": crops, "prior": prior, "records": records, "split": split}
    return compare(
        distilled, replace(request, **rest, num_workers=num_workers, device=device, progress=progress), step
    )


def compare(
    distilled: DistilledSet, request: Request, step: int | None = None, earlier: Report | None = None
) -> Report:
    """Train and test all students of an evaluation, and return its report; rows have the codes' training `step`.

    Students see the images as uint8 stores them, and learn from soft labels where a set has them; students also learn
    from the hard labels of such a set, as `distilled_hard`. Where codes have a spread, draws of them join or replace
    the images, as the protocol says. All sets meet the same networks: initial weights, shuffling, augmentation and
    dropout follow from (seed, network, repeat). The same call gives the same accuracies, on a CPU with any number of
    workers. Under DDP every rank calls this; students are dealt over ranks, and each rank gets the whole report.

    Raises:
        UserError: what `courses` refuses, or other soft labels than those of `earlier`, the report that is added to.
    """
    request.data.setup()
    found, left_out = courses(distilled, request)
    _warn(request.protocol, found)
    labelled = _label_facts(request, found)
    if earlier is not None:
        earlier.check_labels(request.protocol.id, labelled)
    lesson = lesson_of(request, found)
    sets = {(course.name, n): course.training(n) for course in found for n in range(course.repeats)}
    students = [student for course in found for student in course.students(request.factories)]
    outcomes = run_missing(lesson, students, sets, request)
    step = (distilled.manifest.step or 0) if step is None else step
    facts = {**_facts(distilled, request, found, step), **labelled}
    if left_out is not None:
        facts[LEFT_OUT] = left_out
    rows = tuple(_rows(lesson, outcomes, set(map(canonical, distilled.manifest.seen_networks)), step))
    return Report(rows, {request.protocol.id: request.protocol.hash}, facts)


def _warn(protocol: Protocol, found: Sequence[Course]) -> None:
    """Tell what a protocol does to these sets that nobody means it to do."""
    for path in protocol.network_lr:
        if loaded_class(path, Network) is None:
            rank_zero_warn(
                f"protocol {protocol.id}: network_lr ({path}) names no network there is; its rate has no use"
            )
    for course in found:
        images, last = course.cost(0).images_per_epoch, course.last_batch(0)
        if images > course.batch_size > 8 * last:
            rank_zero_warn(
                f"{course.name}: {images} images in batches of {course.batch_size} leave a last one of {last}, whose "
                "step is as long as the others', and students learn less than those of a few images more or fewer"
            )


def report_in(
    folder: Path | str, protocol: Protocol, data: EvaluationData | None = None, split: Tested = "test"
) -> Report | None:
    """Read the report in a folder, to which an evaluation by this protocol will add; None where there is none."""
    earlier = Report.read(folder)
    if earlier is not None:
        earlier.check_protocol(protocol.id, protocol.hash)
        earlier.check_split(split)
        if data is not None:
            earlier.check_images(data.spec.fingerprint, data.fingerprints)
    return earlier


def _facts(distilled: DistilledSet, request: Request, found: Sequence[Course], step: int) -> dict[str, Any]:
    """Return what the report says of the evaluation besides its rows."""
    return {
        "seed": request.seed,
        "repeats": request.repeats,
        "images_per_set": {course.name: len(course.training(0).labels) for course in found},
        "test_images": len(request.test_split().labels),
        **({} if request.split == "test" else {SPLIT: request.split}),
        "sets": {str(step): identity(distilled)},
        "test_split_fingerprint": request.data.spec.fingerprint,
        DATA: dict(request.data.fingerprints),
        "test_split_of_the_set": distilled.manifest.test_split_fingerprint,
        "device": str(request.device),
        **({} if (products := reduced_matmul()) is None else {"matmul_precision": products}),
        "labels": distilled.manifest.labels,
        "cost": {
            course.name: {
                "storage": course.storage().to_dict(),
                "training": course.cost(course.repeats - 1).to_dict(),
                "units": asdict(course.units()),
            }
            for course in found
        },
    }


def _label_facts(request: Request, found: Sequence[Course]) -> dict[str, Any]:
    """Return whose labels students meet: a teacher's of every crop, or what gave compared sets their soft labels."""
    crops, labeller = request.crops, request.labeller
    if crops is not None:
        return {TEACHER: {**crops.teacher, "labelling": dict(crops.cost)}}
    if labeller is None:
        return {}
    if any(course.needs_teacher for course in found):
        return {TEACHER: teacher_facts(labeller, request.protocol)}
    soft = any(course.size(0).soft for course in found if not isinstance(course.part, StoredSet))
    return {LABELLER: dict(labeller.facts)} if soft else {}


def _is_seen(network: nn.Module, seen: Set[str]) -> bool:
    """Return whether a network took part, or one of torchvision's that goes by its class's name, such as resnet18."""
    theirs = {
        name.removeprefix(TORCHVISION).removesuffix("_bn") for name in seen if name.startswith(TORCHVISION)
    }
    return name_of(network) in seen or type(network).__name__.lower() in theirs


def _rows(lesson: Lesson, outcomes: Mapping[Student, Outcome], seen: set[str], step: int) -> Iterator[Row]:
    """Yield a row for each student; `seen` are the dotted names of the networks that took part in making the set."""
    networks = {
        name: fresh_network(factory, lesson.spec, lesson.seed, name, 0)
        for name, factory in lesson.factories.items()
    }
    unseen = {name: not _is_seen(network, seen) for name, network in networks.items()}
    for student, outcome in outcomes.items():
        yield Row(
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
