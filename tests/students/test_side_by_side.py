"""Students side by side are those one by one."""

from functools import partial

import pytest
import torch
from small_world import NARROW, SPEC, protocol_file, striped

from ldd.evaluation import Protocol
from ldd.images import Labelled
from ldd.networks import AlexNet, ConvNet, ResNet18, ViT
from ldd.students import side_by_side
from ldd.students.side_by_side import grouped
from ldd.students.training import Lesson, Student
from ldd.students.training_set import TrainingSet
from ldd.students.workers import run_students

NETWORKS = {
    "instance": NARROW,
    "batch": partial(NARROW, norm="batch"),
    "resnet": partial(ResNet18, width=4, norm="batch"),
    "alexnet": partial(AlexNet, width=4),
    "vit": partial(ViT, patch_size=16, dim=8, depth=1, heads=2, dropout=0.0),
}
TEST = Labelled(*striped(10, 2))


def soft(images, labels):
    return Labelled(images, torch.eye(3)[labels] * 0.7 + 0.1)


def lesson(tmp_path, networks=NETWORKS, **changes):
    return Lesson(SPEC, Protocol.load(protocol_file(tmp_path, **changes)), networks, seed=7)


def weights(network):
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


class Exact(torch.nn.Module):
    """A network in float64, in which the order of sums does not matter."""

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, images):
        return self.network(images.double())


def exact(factory):
    return lambda num_classes, image_size: Exact(factory(num_classes, image_size))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "changes",
    [
        {"augmentations": ["color", "crop", "flip", "rotate"]},
        {"optimizer": "adamw", "lr": 1e-3, "decay_vectors": False, "weight_decay": 0.1},
        {"weight_ema": True, "rates": "released_drop", "temperature": 2.0},
    ],
    ids=["sgd", "adamw", "average"],
)
def test_the_same_numbers_in_float64(tmp_path, network, changes):
    """Two sets, two repeats, two batches an epoch: weights, averages and running statistics to 1e-7."""
    shared = lesson(tmp_path, {network: exact(NETWORKS[network])}, batch_size=5, epochs=3, **changes)
    students = [Student(name, network, repeat, 3) for name in ("a", "b") for repeat in (0, 1)]
    trainings = [TrainingSet(*striped(3, seed)) for seed in range(4)]
    found = side_by_side.train(shared, students, trainings)
    for student, training, one in zip(students, trainings, found, strict=True):
        alone = shared.train(student, training)
        assert (weights(one) - weights(alone)).abs().max() < 1e-7


@pytest.mark.parametrize("network", ["instance", "vit"])
def test_float32_and_soft_labels(tmp_path, network):
    """Up to the order of sums: weights to 2e-5 after three epochs, and the same accuracies."""
    shared = lesson(tmp_path, batch_size=5, epochs=3, augmentations=["color", "crop", "flip", "rotate"])
    students = [Student("a", network, repeat, 3) for repeat in range(3)]
    for made in (Labelled, soft):
        trainings = [TrainingSet(*made(*striped(3, seed))) for seed in range(3)]
        found = side_by_side.train(shared, students, trainings)
        for student, training, one in zip(students, trainings, found, strict=True):
            alone = shared.train(student, training)
            assert (weights(one) - weights(alone)).abs().max() < 2e-5
            assert shared.accuracy(one, TEST) == shared.accuracy(alone, TEST)


def test_draws_of_codes(tmp_path):
    """Each student takes its own draw of each code in each epoch, beside the means."""
    shared = lesson(tmp_path, epochs=3)
    students = [Student("a", "instance", repeat, 3) for repeat in (0, 1)]
    images, labels = striped(3, 0)
    draws = torch.stack([striped(3, seed)[0] for seed in (1, 2)])
    trainings = [TrainingSet(images, labels, draws)] * 2
    for student, one in zip(students, side_by_side.train(shared, students, trainings), strict=True):
        assert (weights(one) - weights(shared.train(student, trainings[0]))).abs().max() < 2e-5


def test_groups(tmp_path):
    """One network, as many epochs, sets of one size; with dropout, looks or stored crops each alone."""
    with_dropout = {**NETWORKS, "dropout": partial(NETWORKS["vit"], dropout=0.1)}
    shared = lesson(tmp_path, with_dropout, batch_size=256)
    small, large = TrainingSet(*striped(2, 0)), TrainingSet(*striped(200, 0))
    students = [
        *(Student("a", "instance", repeat, 3) for repeat in range(3)),  # 0, 1, 2
        Student("b", "instance", 0, 3),  # 3
        Student("b", "instance", 0, 4),  # 4: other epochs
        Student("a", "vit", 0, 3),  # 5
        Student("c", "instance", 0, 3),  # 6: another size
    ]
    trainings = [small] * 6 + [large]
    assert list(grouped(shared, students, trainings, None)) == [[0, 1, 2, 3], [4], [5], [6]]
    assert list(grouped(shared, students, trainings, 2)) == [[0, 1], [2, 3], [4], [5], [6]]
    many = [Student("a", "instance", repeat, 3) for repeat in range(40)]
    assert [len(g) for g in grouped(shared, many, [small] * 40, None)] == [16, 16, 8]
    assert [len(g) for g in grouped(shared, many, [large] * 40, None)] == [4] * 10  # of 256 images
    assert list(grouped(lesson(tmp_path, looks=1), many[:2], [small] * 2, None)) == [[0], [1]]
    stored = small.with_crops(1, {"soft_labels": torch.zeros(3, 6, 3)})
    assert list(grouped(shared, many[:2], [stored] * 2, None)) == [[0], [1]]
    pairs = [Student("a", "dropout", repeat, 3) for repeat in (0, 1)]
    assert list(grouped(shared, pairs, [small] * 2, None)) == [[0], [1]]


def test_run_students_gives_the_same_outcomes(tmp_path):
    shared = lesson(tmp_path, {"instance": NARROW, "wide": partial(ConvNet, width=6, depth=2)})
    sets = {("a", repeat): Labelled(*striped(3, repeat)) for repeat in range(3)}
    students = [Student("a", name, repeat, 2) for name in ("instance", "wide") for repeat in range(3)]
    done = []
    common = {"device": torch.device("cpu"), "num_workers": 1}
    plain = run_students(shared, students, sets, TEST, **common)
    stacked = run_students(
        shared, students, sets, TEST, side_by_side=2, done=lambda *one: done.append(one), **common
    )
    assert [stacked[s].accuracy for s in students] == [plain[s].accuracy for s in students]
    assert sorted(map(repr, stacked)) == sorted(repr(student) for student, _ in done)
