"""Evaluation of a distilled set against a plain DataLoader loop as published, the same networks in one run.

    python -m benchmarks.evaluator [--json] [--repeats 5] [--epochs 100] [--networks ConvNet,ViT] [--device cpu]

The set: one real digit per class at 32 px (IPC 1). The loop is the shape of the released LD3M and GLaD evaluation: one
network after another, a `DataLoader` without workers over float images on the CPU, each batch sent to the device,
augmented, and its loss and accuracy read back; the test split in batches through a second loader. On a CPU it uses all
threads, as the released code does; ours trains one-thread students side by side in worker processes, their start
included. Both have the same initial weights, order, augmentation and dropout, so their accuracies are those of the same
networks: equal with `--threads 1`, and up to the order of sums otherwise.
"""

import time
from dataclasses import replace
from functools import partial

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
from ldd.students.training import Lesson, Student, fresh_network
from ldd.students.workers import count_workers, run_students


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
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    data = DistillationData()
    data.setup()
    protocol = Protocol.load(arguments.protocol)
    protocol = replace(protocol, epochs=arguments.epochs or protocol.epochs)
    factories = protocol.factories()
    if arguments.networks:
        factories = {name: factories[name] for name in arguments.networks.split(",")}
    lesson = Lesson(data.spec, protocol, factories, seed=0)
    one_each = torch.cat([data.train_images.of_class(label)[:1] for label in range(10)])
    training, test = (
        Labelled(one_each, torch.arange(10)),
        Labelled(data.test_images.images, data.test_images.labels),
    )
    students = [
        Student("distilled", name, repeat, protocol.epochs)
        for name in factories
        for repeat in range(arguments.repeats)
    ]

    started = time.perf_counter()
    ours = run_students(
        lesson, students, {("distilled", r): training for r in range(arguments.repeats)}, test, device=device
    )
    ours_seconds = time.perf_counter() - started
    loop = partial(published_loop, lesson, training=training, test=test, device=device)
    started = time.perf_counter()
    plain = [loop(student) for student in students]
    loop_seconds = time.perf_counter() - started

    differences = [abs(ours[s].accuracy - accuracy) for s, accuracy in zip(students, plain, strict=True)]
    figures = {
        "students": len(students),
        "epochs": protocol.epochs,
        "workers": count_workers("auto") if device.type == "cpu" else 1,
        "loop_threads": torch.get_num_threads(),
        "ours_seconds": ours_seconds,
        "loop_seconds": loop_seconds,
        "evaluator_speedup": loop_seconds / ours_seconds,
        "largest_accuracy_difference": max(differences),
        "identical_accuracies": sum(difference == 0 for difference in differences),
    }
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
