"""Packed sets: a grid of small images in each stored image (as NCFM's and IDC's factor, and Grid Distillation)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ldd.errors import UserError
from ldd.images import to_bytes, to_unit_range


def check_packing(side: int, image_size: int) -> None:
    """Raise unless images of a size can be cut into `side` x `side` equal parts of at least 4 pixels.

    Raises:
        UserError: they cannot.
    """
    if side < 1 or image_size % side or image_size // side < 4:
        raise UserError(
            f"packing ({side}): images of {image_size} px cannot be cut into {side} x {side} equal parts of at least "
            "4 px; choose another number, such as 2 or 4"
        )


def shrink(images: Tensor, side: int) -> Tensor:
    """Return small images (n, 3, H / side, W / side): the means of squares of pixels of images (n, 3, H, W)."""
    return F.avg_pool2d(images, side)


def grow(images: Tensor, side: int) -> Tensor:
    """Return images (n, 3, h side, w side) of small ones (n, 3, h, w), bilinearly."""
    return F.interpolate(images, scale_factor=side, mode="bilinear", align_corners=False)


def pack(small: Tensor, side: int) -> Tensor:
    """Return stored images (n, 3, h side, w side), each of `side`^2 small ones (n side^2, 3, h, w), row by row."""
    grid = small.unflatten(0, (-1, side, side)).permute(0, 3, 1, 4, 2, 5)
    whole: Tensor = grid.flatten(4, 5).flatten(2, 3).contiguous()
    return whole


def unpack(images: Tensor, side: int) -> Tensor:
    """Return what students see of stored images (N, 3, H, W) uint8: their parts, grown, (N side^2, 3, H, W) uint8."""
    height, width = images.shape[2] // side, images.shape[3] // side
    parts = images.unflatten(3, (side, width)).unflatten(2, (side, height)).permute(0, 2, 4, 1, 3, 5)
    small = parts.reshape(-1, images.shape[1], height, width)
    return torch.cat([to_bytes(grow(to_unit_range(part), side)) for part in small.split(256)])
