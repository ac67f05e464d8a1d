"""The plain classifier loop: what it learns, what it returns, and that a seed fixes everything."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from ldd.augmentation.siamese import SiameseAugmentation
from ldd.errors import UserError
from ldd.networks import ConvNet, ViT, accuracy, train_classifier
from ldd.runtime.seeding import seeded


def toy(n, seed):
    """n noisy images of 3 classes told apart by colour, normalised range."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = 0.5 * torch.randn(n, 3, 32, 32, generator=generator)
    images[torch.arange(n), labels] += 0.5
    return images, labels


def network(seed=0):
    with seeded(seed, "network"):
        return ConvNet(3, 32, depth=2, width=8)


class Recorder(nn.Module):
    """Keeps the first pixel of every image it is shown."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 3)
        self.seen = []

    def forward(self, x):
        self.seen.append(x[:, 0, 0, 0].clone())
        return self.linear(x[:, 0, 0, :1])


def weights(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def test_learns_a_separable_set():
    student = network()
    images, labels = toy(60, 0)
    before = accuracy(student, *toy(90, 1))
    loss = train_classifier(
        student, images, labels, epochs=15, batch_size=16, optimizer=partial(SGD, lr=0.05, momentum=0.9)
    )
    assert before < 0.9
    assert accuracy(student, *toy(90, 1)) == 1
    assert loss < 0.1


def test_full_batch_steps_equal_a_loop_written_out():
    images, labels = toy(9, 0)
    student, reference = network(), network()
    loss = train_classifier(student, images, labels, epochs=4, batch_size=9, optimizer=partial(SGD, lr=0.1))
    for _ in range(4):
        expected = F.cross_entropy(reference(images), labels)
        gradients = torch.autograd.grad(expected, list(reference.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(reference.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    torch.testing.assert_close(weights(student), weights(reference), atol=1e-6, rtol=0)
    assert loss == pytest.approx(expected.item(), abs=1e-6)


def test_same_seed_same_weights_with_dropout_and_augmentation():
    images, labels = toy(10, 0)
    trained = []
    for seed in (7, 7, 8):
        with seeded(0):
            student = ViT(3, 32, dim=16, depth=2, heads=2, dropout=0.3)
        torch.rand(len(trained) + 1)  # the global generator's state must not matter
        train_classifier(
            student,
            images,
            labels,
            epochs=3,
            batch_size=4,
            optimizer=partial(SGD, lr=0.1),
            augmentation=SiameseAugmentation(),
            seed=seed,
        )
        trained.append(weights(student))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_global_generator_is_left_as_it_was():
    before = torch.random.get_rng_state()
    with seeded(0):
        student = ViT(3, 32, dim=16, depth=1, heads=2)
    train_classifier(student, *toy(6, 0), epochs=2, batch_size=4, optimizer=partial(SGD, lr=0.1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_epoch_shows_every_image_once_in_a_new_order():
    images = torch.arange(10.0)[:, None, None, None].expand(-1, 3, 2, 2)
    recorder = Recorder()
    train_classifier(
        recorder,
        images,
        torch.zeros(10).long(),
        epochs=2,
        batch_size=4,
        optimizer=partial(SGD, lr=0.0),
        seed=1,
    )
    assert [len(batch) for batch in recorder.seen] == [4, 4, 2] * 2
    first, second = torch.cat(recorder.seen[:3]), torch.cat(recorder.seen[3:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert first.tolist() != second.tolist()


def test_returns_the_mean_loss_over_images_of_the_last_epoch_and_reports_each():
    images, labels = toy(10, 0)
    student = network()
    reported = []
    loss = train_classifier(
        student,
        images,
        labels,
        epochs=3,
        batch_size=4,  # 4, 4, 2: batches of unequal weight
        optimizer=partial(SGD, lr=0.0),
        on_epoch=lambda epoch, value: reported.append((epoch, value.item())),
    )
    assert [epoch for epoch, _ in reported] == [0, 1, 2]
    assert loss == pytest.approx(reported[-1][1], abs=1e-7)
    assert loss == pytest.approx(F.cross_entropy(student(images), labels).item(), abs=1e-6)


def test_schedule_is_stepped_once_per_epoch():
    rates = []
    kept = {}

    def factory(parameters):
        kept["optimizer"] = SGD(parameters, lr=1.0)
        return kept["optimizer"]

    class Watch(SiameseAugmentation):
        def __call__(self, images, draws):
            rates.append(kept["optimizer"].param_groups[0]["lr"])
            return images

    train_classifier(
        network(),
        *toy(6, 0),
        epochs=3,
        batch_size=3,
        optimizer=factory,
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.1 * (epoch + 1)),
        augmentation=Watch(),
    )
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_augmentation_is_one_strategy_per_batch_after_normalisation():
    batches = []

    class Watch(SiameseAugmentation):
        def __call__(self, images, draws):
            batches.append(
                (images.dtype, len(set(draws.strategy.tolist())), draws.uniform[:, 0].unique().numel())
            )
            return super().__call__(images, draws)

    train_classifier(
        network(),
        torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8),
        torch.arange(8) % 3,
        epochs=2,
        batch_size=4,
        optimizer=partial(SGD, lr=0.0),
        augmentation=Watch(),
        normalise=lambda x: x.float() / 255,
    )
    assert batches == [(torch.float32, 1, 4)] * 4


def test_soft_labels_of_one_class_equal_hard_labels():
    images, labels = toy(6, 0)
    students = [network(), network()]
    for student, targets in zip(students, (labels, F.one_hot(labels, 3).float()), strict=True):
        train_classifier(student, images, targets, epochs=2, batch_size=4, optimizer=partial(SGD, lr=0.1))
    torch.testing.assert_close(weights(students[0]), weights(students[1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch_size", [4, 100])
def test_trains_the_same_under_inference_mode(batch_size):
    plain, inside = network(), network()
    settings = {"epochs": 2, "batch_size": batch_size, "optimizer": partial(SGD, lr=0.1)}
    train_classifier(plain, *toy(6, 0), **settings)
    with torch.inference_mode():
        train_classifier(inside, *toy(6, 0), **settings)
    assert torch.equal(weights(plain), weights(inside))


def test_accuracy_counts_in_evaluation_mode_and_restores_the_mode():
    with seeded(0):
        student = ViT(3, 32, dim=16, depth=1, heads=2, dropout=0.9)
    stored = torch.randint(
        256, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.arange(50) % 3

    def normalise(x):
        return x.float() / 127.5 - 1

    predicted = student.eval()(normalise(stored)).argmax(1)
    expected = sum(int(p) == int(y) for p, y in zip(predicted, labels, strict=True)) / 50
    student.train()
    for batch_size in (7, 50, 256):
        assert accuracy(student, stored, labels, batch_size=batch_size, normalise=normalise) == expected
        assert student.training
    student.eval()
    accuracy(student, normalise(stored), labels)
    assert not student.training


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_refuses_counts_below_one(name):
    settings = {"epochs": 1, "batch_size": 4, "optimizer": SGD} | {name: 0}
    with pytest.raises(UserError, match=rf"{name} \(0\) must be at least 1"):
        train_classifier(network(), *toy(6, 0), **settings)
