"""Students: networks trained from scratch on a small set and tested on the test split."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ldd.augment import SiameseAugmentation
from ldd.classes import DataSpec, Labelled, to_unit_range
from ldd.evaluation.protocols import Protocol
from ldd.evaluation.training_set import TrainingSet, by_epoch
from ldd.networks import NetworkFactory, accuracy, train_classifier
from ldd.seeding import derive_seed, seeded

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
    """

    set: str
    network: str
    repeat: int
    epochs: int
    batch_size: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a student.

    Attributes:
        accuracy: top-1 on the test split after the last epoch, in [0, 1].
        seconds: of training and testing.
    """

    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Lesson:
    """What all students of an evaluation share.

    Attributes:
        spec: classes, image size and normalisation.
        protocol: how they are trained.
        factories: networks by name.
        seed: of the evaluation.
    """

    spec: DataSpec
    protocol: Protocol
    factories: Mapping[str, NetworkFactory]
    seed: int

    def run(self, student: Student, training: Labelled | TrainingSet, test: Labelled) -> Outcome:
        """Train and test one student.

        Args:
            student: which.
            training: what it learns from, on the device to train on.
            test: the test split, (M, 3, H, W) uint8 with labels (M,), on the same device.
        """
        device = training.images.device
        started = time.perf_counter()
        with torch.inference_mode(False), one_thread() if device.type == "cpu" else nullcontext():
            # Under Lightning's validation the labels are inference tensors, which a loss may not keep for backward.
            training = training._replace(labels=training.labels.clone())
            network = fresh_network(
                self.factories[student.network], self.spec, self.seed, student.network, student.repeat
            )
            tested = train_student(
                network.to(device),
                training,
                self.spec,
                self.protocol,
                epochs=student.epochs,
                batch_size=student.batch_size,
                seed=derive_seed(self.seed, "student", student.network, student.repeat),
            )
            score = accuracy(tested, test.images, test.labels, normalise=partial(as_input, self.spec))
        return Outcome(score, time.perf_counter() - started)


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
) -> nn.Module:
    """Train `network` in place by the protocol.

    Args:
        network: freshly initialised, on the device of the images.
        training: what it learns from, on the network's device.
        spec: gives the normalisation.
        protocol: gives everything else.
        epochs: passes over the images.
        seed: of shuffling, augmentation and dropout.
        batch_size: images per step; None takes the protocol's.

    Returns:
        What is to be tested: `network` itself, or the average of its weights where the protocol says so.
    """
    training = TrainingSet(*training)
    average = EpochAverage(network) if protocol.weight_ema else None
    train_classifier(
        network,
        training.images,
        training.labels,
        epochs=epochs,
        batch_size=batch_size or protocol.batch_size,
        optimizer=partial(
            SGD,
            lr=protocol.peak_lr(type(network)),
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
        ),
        scheduler=partial(LambdaLR, lr_lambda=lambda epoch: protocol.lr_at(epoch, epochs)),
        augmentation=SiameseAugmentation(protocol.augmentations),
        normalise=partial(as_input, spec),
        seed=seed,
        on_epoch=average.update if average else None,
        by_epoch=by_epoch(training, protocol, epochs, seed),
    )
    return network if average is None else average.network


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
