"""Codes that start at real images."""

import torch
from torchvision.transforms.v2.functional import normalize

from ldd.codes import Codes
from ldd.data.real import RealImages
from ldd.errors import UserError
from ldd.initializers.base import Initializer
from ldd.priors import Prior

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of what `normalised_input` does, whatever the data's own normalisation is."""


class RealEncodings(Initializer):
    """Each latent is the encoding of a different real image of its class (LD3M's start).

    Args:
        chunk_size: images per encoder pass.
        normalised_input: quirk of the released code: the encoder is fed images normalised with ImageNet's mean and
            standard deviation (about -2.1 to 2.6) in place of the [-1, 1] it was trained on.
    """

    def __init__(self, chunk_size: int = 64, normalised_input: bool = False) -> None:
        if chunk_size < 1:
            raise UserError(f"initializer.chunk_size ({chunk_size}) must be at least 1")
        self.chunk_size = chunk_size
        self.normalised_input = normalised_input

    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Encode images drawn without replacement per class.

        Raises:
            UserError: a class has fewer images than codes.
        """
        device = codes.labels.device
        for label in codes.labels.unique().tolist():
            rows = (codes.labels == label).nonzero().flatten()
            images = real.draw(label, len(rows), generator)
            if self.normalised_input:
                images = normalize((images + 1) / 2, list(IMAGENET_MEAN), list(IMAGENET_STD))
            for part, chunk in zip(rows.split(self.chunk_size), images.split(self.chunk_size), strict=True):
                codes.set_latents(part, prior.encode(chunk.to(device, codes.dtype)))


class GaussianLatents(Initializer):
    """Each latent is standard normal noise (the ablation of LD3M's Table 8)."""

    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Draw all latents from `generator`."""
        noise = torch.randn(len(codes), *prior.latent_shape, generator=generator)
        codes.set_latents(torch.arange(len(codes), device=codes.labels.device), noise)
