"""Random shifts, turns and zooms of training images, for priors trained on few images."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ldd.errors import UserError
from ldd.runtime.precision import without_autocast


@dataclass(frozen=True)
class AffineViews:
    """Shifts, turns and zooms each image by its own random amount; edge pixels fill what comes into view.

    Args:
        shift: largest shift in each direction, as a share of the side, in [0, 1).
        rotation: largest turn in degrees, either way.
        zoom: largest relative change of size, either way, in [0, 1).
        flip: mirror half of the images (not for digits or letters).

    Raises:
        UserError: an amount out of range.
    """

    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        for name, value, top in (
            ("shift", self.shift, 1),
            ("rotation", self.rotation, 180),
            ("zoom", self.zoom, 1),
        ):
            if not 0 <= value < top:
                raise UserError(
                    f"augmentation.{name}={value} is out of range; use a number from 0 to below {top}"
                )

    @without_autocast()
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed images (N, C, H, W), of the same shape; `generator` is on the CPU."""
        n = len(images)
        amount = 2 * torch.rand(4, n, generator=generator) - 1
        mirror = torch.where(amount[3] < 0, -1.0, 1.0) if self.flip else torch.ones(n)
        angle = amount[2] * math.radians(self.rotation)
        scale = 1 + self.zoom * (2 * torch.rand(n, generator=generator) - 1)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        # affine_grid's coordinates run from -1 to 1 over the side, hence the factor 2.
        across, down = 2 * self.shift * amount[0], 2 * self.shift * amount[1]
        theta = torch.stack([cos * mirror, -sin, across, sin * mirror, cos, down], dim=1).view(-1, 2, 3)
        grid = affine_grid(theta.to(images), list(images.shape), align_corners=False)
        return grid_sample(images, grid, padding_mode="border", align_corners=False)
