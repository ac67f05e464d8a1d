"""Labelled images, classes, and the facts that a run takes from its data; the same for real and synthetic images."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per-channel statistics of ImageNet for images in [0, 1], as in published code."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Names of image files end in these, as in torchvision's ImageFolder."""


class Labelled(NamedTuple):
    """A batch of images with labels, real or synthetic.

    Attributes:
        images: (N, C, H, W), float32 in [-1, 1] in memory or uint8 as stored.
        labels: (N,), int64 in 0..K-1.
    """

    images: Tensor
    labels: Tensor


class ImageRows:
    """Images (N, ...) at some rows of a store, maybe a file larger than memory; only what is asked for is copied.

    Args:
        store: (M, ...).
        rows: (N,) int64, where each image lies in it.
    """

    def __init__(self, store: Tensor, rows: Tensor) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        """Return N."""
        return len(self.rows)

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.store.device

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return len(self) * self.store[:1].nbytes if len(self) else 0

    def __getitem__(self, places: Tensor) -> Tensor:
        """Return a copy of the images at `places` (n,) int64, (n, ...)."""
        return self.store[self.rows[places]]

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield copies of the images in order, `size` at a time."""
        return (self.store[rows] for rows in self.rows.split(size))

    def to(self, device: torch.device) -> "ImageRows":
        """Return a copy of all of them on a device."""
        return ImageRows(self.store[self.rows].to(device), torch.arange(len(self), device=device))


Images = Tensor | ImageRows
"""Images (N, ...): all of them at hand, or gathered batch by batch."""


def rows_of(images: Images, rows: Tensor) -> ImageRows:
    """Return the images at `rows` (n,) int64, without copying any."""
    if isinstance(images, Tensor):
        return ImageRows(images, rows)
    return ImageRows(images.store, images.rows[rows])


@dataclass(frozen=True)
class ClassInfo:
    """One class of a run.

    Attributes:
        label: its number 0..K-1 in the run.
        id: its number in the original data set (for ImageNet the index in the sorted synset list).
        wnid: WordNet id, or the name of the class's folder.
        name: readable name.
    """

    label: int
    id: int
    wnid: str
    name: str

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DataSpec:
    """Facts of the data that a model needs (linked by the command line).

    Attributes:
        classes: the K classes, ordered by label.
        image_size: height and width in pixels.
        mean, std: per-channel constants of the one normalisation that real and synthetic images share, for
            images in [0, 1] (a network sees `((x + 1) / 2 - mean) / std`).
        fingerprint: hash over the test split (names with sizes or contents), kept in the artefact.
        licence: terms of the data.
    """

    classes: Sequence[ClassInfo]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    licence: str = "unknown"

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def normalise(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1] as networks see them; normalisation happens nowhere else."""
        return normalised(images, self.mean, self.std)

    def as_input(self, images: Tensor) -> Tensor:
        """Stored images (N, C, H, W) uint8 as the networks see them."""
        return self.normalise(to_unit_range(images))


def rows_by_label(labels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each label that is among `labels` (N,), ascending, with its rows (n,) int64, ascending; sorts once."""
    order = labels.argsort(stable=True)
    there, counts = labels[order].unique_consecutive(return_counts=True)
    yield from zip(there.tolist(), order.split(counts.tolist()), strict=True)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return images (..., C, H, W) in [-1, 1] with these constants per channel, which are for images in [0, 1]."""
    shift, scale = (per_channel(numbers, images) for numbers in (mean, std))
    return ((images + 1) / 2 - shift) / scale


def per_channel(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """Return a number for each channel, (C, 1, 1), of the type and on the device of `like`."""
    return _per_channel(numbers, like.device, like.dtype)


@cache
def _per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (C, 1, 1) on the device, sent there once, since the host waits for each number that it sends."""
    with torch.inference_mode(False):  # made in a validation, used in training too
        return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)


def to_unit_range(images: Tensor) -> Tensor:
    """Convert uint8 (N, C, H, W) to float32 in [-1, 1]."""
    images = images.to(torch.float32, copy=True)  # also of float bytes: what follows changes it in place
    return images.div_(127.5).sub_(1)


def saturate(images: Tensor) -> Tensor:
    """Clamp images to [-1, 1]; saturated pixels keep their gradient, so that they can come back."""
    return images + (images.clamp(-1, 1) - images).detach()


def to_bytes(images: Tensor) -> Tensor:
    """Convert float images in [-1, 1] (values outside are clamped) to uint8, rounded to nearest."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
