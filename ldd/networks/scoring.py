"""Scores and features of stored images: networks in batches, and a network that is trained to score."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import torch
from torch import Tensor, nn
from torch.optim import SGD

from ldd.augmentation.siamese import SiameseAugmentation
from ldd.errors import UserError, check_at_least
from ldd.images import DataSpec, Images
from ldd.networks.base import Network, NetworkFactory, names_of, seeded_network
from ldd.networks.convnet import ConvNet
from ldd.networks.settings import architecture_of
from ldd.networks.training import train_classifier
from ldd.runtime.devices import find_device, resident
from ldd.runtime.seeding import derive_seed

CHUNK = 256
"""Images per forward pass without gradients."""

_SHOWN_STATE = 16  # digits of the hash over initial weights


def in_batches(
    function: Callable[[Tensor], Tensor], spec: DataSpec, images: Images, device: torch.device
) -> Tensor:
    """Return what `function` gives for images (N, 3, H, W) uint8 as networks see them, (N, ...) float32 on the CPU."""
    return torch.cat([*batch_by_batch(function, spec, images, device)])


def batch_by_batch(
    function: Callable[[Tensor], Tensor], spec: DataSpec, images: Images, device: torch.device
) -> Iterator[Tensor]:
    """Yield the parts of `in_batches`, of up to 256 images: a million logits of a thousand classes are 4 GB."""
    for part in images.split(CHUNK):
        with torch.no_grad():
            yield function(spec.as_input(part.to(device))).float().cpu()


def by_class(parts: Iterable[Tensor], labels: Tensor) -> Iterator[Tensor]:
    """Yield what `parts` have of each class that there is, (n, ...), one class at a time; `labels` (N,) ascend."""
    waiting, rest = list[Tensor](), iter(parts)
    for count in labels.unique_consecutive(return_counts=True)[1].tolist():
        while sum(map(len, waiting)) < count:
            waiting.append(next(rest))
        together = torch.cat(waiting)
        yield together[:count]
        waiting = [together[count:].clone()]


Judge = Callable[[Tensor, Tensor], Tensor]
"""(logits (n, K) float32, labels (n,)), both on the CPU -> what is kept of each image, (n, ...)."""


def judged(
    network: nn.Module, spec: DataSpec, images: Images, labels: Tensor, judge: Judge, device: torch.device
) -> Tensor:
    """Return what `judge` keeps of the logits of each image, (N, ...); these are never there all at once."""
    parts = zip(batch_by_batch(network, spec, images, device), labels.split(CHUNK), strict=True)
    return torch.cat([judge(*part) for part in parts])


def small_convnet(num_classes: int, image_size: int) -> Network:
    """Return a ConvNet of width 32: a sixteenth of the work of the usual one, since scoring trains several."""
    return ConvNet(num_classes, image_size, width=32)


@dataclass(frozen=True)
class ScoringNetwork:
    """How a network is trained to score: plain SGD on images of one size, held in memory.

    Attributes:
        network: what is trained.
        image_size: height and width in pixels; null takes the run's. Scores are shared by runs of different sizes
            only where it is set.
        epochs: passes over the images.
        batch_size: images per step.
        learning_rate: of SGD with momentum 0.9 and weight decay 5e-4.
        augmentation: differentiable siamese augmentation strategies; empty for none.
        device: auto takes the accelerator where there is one, else the CPU.

    Raises:
        UserError: a number is outside its range.
    """

    network: NetworkFactory = small_convnet
    image_size: int | None = None
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.02
    augmentation: Sequence[str] = ()
    device: str = "auto"

    def __post_init__(self) -> None:
        check_at_least(
            1, "training", image_size=self.image_size, epochs=self.epochs, batch_size=self.batch_size
        )
        if not 0 < self.learning_rate < inf:
            raise UserError(f"training.learning_rate ({self.learning_rate}) must be a number above 0")

    def size(self, spec: DataSpec) -> int:
        """Return the height and width of the images that the network takes."""
        return self.image_size or spec.image_size

    def names(self, spec: DataSpec) -> set[str]:
        """Return the name of what is trained, as manifests hold it."""
        return names_of([self.network], replace(spec, image_size=self.size(spec)))

    def build(self, spec: DataSpec, seed: int, *key: object) -> Network:
        """Return a network with the initial weights of (seed, key), on the device."""
        spec = replace(spec, image_size=self.size(spec))
        return seeded_network(self.network, spec, seed, "scoring network", *key).to(find_device(self.device))

    def train(
        self,
        network: Network,
        images: Images,
        labels: Tensor,
        spec: DataSpec,
        seed: int,
        *key: object,
        on_epoch: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        """Train `network` in place on uint8 images (N, 3, S, S); order and augmentation follow from (seed, key)."""
        device = find_device(self.device)
        train_classifier(
            network,
            resident(images, device),
            labels.to(device),
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=partial(SGD, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4),
            augmentation=SiameseAugmentation(self.augmentation) if self.augmentation else None,
            normalise=spec.as_input,
            seed=derive_seed(seed, "scoring", *key),
            on_epoch=on_epoch,
        )

    def trained(self, images: Images, labels: Tensor, spec: DataSpec, seed: int, *key: object) -> Network:
        """Return a network built and trained with the same (seed, key)."""
        network = self.build(spec, seed, *key)
        self.train(network, images, labels, spec, seed, *key)
        return network

    def judged(
        self, network: Network, images: Images, labels: Tensor, spec: DataSpec, judge: Judge
    ) -> Tensor:
        """Return what `judge` keeps of each image's logits in evaluation mode; the network's mode is restored."""
        was_training = network.training
        kept = judged(network.eval(), spec, images, labels, judge, find_device(self.device))
        network.train(was_training)
        return kept

    def features(self, network: Network, images: Images, spec: DataSpec) -> Tensor:
        """Return what the last layer sees, (N, F) float32 on the CPU, in evaluation mode."""
        return torch.cat([*self.features_in_parts(network, images, spec)])

    def features_in_parts(self, network: Network, images: Images, spec: DataSpec) -> Iterator[Tensor]:
        """Yield `features` of up to 256 images at a time."""
        return batch_by_batch(network.eval().embed, spec, images, find_device(self.device))

    def describe(self, spec: DataSpec, seed: int) -> str:
        """Return in one line what the trained networks follow from, apart from the images."""
        network = self.build(spec, seed)
        digest = hashlib.sha256(architecture_of(network).encode())
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().float().numpy().tobytes())
        return (
            f"{type(network).__name__} {digest.hexdigest()[:_SHOWN_STATE]} on these data: {self.epochs} epochs, "
            f"batch {self.batch_size}, learning rate {self.learning_rate}, "
            f"augmentation {'_'.join(self.augmentation) or 'none'}"
        )

    def preprocessing(self, spec: DataSpec) -> str:
        """Return in one line how the networks see an image."""
        size = self.size(spec)
        return f"resize {size}, centre crop {size}, mean {list(spec.mean)}, std {list(spec.std)}"
