"""Where real images come from: scikit-learn's digits, or a tree of image files."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import pil_to_tensor

from ldd.classes import ClassInfo
from ldd.errors import UserError
from ldd.seeding import generator

Split = Literal["train", "selection", "test"]
"""Learn from `train`, choose settings on `selection`, report on `test`, which serves nothing else."""

_SPLIT_SEED = 1797  # constant: which images are test images must never follow from a run's seed


@dataclass(frozen=True)
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
    """

    classes: list[ClassInfo]
    licence: str

    @abstractmethod
    def class_items(self, split: Split, label: int) -> list[Item]:
        """The images of one class in one split, in a fixed order.

        Raises:
            UserError: the class has none.
        """

    @abstractmethod
    def read(self, item: Item) -> Tensor:
        """One image at its native size, (3, h, w) uint8 RGB.

        Raises:
            UserError: it cannot be decoded.
        """

    @abstractmethod
    def stamp(self, item: Item) -> str:
        """What tells this image from a changed one without decoding it (size or contents)."""

    def items(self, split: Split) -> list[Item]:
        """All images of one split, class-major."""
        return [item for info in self.classes for item in self.class_items(split, info.label)]

    def fingerprint(self, split: Split) -> str:
        """Hash over the labels, keys and stamps of a split; equal wherever the same files lie."""
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

    licence = "UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak 1998), CC BY 4.0"

    def __init__(self, root: str | None = None) -> None:
        if root is not None:
            raise UserError(
                f"root={root!r} is not used by the digits, which come with scikit-learn; leave it null"
            )
        data = load_digits()
        self._images = torch.from_numpy(data.images * (255 / 16)).round().to(torch.uint8)
        self.classes = [ClassInfo(label=d, id=d, wnid=f"digit-{d}", name=str(d)) for d in range(10)]
        targets = torch.from_numpy(data.target)
        self._members = {d: (targets == d).nonzero().flatten() for d in range(10)}

    def class_items(self, split: Split, label: int) -> list[Item]:
        """Scans of one digit, in the order of scikit-learn's table."""
        members = self._members[label]
        order = torch.randperm(len(members), generator=generator(_SPLIT_SEED, "digits", label))
        first, second = 6 * len(members) // 10, 7 * len(members) // 10
        part = {"train": order[:first], "selection": order[first:second], "test": order[second:]}[split]
        return [Item(key=f"digits/{i:04d}", label=label) for i in members[part].sort().values.tolist()]

    def read(self, item: Item) -> Tensor:
        """One scan, (3, 8, 8) uint8: grey levels 0..16 spread over 0..255."""
        return self._images[int(item.key.removeprefix("digits/"))].expand(3, 8, 8)

    def stamp(self, item: Item) -> str:
        """Hash of the pixels."""
        return hashlib.sha256(self.read(item).contiguous().numpy().tobytes()).hexdigest()


class FolderSource(Source):
    """Image files in `train/<class>/` and `val/<class>/`, as of ImageNet or torchvision's `ImageFolder`.

    The classes are the folders of `train` in sorted order. `val` is the test split; a fixed twentieth of each
    training class (at least one image where there are two) is the selection split. Files are found at any
    depth; grey, palette and CMYK images are converted to RGB, and the EXIF orientation is applied.

    Args:
        root: folder that holds `train` and `val`.

    Raises:
        UserError: the folder, `train` or `val` is missing or has no class.
    """

    licence = "unknown: the terms of the folder's images apply"

    def __init__(self, root: str | None) -> None:
        if root is None:
            raise UserError(
                "root is null, but FolderSource needs the folder that holds train/ and val/; set data.root"
            )
        self._root = Path(root).expanduser()
        for folder in (self._root, self._root / "train", self._root / "val"):
            if not folder.is_dir():
                raise UserError(
                    f"root={root!r}: there is no folder {folder}; images are expected in "
                    "<root>/train/<class>/ and <root>/val/<class>/"
                )
        names = sorted(entry.name for entry in os.scandir(self._root / "train") if entry.is_dir())
        if not names:
            raise UserError(
                f"root={root!r}: {self._root / 'train'} has no class folders; one folder per class is needed"
            )
        self.classes = [ClassInfo(label=i, id=i, wnid=name, name=name) for i, name in enumerate(names)]

    def class_items(self, split: Split, label: int) -> list[Item]:
        """Files of one class, sorted by path."""
        folder = self._root / ("val" if split == "test" else "train") / self.classes[label].wnid
        paths = sorted(
            (Path(parent, name).relative_to(self._root).as_posix())
            for parent, _, names in os.walk(folder, followlinks=True)
            for name in names
            if name.lower().endswith(IMG_EXTENSIONS)
        )
        if not paths:
            raise UserError(
                f"class {self.classes[label].wnid!r} has no images in {folder}; "
                f"add some ({', '.join(IMG_EXTENSIONS)}), or choose other classes with data.subset"
            )
        if split != "test":
            # The key names the class, not the label: a subset must not move images between splits.
            order = torch.randperm(
                len(paths), generator=generator(_SPLIT_SEED, "folder", self.classes[label].wnid)
            )
            held_out = max(len(paths) // 20, min(1, len(paths) - 1))
            chosen = order[:held_out] if split == "selection" else order[held_out:]
            paths = [paths[i] for i in chosen.sort().values.tolist()]
        return [Item(key=path, label=label) for path in paths]

    def read(self, item: Item) -> Tensor:
        """One decoded file, (3, h, w) uint8 RGB, upright."""
        path = self._root / item.key
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):  # Pillow would clip these to white without a word
                    raise UserError(f"{path} has more than 8 bits per channel; convert it to 8 bits")
                rgb = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"cannot read image {path}: {error}; repair it or remove it from the folder"
            ) from error
        pixels: Tensor = pil_to_tensor(rgb)
        return pixels

    def stamp(self, item: Item) -> str:
        """The file's size in bytes."""
        return str((self._root / item.key).stat().st_size)
