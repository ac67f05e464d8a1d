"""Students: networks trained from scratch on a small set and tested on the test split."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ldd.augmentation.siamese import SiameseAugmentation
from ldd.augmentation.views import cutmix
from ldd.images import DataSpec, Labelled, to_unit_range
from ldd.networks import NetworkFactory, accuracy, train_classifier
from ldd.networks.training import BatchTransform
from ldd.runtime.seeding import derive_seed, seeded
from ldd.students.protocol import Protocol
from ldd.students.training_set import TrainingSet, by_epoch

MAX_DECAY = 0.995
"""Largest decay of the published weight average (released GLaD and LD3M code)."""


@dataclass(frozen=True)
class Student:
    """One network to train and test; the same student gives the same accuracy wherever and whenever it runs.

    Its initial weights, shuffling, augmentation and dropout follow from (seed, network, repeat) alone, so that sets
    are compared on equal footing.

    Attributes:
        set: name of the set it learns from.
        network: name of the network.
        repeat: from 0.
        epochs: passes over the set.
        batch_size: images per step; None takes the protocol's.
        augmented: False trains on the images as they are, without augmentation, views or CutMix.
    """

    set: str
    network: str
    repeat: int
    epochs: int
    batch_size: int | None = None
    augmented: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a student.

    Attributes:
        accuracy: top-1 on the test split after the last epoch, in [0, 1].
        seconds: of training and testing.
        selected: the same after that of the protocol's looks that does best on the selection split (of equals the
            first); None without looks.
        best_on_test: the largest of all looks, chosen on the test split itself: to compare with papers that print it.
    """

    accuracy: float
    seconds: float
    selected: float | None = None
    best_on_test: float | None = None


@dataclass(frozen=True)
class Lesson:
    """What all students of an evaluation share.

    Attributes:
        spec: classes, image size and normalisation.
        protocol: how they are trained.
        factories: networks by name.
        seed: of the evaluation.
        teacher: images as networks see them -> labels (n, K) as they are stored (`crop_teacher.CropTeacher`);
            needed where the protocol's labels are a teacher's, but for sets whose crops have labels in store.
    """

    spec: DataSpec
    protocol: Protocol
    factories: Mapping[str, NetworkFactory]
    seed: int
    teacher: nn.Module | None = None

    def run(
        self,
        student: Student,
        training: Labelled | TrainingSet,
        test: Labelled,
        selection: Labelled | None = None,
    ) -> Outcome:
        """Train and test one student.

        Args:
            student: which.
            training: what it learns from, on the device to train on.
            test: the test split, (M, 3, H, W) uint8 with labels (M,), on the same device.
            selection: the selection split likewise; needed where the protocol looks during training.
        """
        started = time.perf_counter()
        with torch.inference_mode(False), self._numerics(training):
            looks = None
            if self.protocol.looks and selection is not None:
                looks = Looks(partial(self.accuracy, split=selection), partial(self.accuracy, split=test))
            tested = self.train(student, training, looks)
            score = self.accuracy(tested, test)
        chosen = looks.chosen() if looks else (None, None)
        return Outcome(score, time.perf_counter() - started, *chosen)

    def train(
        self, student: Student, training: Labelled | TrainingSet, looks: "Looks | None" = None
    ) -> nn.Module:
        """A student after its last epoch, as it is tested."""
        with torch.inference_mode(False), self._numerics(training):
            # Under Lightning's validation the labels are inference tensors, which a loss may not keep for backward.
            training = training._replace(labels=training.labels.clone())
            network = fresh_network(
                self.factories[student.network], self.spec, self.seed, student.network, student.repeat
            )
            return train_student(
                network.to(training.images.device),
                training,
                self.spec,
                self.protocol,
                epochs=student.epochs,
                batch_size=student.batch_size,
                seed=derive_seed(self.seed, "student", student.network, student.repeat),
                augmented=student.augmented,
                teacher=self.teacher,
                looks=looks,
            )

    def accuracy(self, network: nn.Module, split: Labelled) -> float:
        """Top-1 of a network on images (M, 3, H, W) uint8 on its device."""
        return accuracy(network, split.images, split.labels, normalise=partial(as_input, self.spec))

    @staticmethod
    def _numerics(training: Labelled | TrainingSet) -> AbstractContextManager[None]:
        return one_thread() if training.images.device.type == "cpu" else nullcontext()


class Looks:
    """Accuracies during training, on the split by which an epoch may be chosen and on the one that is reported.

    Args:
        on_selection, on_test: network -> accuracy.
    """

    def __init__(
        self, on_selection: Callable[[nn.Module], float], on_test: Callable[[nn.Module], float]
    ) -> None:
        self._on_selection = on_selection
        self._on_test = on_test
        self.taken: list[tuple[float, float]] = []

    def take(self, network: nn.Module) -> None:
        """Test it as it is."""
        self.taken.append((self._on_selection(network), self._on_test(network)))

    def chosen(self) -> tuple[float, float]:
        """Test accuracy of the look that is best on the selection split, and the largest."""
        return max(self.taken, key=lambda look: look[0])[1], max(look[1] for look in self.taken)


def look_epochs(looks: int, epochs: int) -> set[int]:
    """The epochs (from 0) after which a student is looked at: evenly, the last among them."""
    count = min(looks, epochs)
    return {round((place + 1) * epochs / count) - 1 for place in range(count)}


def fresh_network(factory: NetworkFactory, spec: DataSpec, seed: int, name: str, repeat: int) -> nn.Module:
    """A network on the CPU with the initial weights of (seed, name, repeat), outside of any inference mode."""
    with torch.inference_mode(False), seeded(seed, "network", name, repeat):
        return factory(spec.num_classes, spec.image_size)


def train_student(
    network: nn.Module,
    training: Labelled | TrainingSet,
    spec: DataSpec,
    protocol: Protocol,
    *,
    epochs: int,
    seed: int,
    batch_size: int | None = None,
    augmented: bool = True,
    teacher: nn.Module | None = None,
    looks: Looks | None = None,
) -> nn.Module:
    """Train `network` in place by the protocol.

    Args:
        network: freshly initialised, on the device of the images.
        training: what it learns from, on the network's device.
        spec: gives the normalisation.
        protocol: gives everything else.
        epochs: passes over the images.
        seed: of shuffling, augmentation and dropout; where crops have labels in store, their own seed goes instead.
        batch_size: images per step; None takes the protocol's.
        augmented: False trains on the images as they are.
        teacher: see `Lesson`.
        looks: filled as often as the protocol says.

    Returns:
        What is to be tested: `network` itself, or the average of its weights where the protocol says so.
    """
    training = TrainingSet(*training)
    seed = seed if training.crop_seed is None else int(training.crop_seed)
    stored = training.crop_labels is not None
    average = EpochAverage(network) if protocol.weight_ema else None
    tested = network if average is None else average.network
    moments = look_epochs(protocol.looks, epochs) if looks and protocol.looks else set()

    def after(epoch: int, loss: Tensor) -> None:
        if average:
            average.update(epoch, loss)
        if looks and epoch in moments:
            looks.take(tested)

    train_classifier(
        network,
        training.images,
        training.labels,
        epochs=epochs,
        batch_size=batch_size or protocol.batch_size,
        optimizer=partial(_optimizer, network, protocol),
        scheduler=partial(LambdaLR, lr_lambda=lambda epoch: protocol.lr_at(epoch, epochs)),
        transform=student_transform(spec, protocol, teacher, augmented=augmented, stored=stored),
        loss=partial(_loss, protocol.temperature),
        seed=seed,
        on_epoch=after,
        by_epoch=partial(training.in_store, spec.num_classes)
        if stored
        else by_epoch(training, protocol, epochs, seed),
    )
    return tested


def student_transform(
    spec: DataSpec, protocol: Protocol, teacher: nn.Module | None, *, augmented: bool, stored: bool = False
) -> BatchTransform:
    """What becomes of each batch: views, normalisation, siamese augmentation, CutMix, the teacher's labels.

    Args:
        spec: gives the normalisation.
        protocol: gives everything else.
        teacher: see `Lesson`.
        augmented: False leaves the images as they are.
        stored: targets are those of the crops already, and stay as they are.
    """
    siamese = SiameseAugmentation(protocol.augmentations if augmented else ())
    views, alpha = (protocol.views, protocol.cutmix) if augmented else (None, 0.0)

    def transform(batch: Tensor, targets: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        if views is None:
            batch = as_input(spec, batch)
            batch = siamese(batch, siamese.draw(len(batch), draws, one_strategy=True))
        else:
            batch = spec.normalise(views(batch.float() / 255, draws) * 2 - 1)
        mixed = targets
        if alpha:
            if not targets.is_floating_point():
                mixed = F.one_hot(targets, spec.num_classes).float()
            batch, mixed = cutmix(batch, mixed, alpha, draws)
        if stored:
            return batch, targets
        if protocol.labels == "teacher" and teacher is not None:
            return batch, teacher(batch)
        return batch, mixed

    return transform


def _loss(temperature: float, logits: Tensor, targets: Tensor) -> Tensor:
    # With probabilities: the divergence from them, less their entropy, which has no gradient.
    return F.cross_entropy(logits / temperature, targets)


def _optimizer(network: nn.Module, protocol: Protocol, parameters: Iterable[nn.Parameter]) -> Optimizer:
    rate, decay = protocol.peak_lr(type(network)), protocol.weight_decay
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if not protocol.decay_vectors:
        everything = groups[0]["params"]
        groups = [
            {"params": [p for p in everything if p.ndim > 1]},
            {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0},
        ]
    if protocol.optimizer == "adamw":
        return AdamW(groups, lr=rate, betas=(protocol.momentum, 0.999), weight_decay=decay)
    return SGD(groups, lr=rate, momentum=protocol.momentum, weight_decay=decay)


class EpochAverage:
    """Moving average of a network's weights: the n-th update (from 1) has decay min(0.995, 1 - 1/n).

    So the first update copies the weights, and up to the 200th the average is their plain mean.
    """

    def __init__(self, network: nn.Module) -> None:
        self._trained = network
        self._average = AveragedModel(network, avg_fn=_blend)

    def update(self, epoch: int, loss: Tensor) -> None:
        """Take in the weights as they are after `epoch`."""
        self._average.update_parameters(self._trained)

    @property
    def network(self) -> nn.Module:
        """A network with the averaged weights."""
        return self._average.module


def _blend(average: Tensor, weights: Tensor, num_averaged: Tensor | int) -> Tensor:
    decay = min(MAX_DECAY, 1 - 1 / (int(num_averaged) + 1))
    return torch.lerp(weights, average, decay)


def as_input(spec: DataSpec, images: Tensor) -> Tensor:
    """Stored images (N, 3, H, W) uint8 as networks see them."""
    return spec.normalise(to_unit_range(images))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block with one thread in each operation, so that sums have one order on every machine and worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
