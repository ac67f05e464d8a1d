"""The set that a student learns: images with hard or soft labels, and draws of them where codes have a spread."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ldd.artefact.soft_labels import DENSE, INDICES, NAMES, VALUES, restored
from ldd.errors import UserError
from ldd.images import Labelled
from ldd.runtime.devices import free_bytes, in_bytes, resident, send
from ldd.runtime.seeding import generator
from ldd.students.protocol import Protocol

if TYPE_CHECKING:
    from ldd.artefact.set import DistilledSet

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
        """Return the cost of epochs whose last batch may be smaller."""
        return cls(epochs, images_per_epoch, epochs * -(-images_per_epoch // batch_size), decodes)

    def to_dict(self) -> dict[str, int]:
        """Return plain values, with the number of `images` seen in all."""
        return {**asdict(self), "images": self.epochs * self.images_per_epoch}


class Size(NamedTuple):
    """How much a student learns from.

    Attributes:
        images: N.
        draws: P, the draws of each code; 0 where the images are all there is.
        soft: labels are probabilities.
        crops: every crop has a label in store.
    """

    images: int
    draws: int = 0
    soft: bool = False
    crops: bool = False

    def has_means(self, protocol: Protocol) -> bool:
        """Return whether the images themselves take part in an epoch."""
        if not self.draws or protocol.mean_images == "always":
            return True
        return protocol.mean_images == "soft" and self.soft

    def cost(self, protocol: Protocol, epochs: int, batch_size: int) -> TrainingCost:
        """Return the work of training one student."""
        if not self.draws:
            return TrainingCost.of(epochs, self.images, batch_size)
        means = self.has_means(protocol)
        decodes = self.images * (self.draws + means)
        return TrainingCost.of(epochs, self.images * (1 + means), batch_size, decodes)


class Draws:
    """Draws of the codes of a set, P of each, made when they are first looked at.

    Args:
        count: P.
        make: returns a draw by its number, (N, 3, H, W) uint8.
        held: whether all of them are kept; else each is made when an epoch asks for it, and kept until another is.
    """

    def __init__(self, count: int, make: Callable[[int], Tensor], *, held: bool = True) -> None:
        self.count, self.held = count, held
        self._make = make
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Return P."""
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        """Return one draw, (N, 3, H, W) uint8; beyond P one is made for a part of the codes that takes more."""
        if self.held and number < self.count:
            return self.images[number]
        if self._last is None or self._last[0] != number:
            self._last = None  # before the next is made
            self._last = number, self._make(number)
        return self._last[1]

    @cached_property
    def images(self) -> Tensor:
        """All of them, (P, N, 3, H, W) uint8."""
        first = self._make(0)
        drawn = torch.empty(self.count, *first.shape, dtype=first.dtype)
        for number in range(self.count):
            drawn[number] = self._make(number) if number else first
        return drawn

    def to(self, device: torch.device) -> "Draws":
        """Return these: a draw is sent when an epoch asks for it."""
        return self


class TrainingSet(NamedTuple):
    """Images, labels and draws.

    Attributes:
        images: (N, 3, H, W) uint8; mean images where there are draws.
        labels: (N,) int64, or (N, K) probabilities.
        samples: (P, N, 3, H, W) uint8, P draws of each code, or `Draws` that are made in their epochs, or None.
        crop_seed: 0-d int64, what order and crops follow from where each crop has a label in store, or None.
        crop_labels: (E, N, K) stored labels of the crops, or (E, N, k) the largest probabilities, or None.
        crop_classes: (E, N, k) int, whose these are, or None.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor | Draws | None = None
    crop_seed: Tensor | None = None
    crop_labels: Tensor | None = None
    crop_classes: Tensor | None = None

    def to(self, device: torch.device) -> "TrainingSet":
        """Return the same on a device, but for images that would fill it: these stay, and are sent in batches."""
        there = (None if part is None else part.to(device) for part in self[1:])
        return TrainingSet(resident(self.images, device), *there)  # type: ignore[arg-type]

    def with_crops(self, seed: int, stored: Mapping[str, Tensor]) -> "TrainingSet":
        """Return the same with stored labels of its crops, which follow from `seed` (`ldd.labels.crops.CropLabels`)."""
        first, *rest = (stored[name] for name in NAMES if name in stored)
        return self._replace(
            crop_seed=torch.tensor(seed), crop_labels=first, crop_classes=rest[0] if rest else None
        )

    def in_store(self, num_classes: int, epoch: int) -> Labelled:
        """Return images and labels (N, K) float32 of an epoch's crops; only where these are in store."""
        assert self.crop_labels is not None
        tensors = {DENSE: self.crop_labels[epoch]}
        if self.crop_classes is not None:
            tensors = {VALUES: self.crop_labels[epoch], INDICES: self.crop_classes[epoch]}
        found = restored(tensors, num_classes)
        assert found is not None
        return Labelled(self.images, found.float())

    @property
    def size(self) -> "Size":
        """How much there is to learn from."""
        draws = 0 if self.samples is None else len(self.samples)
        return Size(len(self.images), draws, self.labels.is_floating_point(), self.crop_labels is not None)


def draws_for(
    protocol: Protocol,
    distilled: "DistilledSet",
    sampler: Sampler | None,
    seed: int,
    *,
    must_fit: bool = True,
) -> Draws | None:
    """Return the draws of a set that a protocol asks for, or None; draw p follows from (seed, p)."""
    if not protocol.draws_from(distilled):
        return None
    if sampler is None:
        raise UserError(
            f"the set's codes have a spread, of which protocol {protocol.id} needs draws (samples: "
            f"{protocol.samples}), but nothing draws them; give a sampler, or a protocol with samples: 0"
        )
    return draws_of(
        protocol, distilled, lambda number: sampler(generator(seed, "sample", number)), must_fit=must_fit
    )


def draws_of(
    protocol: Protocol, distilled: "DistilledSet", make: Callable[[int], Tensor], *, must_fit: bool = True
) -> Draws:
    """Return as many draws as students need for a set with its numbers of images; `make` returns one by its number."""
    epochs, _ = protocol.budget(distilled.counts)
    count = protocol.num_draws(epochs)
    needed, free = count * distilled.images.numel(), free_bytes(torch.device("cpu"))
    held = needed <= _SHARE_OF_FREE_MEMORY * free
    if must_fit and not held and count < epochs:  # an epoch takes some of all draws
        raise UserError(
            f"protocol {protocol.id}: samples ({protocol.samples}) means {count} draws of {len(distilled.images)} "
            f"codes, {in_bytes(needed)}, but {in_bytes(free)} of memory are free; give a number of samples below "
            f"{int(_SHARE_OF_FREE_MEMORY * free * count / needed)}"
        )
    return Draws(count, make, held=held)


def by_epoch(
    training: TrainingSet, protocol: Protocol, epochs: int, seed: int, num_classes: int | None = None
) -> Callable[[int], Labelled] | None:
    """Return a function from an epoch (from 0) to its images and labels; None where all epochs have the same.

    Where crops have labels in store, an epoch has its own, of `num_classes`. With as many draws as epochs, epoch e
    takes draw e; with fewer, each code takes one of its draws at random.
    """
    images, labels, samples, *_ = training
    if training.crop_labels is not None and num_classes is not None:
        return partial(training.in_store, num_classes)
    if samples is None:
        return None
    means = training.size.has_means(protocol)
    many, codes = len(samples) >= epochs, torch.arange(len(labels), device=labels.device)

    def of_epoch(epoch: int) -> Labelled:
        if many:
            drawn = send(samples[epoch], labels.device)
        else:
            assert isinstance(samples, Tensor)
            which = torch.randint(len(samples), codes.shape, generator=generator(seed, "which sample", epoch))
            drawn = samples[which.to(codes.device), codes]
        if not means:
            return Labelled(drawn, labels)
        return Labelled(torch.cat([send(images, drawn.device), drawn]), torch.cat([labels, labels]))

    return of_epoch
