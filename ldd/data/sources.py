"""Where real images come from: the interface of a source, and scikit-learn's digits."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.runtime.seeding import generator

Split = Literal["train", "selection", "test"]
"""Learn from `train`, choose settings on `selection`, report on `test`, which serves nothing else."""

SPLIT_SEED = 1797
"""Seed of every fixed split: which images are test images must never follow from a run's seed."""


class UnreadableImage(UserError):
    """One image that cannot be decoded; code that decodes many may leave it out instead."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Attributes:
        key: path relative to the root, or id; the same wherever the data lie.
        label: 0..K-1.
    """

    key: str
    label: int


class Source(ABC):
    """A labelled set of real images in three fixed, disjoint splits.

    Subclasses are final and are constructed with the data's root folder (None where there is none).

    Attributes:
        classes: the K classes, ordered by label.
        licence: terms of the data.
        place: where the images lie, for messages.
        in_memory: whether an image is at hand without reading a file.
    """

    classes: list[ClassInfo]
    licence: str
    place: str = "the source"
    in_memory: bool = False

    @abstractmethod
    def class_items(self, split: Split, label: int) -> list[Item]:
        """Return the images of one class in one split, in a fixed order.

        Raises:
            UserError: the class has none.
        """

    @abstractmethod
    def read(self, item: Item) -> Tensor:
        """Read one image at its native size, (3, h, w) uint8 RGB.

        Raises:
            UnreadableImage: it cannot be decoded.
        """

    @abstractmethod
    def stamp(self, item: Item) -> str:
        """Return what tells this image from another without decoding it, wherever it lies (size or contents)."""

    def revision(self, item: Item) -> str:
        """Return what tells this image from an edited one on this machine, for caches; by default the stamp."""
        return self.stamp(item)

    def sha256(self, item: Item) -> str:
        """Return the hex digest of the image's file, or of its pixels where there is no file."""
        return hashlib.sha256(self.read(item).contiguous().numpy().tobytes()).hexdigest()

    def items(self, split: Split) -> list[Item]:
        """Return all images of one split, class-major."""
        return [item for info in self.classes for item in self.class_items(split, info.label)]

    def fingerprint(self, split: Split) -> str:
        """Return a hash over the labels, keys and stamps of a split; equal wherever the same files lie.

        Of files the stamp is the size, so this is quick; `ldd.data.fingerprints.fingerprint` is over what is in them.
        """
        digest = hashlib.sha256()
        for item in self.items(split):
            digest.update(f"{item.label}\t{item.key}\t{self.stamp(item)}\n".encode())
        return digest.hexdigest()[:32]


SourceFactory = Callable[[str | None], Source]
"""Builds a source from the root folder; in YAML the class's dotted name."""


class DigitsSource(Source):
    """The 1,797 handwritten digits that come with scikit-learn: 8 x 8 scans with 17 grey levels.

    The split is fixed per class: 60 % train, 10 % selection, 30 % test.

    Args:
        root: must be None; the images lie in the scikit-learn package.

    Raises:
        UserError: a root was given.
    """

    in_memory = True
    licence = "UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak 1998), CC BY 4.0"

    def __init__(self, root: str | None = None) -> None:
        if root is not None:
            raise UserError(
                f"root={root!r} is not used by the digits, which come with scikit-learn; leave it null"
            )
        from sklearn.datasets import load_digits  # here: it takes a second, and other data do without

        data = load_digits()
        self._images = torch.from_numpy(data.images * (255 / 16)).round().to(torch.uint8)
        self.classes = [ClassInfo(label=d, id=d, wnid=f"digit-{d}", name=str(d)) for d in range(10)]
        targets = torch.from_numpy(data.target)
        self._members = {d: (targets == d).nonzero().flatten() for d in range(10)}

    def class_items(self, split: Split, label: int) -> list[Item]:
        """Return scans of one digit, in the order of scikit-learn's table."""
        members = self._members[label]
        order = torch.randperm(len(members), generator=generator(SPLIT_SEED, "digits", label))
        first, second = 6 * len(members) // 10, 7 * len(members) // 10
        part = {"train": order[:first], "selection": order[first:second], "test": order[second:]}[split]
        return [Item(key=f"digits/{i:04d}", label=label) for i in members[part].sort().values.tolist()]

    def read(self, item: Item) -> Tensor:
        """Return one scan, (3, 8, 8) uint8: grey levels 0..16 spread over 0..255."""
        return self._images[int(item.key.removeprefix("digits/"))].expand(3, 8, 8)

    def stamp(self, item: Item) -> str:
        """Return a hash of the pixels."""
        return self.sha256(item)
