"""Frozen priors: from latents and class conditions to images."""

from ldd.priors.autoencoder import AutoencoderPrior
from ldd.priors.base import Guide, Prior
from ldd.priors.direct import DirectPrior
from ldd.priors.latent_diffusion import LatentDiffusionPrior
from ldd.priors.pixel import PixelPrior
from ldd.priors.reverse import Schedule, Skip, Step, ddim_invert, ddim_sample, modified_reverse

__all__ = [
    "AutoencoderPrior",
    "DirectPrior",
    "Guide",
    "LatentDiffusionPrior",
    "PixelPrior",
    "Prior",
    "Schedule",
    "Skip",
    "Step",
    "ddim_invert",
    "ddim_sample",
    "modified_reverse",
]
