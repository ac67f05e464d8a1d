"""Undoing a normalisation, whose mean and standard deviation are given or recognised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldd.errors import UserError
from ldd.images import IMAGENET_MEAN, IMAGENET_STD

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

KNOWN: Mapping[str, Statistics] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,) * 3, (0.3081,) * 3),
    "fashion-mnist": ((0.2861,) * 3, (0.3530,) * 3),
    "[-1, 1]": ((0.5,) * 3, (0.5,) * 3),
    "[0, 1]": ((0.0,) * 3, (1.0,) * 3),
}
"""Mean and standard deviation per channel of images in [0, 1], from the published code of DC, MTT and GLaD."""

PLAIN = ("[-1, 1]", "[0, 1]")
"""Ranges, not statistics of a data set: they do not tell what networks subtract."""

TOLERANCE = 1e-3
"""How far pixels in [0, 1] may be off by rounding in half precision: a quarter of the step between two bytes."""


@dataclass(frozen=True)
class Undone:
    """Images without their normalisation.

    Attributes:
        images: (N, 3, H, H) float32 in [-1, 1].
        name: of the statistics in `KNOWN`, or `given`.
        mean, std: the statistics.
        clamped: share of the values that lay outside [0, 1] and were moved to its ends.
    """

    images: Tensor
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clamped: float


def undo_normalisation(
    images: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    clamp: bool = False,
) -> Undone:
    """Return images in [-1, 1] from floats that were normalised with (x - mean) / std.

    Statistics that are not given are recognised where exactly one of `KNOWN` can be right: the pixels it gives lie in
    [0, 1] and reach both ends in every channel, as the images of decoders do, which clamp. Pixels that were optimised
    themselves (DC, MTT) leave the range, so theirs must be given.

    Args:
        images: (N, C, H, H) floats, C 1 or 3.
        mean: per channel, one number or three.
        std: the same.
        clamp: move pixels outside [0, 1] to its ends instead of refusing them.

    Raises:
        UserError: values that are not finite, statistics that cannot be recognised, or pixels outside [0, 1].
    """
    if (mean is None) != (std is None):
        raise UserError("mean and std belong together; give both, or none to have them recognised")
    images = images.detach().cpu().float()
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images must be (N, C, H, H) with 1 or 3 channels, got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise UserError("images hold NaN or infinite values; the run that made them diverged")
    images = images.expand(-1, 3, -1, -1)
    if mean is None or std is None:
        name, (mean, std) = _recognise(images)
    else:
        name = "given"
    shift, scale = _three("mean", mean), _three("std", std)
    if min(scale) <= 0:
        raise UserError(f"std ({list(std)}) must be above 0")
    pixels = _pixels(images, (shift, scale))
    outside = ((pixels < -TOLERANCE) | (pixels > 1 + TOLERANCE)).float().mean().item()
    if outside and not clamp:
        raise UserError(
            f"with mean {list(shift)} and std {list(scale)} {100 * outside:.2f} % of the pixels lie outside [0, 1] "
            f"(from {pixels.min():.3g} to {pixels.max():.3g}); give the statistics of the set, or, "
            "where these are right and its pixels were optimised without bounds, --clamp true"
        )
    return Undone(pixels.clamp(0, 1) * 2 - 1, name, shift, scale, outside)


def _recognise(images: Tensor) -> tuple[str, Statistics]:
    found = {}
    ranges = []
    for name, statistics in KNOWN.items():
        pixels = _pixels(images, statistics)
        low, high = pixels.amin((0, 2, 3)), pixels.amax((0, 2, 3))
        ranges.append(f"{name} [{low.min():.3g}, {high.max():.3g}]")
        ends = torch.cat([low, high - 1]).abs()
        if (ends <= TOLERANCE).all():
            found[name] = statistics
    if len(found) == 1:
        return next(iter(found.items()))
    raise UserError(
        f"the normalisation of these images cannot be recognised: {len(found) or 'none'} of the known ones gives "
        f"pixels that fill [0, 1] ({', '.join(ranges)}); give --mean and --std"
    )


def _pixels(images: Tensor, statistics: Statistics) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    return images * std + mean


def _three(what: str, values: Sequence[float]) -> tuple[float, ...]:
    if len(values) not in (1, 3):
        raise UserError(f"{what} ({list(values)}) must be one number or three, one for each channel")
    return tuple(values) * (3 // len(values))
