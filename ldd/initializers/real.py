"""Codes that start at real images."""

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from ldd.codes import Codes, GaussianCodes
from ldd.data.real import RealImages
from ldd.errors import UserError, check_at_least
from ldd.images import IMAGENET_MEAN, IMAGENET_STD, rows_by_label, to_unit_range
from ldd.initializers.base import Initializer
from ldd.priors import Prior


class RealEncodings(Initializer):
    """Each latent is the encoding of a different real image of its class (LD3M's start).

    Args:
        chunk_size: images per encoder pass.
        normalised_input: quirk of the released code: the encoder is fed images normalised with ImageNet's mean and
            standard deviation (about -2.1 to 2.6) in place of the [-1, 1] it was trained on.
        variance_share: `GaussianCodes` start with this share of the variance that all encodings of their class have,
            element by element (0.1 to 0.25 keeps draws near real latents); None leaves their start as it is.

    Raises:
        UserError: a chunk size below 1, or a share that is not above 0.
    """

    def __init__(
        self,
        chunk_size: int = 64,
        normalised_input: bool = False,
        variance_share: float | None = None,
    ) -> None:
        check_at_least(1, "initializer", chunk_size=chunk_size)
        if variance_share is not None and not 0 < variance_share < float("inf"):
            raise UserError(f"initializer.variance_share ({variance_share}) must be a number above 0")
        self.chunk_size = chunk_size
        self.variance_share = variance_share
        self.normalised_input = normalised_input

    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Encode images drawn without replacement per class."""
        for label, rows in rows_by_label(codes.labels):
            images = real.draw(label, len(rows), generator)
            # At once: codes that share parts within a class fit them to the rows that they are given.
            codes.set_latents(rows, self._encode(images, codes, prior))
            if self.variance_share is not None:
                latents = self._encode(to_unit_range(real.of_class(label)), codes, prior)
                variance = self.variance_share * latents.var(0, correction=0)
                as_gaussian(codes).set_log_variance(rows, variance.log().expand(len(rows), *variance.shape))

    def _encode(self, images: Tensor, codes: Codes, prior: Prior) -> Tensor:
        if self.normalised_input:
            images = normalize((images + 1) / 2, list(IMAGENET_MEAN), list(IMAGENET_STD))
        chunks = (chunk.to(codes.labels.device, codes.dtype) for chunk in images.split(self.chunk_size))
        return torch.cat([prior.encode(chunk) for chunk in chunks])


class GaussianLatents(Initializer):
    """Each latent is standard normal noise (the ablation of LD3M's Table 8, and the start of D3's means).

    Args:
        log_variance: `GaussianCodes` start with standard normal log-variances, too (D3 as released); otherwise their
            start stays as it is.
    """

    def __init__(self, log_variance: bool = False) -> None:
        self.log_variance = log_variance

    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Draw all latents from `generator`."""
        rows = torch.arange(len(codes), device=codes.labels.device)
        codes.set_latents(rows, torch.randn(len(codes), *prior.latent_shape, generator=generator))
        if self.log_variance:
            drawn = torch.randn(len(codes), *prior.latent_shape, generator=generator)
            as_gaussian(codes).set_log_variance(rows, drawn)


def as_gaussian(codes: Codes) -> GaussianCodes:
    """Return the codes, known to have a variance."""
    if not isinstance(codes, GaussianCodes):
        raise UserError(
            f"initializer: {type(codes).__name__} have no log-variance to start; use ldd.codes.GaussianCodes, or "
            "leave log_variance and variance_share out"
        )
    return codes
