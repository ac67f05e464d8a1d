"""Evaluation of a distilled set against a plain DataLoader loop as published, the same networks in one run.

    python -m benchmarks.evaluator [--json] [--floor] [--repeats 5] [--epochs 100] [--networks A,B] [--device cpu]

The set: one real digit per class at 32 px (IPC 1). The loop is the shape of the released LD3M and GLaD evaluation: one
network after another, a `DataLoader` without workers over float images on the CPU, each batch sent to the device,
augmented, and its loss and accuracy read back; the test split in batches through a second loader. On a CPU it uses all
threads, as the released code does; ours trains one-thread students side by side in worker processes, their start
included. Both have the same initial weights, order, augmentation and dropout, so their accuracies are those of the same
networks: equal with `--threads 1`, and up to the order of sums otherwise. `--floor` says instead what a student takes
over its arithmetic: forward, backward and step on its batch, in CPU seconds.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.figures import parser_of, show
from ldd.augmentation.siamese import SiameseAugmentation
from ldd.data import DistillationData
from ldd.evaluation import Protocol
from ldd.images import Labelled, to_unit_range
from ldd.runtime.seeding import derive_seed, generator, seeded
from ldd.students.optimizers import student_optimizer
from ldd.students.training import Lesson, Student, fresh_network, one_thread
from ldd.students.training_set import TrainingSet
from ldd.students.workers import count_workers, run_students

_TURN = 10
"""Epochs of a student, or steps of its arithmetic, that are timed at once."""


def published_loop(
    lesson: Lesson, student: Student, training: Labelled, test: Labelled, device: torch.device
) -> float:
    """Accuracy of one student, trained and tested through loaders."""
    protocol, spec = lesson.protocol, lesson.spec
    network = fresh_network(
        lesson.factories[student.network], spec, lesson.seed, student.network, student.repeat
    ).to(device)
    seed = derive_seed(lesson.seed, "student", student.network, student.repeat)
    augmentation = SiameseAugmentation(protocol.augmentations)
    optimizer = SGD(
        network.parameters(),
        lr=protocol.peak_lr(type(network)),
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
    )
    images = TensorDataset(spec.normalise(to_unit_range(training.images)), training.labels)
    peak = protocol.peak_lr(type(network))
    for epoch in range(student.epochs):
        for group in optimizer.param_groups:
            group["lr"] = peak * protocol.lr_at(epoch, student.epochs)
        order = list(range(len(images)))
        if len(images) > protocol.batch_size:
            order = torch.randperm(len(images), generator=generator(seed, "shuffle", epoch)).tolist()
        draws = generator(seed, "augmentation", epoch)
        network.train()
        with seeded(seed, "dropout", epoch, device=device):
            for batch, labels in DataLoader(images, batch_size=protocol.batch_size, sampler=order):
                batch, labels = batch.float().to(device), labels.long().to(device)
                batch = augmentation(batch, augmentation.draw(len(batch), draws, one_strategy=True))
                output = network(batch)
                loss = F.cross_entropy(output, labels)
                loss.item(), int((output.argmax(1).cpu() == labels.cpu()).sum())  # what the loop reports
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return _test(network, test, lesson, device)


@torch.no_grad()
def _test(network: nn.Module, test: Labelled, lesson: Lesson, device: torch.device) -> float:
    images = TensorDataset(lesson.spec.normalise(to_unit_range(test.images)), test.labels)
    network.eval()
    correct = 0
    for batch, labels in DataLoader(images, batch_size=256):
        output = network(batch.float().to(device))
        correct += int((output.argmax(1).cpu() == labels).sum())
    return correct / len(images)


def lesson_on_digits(
    protocol: str, epochs: int | None = None, networks: Sequence[str] | None = None
) -> tuple[Lesson, Labelled, Labelled]:
    """What students share, one digit of each class to learn from, and the test split."""
    data = DistillationData()
    data.setup()
    found = Protocol.load(protocol)
    found = replace(found, epochs=epochs or found.epochs)
    factories = found.factories()
    if networks is not None:
        factories = {name: factories[name] for name in networks}
    one_each = torch.cat([data.train_images.of_class(label)[:1] for label in range(10)])
    test = Labelled(data.test_images.images, data.test_images.labels)
    return Lesson(data.spec, found, factories, seed=0), Labelled(one_each, torch.arange(10)), test


def students_of(lesson: Lesson, repeats: int) -> list[Student]:
    """All students of a set."""
    epochs = lesson.protocol.epochs
    return [
        Student("distilled", name, repeat, epochs) for name in lesson.factories for repeat in range(repeats)
    ]


def ours(
    lesson: Lesson,
    training: Labelled,
    test: Labelled,
    repeats: int,
    device: torch.device,
    **options: Any,  # noqa: ANN401 - of `run_students`
) -> dict[str, Any]:
    """Seconds and accuracies of `run_students`."""
    students = students_of(lesson, repeats)
    started = time.perf_counter()
    sets = {("distilled", repeat): training for repeat in range(repeats)}
    found = run_students(lesson, students, sets, test, device=device, **options)
    seconds = time.perf_counter() - started
    accuracies = [found[student].accuracy for student in students]
    return {"students": len(students), "seconds": seconds, "accuracies": accuracies}


def published(
    lesson: Lesson, training: Labelled, test: Labelled, repeats: int, device: torch.device
) -> dict[str, Any]:
    """The same of the loop as published."""
    students = students_of(lesson, repeats)
    started = time.perf_counter()
    accuracies = [published_loop(lesson, student, training, test, device) for student in students]
    seconds = time.perf_counter() - started
    return {"students": len(students), "seconds": seconds, "accuracies": accuracies}


def over_floor(lesson: Lesson, training: Labelled, name: str, device: torch.device) -> float:
    """Seconds of a student's epochs over those of the arithmetic alone: forward, backward and step on one batch.

    On one thread, in many short turns of both; the least of each counts, in CPU seconds of the process: what else runs
    on the machine makes most turns dearer, and few of them miss it.
    """
    protocol = lesson.protocol
    part = replace(lesson, protocol=replace(protocol, epochs=_TURN))
    network = fresh_network(lesson.factories[name], lesson.spec, lesson.seed, name, 0).to(device).train()
    optimizer = student_optimizer(network, protocol, network.parameters())
    images, labels = lesson.spec.as_input(training.images).to(device), training.labels.to(device)
    learned = TrainingSet(*training).to(device)

    def arithmetic() -> None:
        for _ in range(part.protocol.epochs):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()

    def student() -> None:
        part.train(Student("distilled", name, 0, part.protocol.epochs), learned)

    seconds: dict[str, list[float]] = {"student": [], "arithmetic": []}
    with one_thread(device):
        for _ in range(max(1, protocol.epochs // _TURN)):
            for which, work in (("student", student), ("arithmetic", arithmetic)):
                started = time.process_time()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[which].append(time.process_time() - started)
    return min(seconds["student"]) / min(seconds["arithmetic"])


def main() -> None:
    """Print the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=None, help="instead of the protocol's")
    parser.add_argument("--networks", default=None, help="names out of the protocol's, separated by commas")
    parser.add_argument(
        "--threads", type=int, default=None, help="of the published loop on a CPU; default: all"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--floor", action="store_true", help="only a student over its own arithmetic")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    names = arguments.networks.split(",") if arguments.networks else None
    work = (*lesson_on_digits(arguments.protocol, arguments.epochs, names), arguments.repeats, device)
    if arguments.floor:
        lesson, training, *_ = work
        floors = {
            f"{name}_over_floor": over_floor(lesson, training, name, device) for name in lesson.factories
        }
        show(floors, arguments.json)
        return
    mine, loop = ours(*work), published(*work)
    differences = [abs(a - b) for a, b in zip(mine["accuracies"], loop["accuracies"], strict=True)]
    figures = {
        "students": mine["students"],
        "epochs": work[0].protocol.epochs,
        "workers": count_workers("auto") if device.type == "cpu" else 1,
        "loop_threads": torch.get_num_threads(),
        "ours_seconds": mine["seconds"],
        "loop_seconds": loop["seconds"],
        "evaluator_speedup": loop["seconds"] / mine["seconds"],
        "largest_accuracy_difference": max(differences),
        "identical_accuracies": sum(difference == 0 for difference in differences),
    }
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
