"""What a student learns from: images with hard or soft labels, and draws of them where their codes have a spread."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from ldd.artefact.soft_labels import DENSE, INDICES, NAMES, VALUES, restored
from ldd.errors import UserError
from ldd.images import Labelled
from ldd.runtime.seeding import generator
from ldd.students.protocol import Protocol

_SHARE_OF_FREE_MEMORY = 0.5
"""What draws may take of it; the rest is for training."""

Sampler = Callable[[torch.Generator], Tensor]
"""One draw of every code of a set, (N, 3, H, W) uint8 on the CPU, in the order of its images."""


@dataclass(frozen=True)
class TrainingCost:
    """The work of training one student on a set.

    Attributes:
        epochs: passes.
        images_per_epoch: images in each.
        steps: of the optimiser, in all.
        decodes: images that a decoder or generator made for it.
    """

    epochs: int
    images_per_epoch: int
    steps: int
    decodes: int = 0

    @classmethod
    def of(cls, epochs: int, images_per_epoch: int, batch_size: int, decodes: int = 0) -> "TrainingCost":
        """With a last batch that may be smaller."""
        return cls(epochs, images_per_epoch, epochs * -(-images_per_epoch // batch_size), decodes)

    def to_dict(self) -> dict[str, int]:
        """Plain values, with `images`: how many were seen in all."""
        return {**asdict(self), "images": self.epochs * self.images_per_epoch}


class TrainingSet(NamedTuple):
    """Images, labels and draws.

    Attributes:
        images: (N, 3, H, W) uint8; mean images where there are draws.
        labels: (N,) int64, or (N, K) probabilities.
        samples: (P, N, 3, H, W) uint8, P draws of each code, or None.
        crop_seed: 0-d int64, what order and crops follow from where each crop has a label in store, or None.
        crop_labels: (E, N, K) stored labels of the crops, or (E, N, k) the largest probabilities, or None.
        crop_classes: (E, N, k) int, whose these are, or None.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor | None = None
    crop_seed: Tensor | None = None
    crop_labels: Tensor | None = None
    crop_classes: Tensor | None = None

    def to(self, device: torch.device) -> "TrainingSet":
        """The same on a device."""
        return TrainingSet(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]

    def with_crops(self, seed: int, stored: Mapping[str, Tensor]) -> "TrainingSet":
        """The same with stored labels of its crops, which follow from `seed` (see `ldd.labels.crops.CropLabels`)."""
        first, *rest = (stored[name] for name in NAMES if name in stored)
        return self._replace(
            crop_seed=torch.tensor(seed), crop_labels=first, crop_classes=rest[0] if rest else None
        )

    def in_store(self, num_classes: int, epoch: int) -> Labelled:
        """Images and labels (N, K) float32 of an epoch's crops; only where these are in store."""
        assert self.crop_labels is not None
        tensors = {DENSE: self.crop_labels[epoch]}
        if self.crop_classes is not None:
            tensors = {VALUES: self.crop_labels[epoch], INDICES: self.crop_classes[epoch]}
        found = restored(tensors, num_classes)
        assert found is not None
        return Labelled(self.images, found.float())

    @property
    def soft(self) -> bool:
        """Whether labels are probabilities."""
        return self.labels.is_floating_point()

    def has_means(self, protocol: Protocol) -> bool:
        """Whether the images themselves take part in an epoch."""
        if self.samples is None or protocol.mean_images == "always":
            return True
        return protocol.mean_images == "soft" and self.soft

    def cost(self, protocol: Protocol, epochs: int, batch_size: int) -> TrainingCost:
        """Of one student."""
        n, means = len(self.images), self.has_means(protocol)
        if self.samples is None:
            return TrainingCost.of(epochs, n, batch_size)
        decodes = n * (len(self.samples) + means)
        return TrainingCost.of(epochs, n * (1 + means), batch_size, decodes)


def draw_samples(
    sampler: Sampler,
    protocol: Protocol,
    num_codes: int,
    image_size: int,
    seed: int,
    epochs: int | None = None,
) -> Tensor:
    """The draws that a protocol asks for, (P, N, 3, H, W) uint8; they follow from (seed, number).

    Args:
        sampler: draws all codes once.
        protocol: says how often.
        num_codes: N.
        image_size: H.
        seed: of the draws.
        epochs: of the students; None takes the protocol's.

    Raises:
        UserError: they do not fit into memory.
    """
    count = check_draws(protocol, num_codes, image_size, epochs)
    drawn = torch.empty(count, num_codes, 3, image_size, image_size, dtype=torch.uint8)
    for number in range(count):
        drawn[number] = sampler(generator(seed, "sample", number))
    return drawn


def check_draws(protocol: Protocol, num_codes: int, image_size: int, epochs: int | None = None) -> int:
    """How many draws of each code a protocol asks for, P, where all of them fit into this machine's memory.

    Args:
        protocol: says how many.
        num_codes: N.
        image_size: H.
        epochs: of the students; None takes the protocol's.

    Raises:
        UserError: they do not fit.
    """
    count = (epochs or protocol.epochs) if protocol.samples == "fresh" else protocol.samples
    needed, free = count * num_codes * 3 * image_size**2, psutil.virtual_memory().available
    if needed > _SHARE_OF_FREE_MEMORY * free:
        raise UserError(
            f"protocol {protocol.id}: samples ({protocol.samples}) means {count} draws of {num_codes} codes, "
            f"{needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB of memory are free; give a number of samples below "
            f"{int(_SHARE_OF_FREE_MEMORY * free * count / needed)}"
        )
    return count


def by_epoch(
    training: TrainingSet, protocol: Protocol, epochs: int, seed: int
) -> Callable[[int], Labelled] | None:
    """Epoch (from 0) -> its images and labels; None where all epochs have the same.

    With as many draws as epochs, epoch e takes draw e; with fewer, each code takes one of its own at random.
    """
    images, labels, samples, *_ = training
    if samples is None:
        return None
    means = training.has_means(protocol)
    many, codes = len(samples) >= epochs, torch.arange(len(labels), device=images.device)

    def of_epoch(epoch: int) -> Labelled:
        if many:
            drawn = samples[epoch]
        else:
            which = torch.randint(len(samples), codes.shape, generator=generator(seed, "which sample", epoch))
            drawn = samples[which.to(codes.device), codes]
        if not means:
            return Labelled(drawn, labels)
        return Labelled(torch.cat([images, drawn]), torch.cat([labels, labels]))

    return of_epoch
