"""Differentiable siamese augmentation (DSA, arXiv 2102.08259): real and synthetic images change alike.

What is drawn (`Draws`, on the CPU) is apart from what is applied, so that two sets of images can share it.
All operations work on normalised images: what moves in from outside an image is 0, the mean colour.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from ldd.errors import UserError
from ldd.runtime.precision import without_autocast

FLIP_PROBABILITY = 0.5
MAX_SCALE = 1.2  # each axis is scaled by a factor in [1 / MAX_SCALE, MAX_SCALE]
MAX_ROTATION = 15.0  # degrees, to either side
CROP_SHARE = 0.125  # largest shift to either side, as a share of the image's side
CUTOUT_SHARE = 0.5  # side of the square, as a share of the image's side
BRIGHTNESS = 1.0  # width of the range of what is added
SATURATION = 2.0  # largest factor around the mean over channels; the smallest is 0
CONTRAST = 0.5  # smallest factor around the image's mean; the largest is 1 more
NUM_UNIFORMS = 3  # what the operation with the most parameters (colour) takes


@dataclass(frozen=True)
class Draws:
    """Changes of n images, on the CPU: `strategy` (n,) int64, and `uniform` (n, 3) in [0, 1) for its parameters."""

    strategy: Tensor
    uniform: Tensor

    def __len__(self) -> int:
        return len(self.strategy)

    def __getitem__(self, index: Tensor) -> "Draws":
        """Return the draws at `index` (m,); with labels as the index, every image takes its class's draws."""
        index = index.cpu()
        return Draws(self.strategy[index], self.uniform[index])


class SiameseAugmentation:
    """Applies to each image one of the `strategies`, differentiably in the images, any number of times.

    Siamese use, one operation and one set of parameters per class:
    `draws = augmentation.draw(num_classes, generator, one_strategy=False)`, then
    `augmentation(real, draws[real_labels])` and `augmentation(synthetic, draws[labels])`.
    Training a classifier: `augmentation(batch, augmentation.draw(len(batch), generator, one_strategy=True))`.

    Args:
        strategies: names out of `color`, `crop`, `cutout`, `flip`, `scale`, `rotate`; empty applies nothing.

    Raises:
        UserError: an unknown strategy.
    """

    def __init__(
        self, strategies: Sequence[str] = ("color", "crop", "cutout", "flip", "scale", "rotate")
    ) -> None:
        if isinstance(strategies, str):
            raise UserError(f"augmentation is the text {strategies!r}; give a list, as in [{strategies!r}]")
        for name in strategies:
            if name not in OPERATIONS:
                raise UserError(f"augmentation: unknown {name!r}; choose from {', '.join(OPERATIONS)}")
        self.strategies = tuple(strategies)

    def draw(self, n: int, generator: torch.Generator, *, one_strategy: bool) -> Draws:
        """Draw for n images (or classes).

        Args:
            n: how many.
            generator: CPU generator.
            one_strategy: one strategy for all n, each with its own parameters; False gives each its own.
        """
        strategy = torch.randint(
            max(len(self.strategies), 1), (1 if one_strategy else n,), generator=generator
        )
        return Draws(strategy.expand(n), torch.rand(n, NUM_UNIFORMS, generator=generator))

    @without_autocast()
    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return images (n, C, H, W), each changed by its own draw, of the same shape and type.

        Half-precision images are changed in float32, and autocast is left: sampling positions need the precision.
        """
        assert len(images) == len(draws)
        if not self.strategies or len(images) == 0:
            return images
        x = images.to(torch.promote_types(images.dtype, torch.float32))
        uniform = draws.uniform.to(x.device, x.dtype, non_blocking=True)
        counts = torch.bincount(draws.strategy, minlength=len(self.strategies)).tolist()
        if max(counts) == len(x):
            return OPERATIONS[self.strategies[counts.index(len(x))]](x, uniform).to(images.dtype)
        by_strategy = torch.argsort(draws.strategy, stable=True)
        back = torch.argsort(by_strategy).to(x.device, non_blocking=True)
        by_strategy = by_strategy.to(x.device, non_blocking=True)
        groups = zip(
            self.strategies,
            torch.split(x[by_strategy], counts),
            torch.split(uniform[by_strategy], counts),
            strict=True,
        )
        changed = torch.cat([OPERATIONS[name](part, numbers) for name, part, numbers in groups if len(part)])
        return changed[back].to(images.dtype)


# The operations: images (n, C, H, W) and uniform numbers (n, 3), of which each takes as many as it needs.


def color(x: Tensor, uniform: Tensor) -> Tensor:
    """Change brightness, then saturation around the mean over channels, then contrast around the image's mean."""
    brightness, saturation, contrast = uniform[:, :, None, None, None].unbind(1)
    x = x + (brightness - 0.5) * BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (saturation * SATURATION) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + CONTRAST) + mean


def crop(x: Tensor, uniform: Tensor) -> Tensor:
    """Shift by whole pixels, filled with zero: a crop of the padded image."""
    height, width = x.shape[2:]
    down, right = (
        torch.floor(uniform[:, axis, None] * (2 * largest + 1)).long() - largest
        for axis, largest in enumerate((_share(height, CROP_SHARE), _share(width, CROP_SHARE)))
    )
    rows = torch.arange(height, device=x.device) + down
    columns = torch.arange(width, device=x.device) + right
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    rows, columns = rows.clamp(0, height - 1)[:, None, :, None], columns.clamp(0, width - 1)[:, None, None]
    return x.gather(2, rows.expand_as(x)).gather(3, columns.expand_as(x)) * inside[:, None]


def cutout(x: Tensor, uniform: Tensor) -> Tensor:
    """Set a square to zero; its centre may lie anywhere in the image, so the border may cut it."""
    rows, columns = (_square_side(uniform[:, axis], size) for axis, size in enumerate(x.shape[2:]))
    return x * ~(rows[:, :, None] & columns[:, None])[:, None]


def _square_side(uniform: Tensor, size: int) -> Tensor:
    """Return (n, size) bool, the positions along one axis that the square covers, for numbers (n,)."""
    side = _share(size, CUTOUT_SHARE)
    centre = torch.floor(uniform * (size + 1 - side % 2))[:, None]
    offset = torch.arange(size, device=uniform.device) - centre + side // 2
    return (offset >= 0) & (offset < side)


def flip(x: Tensor, uniform: Tensor) -> Tensor:
    """Mirror left to right, or leave as it is."""
    return torch.where(uniform[:, 0, None, None, None] < FLIP_PROBABILITY, x.flip(3), x)


def scale(x: Tensor, uniform: Tensor) -> Tensor:
    """Stretch or squeeze each axis on its own around the centre."""
    factor = uniform[:, :2] * (MAX_SCALE - 1 / MAX_SCALE) + 1 / MAX_SCALE
    return _resample(x, torch.diag_embed(factor))


def rotate(x: Tensor, uniform: Tensor) -> Tensor:
    """Turn around the centre."""
    angle = (uniform[:, 0] * 2 - 1) * math.radians(MAX_ROTATION)
    cosine, sine = angle.cos(), angle.sin()
    return _resample(x, torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2))


def _resample(x: Tensor, matrix: Tensor) -> Tensor:
    """Bilinear samples at positions `matrix` (n, 2, 2) times (x, y) in [-1, 1]; zero outside the image."""
    grid = F.affine_grid(F.pad(matrix, (0, 1)), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _share(size: int, share: float) -> int:
    return int(size * share + 0.5)


OPERATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}
)
"""The six strategies by their published names."""
