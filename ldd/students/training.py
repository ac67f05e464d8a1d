"""Training of students: networks that learn a small set from scratch and are tested on the test split."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ldd.augmentation.siamese import SiameseAugmentation
from ldd.augmentation.views import cutmix
from ldd.errors import UserError
from ldd.images import DataSpec, Labelled
from ldd.networks import NetworkFactory, accuracy, train_classifier
from ldd.networks.base import seeded_network
from ldd.networks.training import BatchTransform
from ldd.runtime.seeding import derive_seed
from ldd.students.optimizers import forget, student_optimizer
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
    """The result of a student.

    Attributes:
        accuracy: top-1 on the test split after the last epoch, in [0, 1].
        seconds: of training and testing.
        selected: top-1 on the test split at the look that is best on the selection split (the first of equals); None
            without looks.
        best_on_test: the largest top-1 of all looks, chosen on the test split itself; for papers that print it.
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
        teacher: maps network inputs to labels (n, K) as they are stored (`ldd.labels.crops.CropTeacher`); needed where
            the protocol has a teacher, except for sets whose crops have stored labels.
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
        """Train and test one student; the labels of its set and of the splits are on the device to train on."""
        started = time.perf_counter()
        with torch.inference_mode(False), one_thread(training.labels.device):
            looks = None
            if selection is not None and self.protocol.look_epochs(student.epochs):
                looks = Looks(partial(self.accuracy, split=selection), partial(self.accuracy, split=test))
            tested = self.train(student, training, looks)
            score = self.accuracy(tested, test)
        chosen = looks.chosen() if looks else (None, None)
        return Outcome(score, time.perf_counter() - started, *chosen)

    def train(
        self, student: Student, training: Labelled | TrainingSet, looks: "Looks | None" = None
    ) -> nn.Module:
        """Return a student after its last epoch, as it is tested."""
        with torch.inference_mode(False), one_thread(training.labels.device):
            # Labels that were made in Lightning's validation are inference tensors, which no loss can keep.
            training = training._replace(labels=training.labels.clone())
            network = fresh_network(
                self.factories[student.network], self.spec, self.seed, student.network, student.repeat
            )
            return train_student(
                network.to(training.labels.device),
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
        """Return the top-1 of a network on images (M, 3, H, W) uint8."""
        return accuracy(network, split.images, split.labels, normalise=self.spec.as_input)


class Looks:
    """Accuracies during training, on the split by which an epoch may be chosen and on the one that is reported."""

    def __init__(
        self, on_selection: Callable[[nn.Module], float], on_test: Callable[[nn.Module], float]
    ) -> None:
        self._on_selection = on_selection
        self._on_test = on_test
        self.taken: list[tuple[float, float]] = []

    def take(self, network: nn.Module) -> None:
        """Test the network as it is."""
        self.taken.append((self._on_selection(network), self._on_test(network)))

    def chosen(self) -> tuple[float, float]:
        """Return the test accuracy of the look that is best on the selection split, and the largest of all."""
        return max(self.taken, key=lambda look: look[0])[1], max(look[1] for look in self.taken)


def fresh_network(factory: NetworkFactory, spec: DataSpec, seed: int, name: str, repeat: int) -> nn.Module:
    """Build a student on the CPU, with the initial weights of (seed, name, repeat)."""
    return seeded_network(factory, spec, seed, "network", name, repeat)


def check_networks(factories: Mapping[str, NetworkFactory], spec: DataSpec) -> None:
    """Build every network once, for the classes and the image size of the data."""
    for name, factory in factories.items():
        try:
            fresh_network(factory, spec, 0, name, 0)
        except UserError as error:
            raise UserError(f"network {name}: {str(error).removeprefix(f'{name}: ')}") from error
        except (TypeError, ValueError, RuntimeError, ImportError, ArithmeticError) as error:
            raise UserError(
                f"network {name} cannot be built for {spec.num_classes} classes and image_size {spec.image_size} "
                f"({type(error).__name__}: {error}); give it other arguments, or leave it out"
            ) from error


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
    on_epoch: Callable[[int, Tensor], None] = lambda epoch, loss: None,
) -> nn.Module:
    """Train `network` in place by the protocol; return what is to be tested: the network, or its averaged weights.

    Args:
        network: freshly initialised.
        training: what it learns from; its labels are on the network's device.
        spec: gives the normalisation.
        protocol: gives everything else.
        epochs: passes over the images.
        seed: of shuffling, augmentation and dropout; where crops have stored labels, the seed of the crops is taken.
        batch_size: images per step; None takes the protocol's.
        augmented: False trains on the images as they are.
        teacher: see `Lesson`.
        looks: filled after the epochs that the protocol says.
        on_epoch: called after each epoch with its number and mean loss.
    """
    training = TrainingSet(*training)
    seed = seed if training.crop_seed is None else int(training.crop_seed)
    stored = training.crop_labels is not None
    average = epoch_average(network) if protocol.weight_ema else None
    tested = network if average is None else average.module
    steps = student_optimizer(network, protocol, network.parameters())

    def after(epoch: int, loss: Tensor) -> None:
        if protocol.forgets_after(epoch, epochs):
            forget(steps)
        if average is not None:
            average.update_parameters(network)
        if looks and epoch in protocol.look_epochs(epochs):
            looks.take(tested)
        on_epoch(epoch, loss)

    train_classifier(
        network,
        training.images,
        training.labels,
        epochs=epochs,
        batch_size=batch_size or protocol.batch_size,
        optimizer=lambda parameters: steps,
        scheduler=partial(LambdaLR, lr_lambda=lambda epoch: protocol.lr_at(epoch, epochs)),
        transform=student_transform(spec, protocol, teacher, augmented=augmented, stored=stored),
        loss=partial(_loss, protocol.temperature),
        seed=seed,
        on_epoch=after,
        by_epoch=by_epoch(training, protocol, epochs, seed, spec.num_classes),
    )
    return tested


def student_transform(
    spec: DataSpec, protocol: Protocol, teacher: nn.Module | None, *, augmented: bool, stored: bool = False
) -> BatchTransform:
    """Return the function that makes batches: views, normalisation, siamese augmentation, CutMix, teacher's labels.

    Where labels of the crops are `stored`, the targets are these, and stay as they are.
    """
    siamese = SiameseAugmentation(protocol.augmentations if augmented else ())
    views, alpha = (protocol.views, protocol.cutmix) if augmented else (None, 0.0)

    def transform(batch: Tensor, targets: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        if views is None:
            batch = spec.as_input(batch)
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
        if protocol.has_teacher and teacher is not None:
            return batch, teacher(batch)
        return batch, mixed

    return transform


def _loss(temperature: float, logits: Tensor, targets: Tensor) -> Tensor:
    # With probabilities this is the divergence from them without their entropy, which has no gradient.
    return F.cross_entropy(logits / temperature, targets)


_Tensors = tuple[Tensor, ...] | list[Tensor]


def epoch_average(network: nn.Module) -> AveragedModel:
    """Return a moving average of a network's weights: the n-th update (from 1) has decay min(0.995, 1 - 1/n).

    So the first update copies the weights, and up to the 200th the average is their plain mean. The released code's
    (ema-pytorch) copies in its second update as well; after 200 epochs rounding tells the two apart more than this.
    """
    return AveragedModel(network, multi_avg_fn=_blend)


def _blend(average: _Tensors, weights: _Tensors, num_averaged: Tensor | int) -> None:
    decay = min(MAX_DECAY, 1 - 1 / (int(num_averaged) + 1))  # the device is asked once for all weights
    torch._foreach_copy_(average, torch._foreach_lerp(weights, average, decay))


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Let each operation on a CPU use one thread in a block: sums then have one order on every machine and worker."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
