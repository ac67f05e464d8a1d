"""Codes that start at real images."""

import torch

from ldd.codes import Codes
from ldd.data.real import RealImages
from ldd.errors import UserError
from ldd.initializers.base import Initializer
from ldd.priors import Prior


class RealEncodings(Initializer):
    """Each latent is the encoding of a different real image of its class (LD3M's start).

    Args:
        chunk_size: images per encoder pass.
    """

    def __init__(self, chunk_size: int = 64) -> None:
        if chunk_size < 1:
            raise UserError(f"initializer.chunk_size ({chunk_size}) must be at least 1")
        self.chunk_size = chunk_size

    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Encode images drawn without replacement per class.

        Raises:
            UserError: a class has fewer images than codes.
        """
        device = codes.labels.device
        for label in codes.labels.unique().tolist():
            rows = (codes.labels == label).nonzero().flatten()
            images = real.draw(label, len(rows), generator)
            for part, chunk in zip(rows.split(self.chunk_size), images.split(self.chunk_size), strict=True):
                codes.set_latents(part, prior.encode(chunk.to(device, codes.dtype)))


class GaussianLatents(Initializer):
    """Each latent is standard normal noise (the ablation of LD3M's Table 8)."""

    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Draw all latents from `generator`."""
        noise = torch.randn(len(codes), *prior.latent_shape, generator=generator)
        codes.set_latents(torch.arange(len(codes), device=codes.labels.device), noise)
