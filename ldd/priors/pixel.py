"""Pixels as codes, without a generator."""

from typing import final

from torch import Tensor

from ldd.errors import UserError
from ldd.priors.base import DirectPrior


@final
class PixelPrior(DirectPrior):
    """Latents are the images (3, H, W) in [-1, 1]; the baseline without a generator.

    Args:
        image_size: height and width in pixels.

    Raises:
        UserError: image_size below 1.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        if image_size < 1:
            raise UserError(f"image_size={image_size} must be at least 1")
        self.image_size = image_size
        self.latent_shape = (3, image_size, image_size)
        self.licence = "none (no weights)"
        self.eval()

    def encode(self, images: Tensor) -> Tensor:
        """Return the images, detached."""
        return images.detach()

    def decode(self, latents: Tensor) -> Tensor:
        """Return the latents."""
        return latents
