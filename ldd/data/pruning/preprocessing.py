"""How a pre-trained classifier sees an image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from ldd.errors import UserError

Size = int | tuple[int, int]
"""Short side in pixels, or height and width (the aspect ratio is then squashed)."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalise.

    Attributes:
        resize: short side in pixels, or (height, width).
        crop: side of the centre crop in pixels.
        mean, std: per channel, for images in [0, 1].
        interpolation: of the resize, which is antialiased and works on bytes.

    Raises:
        UserError: the crop is larger than the image, or a number is outside its range.
    """

    resize: Size
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        sides = (self.resize,) if isinstance(self.resize, int) else self.resize
        if min(self.crop, *sides) < 1:
            raise UserError(f"resize={self.resize}, crop={self.crop}: sizes are pixels, 1 or more")
        if self.crop > min(sides):
            raise UserError(
                f"crop={self.crop} is larger than resize={self.resize}; crop at most {min(sides)}, or resize to more"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(
                f"mean={list(self.mean)}, std={list(self.std)}: three numbers each, and every std above 0"
            )

    def pixels(self, image: Tensor) -> Tensor:
        """(3, h, w) uint8 -> (3, crop, crop) uint8."""
        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        resized = resize(image, size, interpolation=InterpolationMode(self.interpolation), antialias=True)
        square: Tensor = center_crop(resized, [self.crop, self.crop])
        return square

    def normalise(self, pixels: Tensor) -> Tensor:
        """(N, 3, crop, crop) uint8 -> float32 as the classifier takes it."""
        mean = pixels.new_tensor(self.mean, dtype=torch.float32).view(-1, 1, 1)
        std = pixels.new_tensor(self.std, dtype=torch.float32).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def __str__(self) -> str:
        """One line, the same for the same pixels."""
        size = self.resize if isinstance(self.resize, int) else "{}x{}".format(*self.resize)
        return (
            f"resize {size} ({self.interpolation}, antialiased, on bytes), centre crop {self.crop}, "
            f"mean {list(self.mean)}, std {list(self.std)}"
        )
