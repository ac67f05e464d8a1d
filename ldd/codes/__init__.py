"""Codes, which are what is distilled: points, grids, Gaussians or products in latent space."""

from ldd.codes.located import (
    CodeBatch,
    Codes,
    CodesFactory,
    GaussianCodes,
    PackedCodes,
    PointCodes,
    Variance,
    clamp,
)
from ldd.codes.spectral import PARTS, SpectralCodes
from ldd.codes.stored import stored_codes

__all__ = (
    "PARTS",
    "CodeBatch",
    "Codes",
    "CodesFactory",
    "GaussianCodes",
    "PackedCodes",
    "PointCodes",
    "SpectralCodes",
    "Variance",
    "clamp",
    "stored_codes",
)
