"""Priors: from latents and class conditions to images; frozen, but for the decoders that are trained with the codes."""

from ldd.priors.autoencoder import AutoencoderPrior
from ldd.priors.base import Guide, Prior
from ldd.priors.compiling import compile_networks
from ldd.priors.deconvolution import DeconvolutionPrior
from ldd.priors.direct import DirectPrior
from ldd.priors.identity import identify
from ldd.priors.latent_diffusion import LatentDiffusionPrior
from ldd.priors.neck import NeckPrior
from ldd.priors.pixel import PixelPrior
from ldd.priors.reverse import Schedule, Skip, Step, ddim_invert, ddim_sample, modified_reverse

__all__ = [
    "AutoencoderPrior",
    "DeconvolutionPrior",
    "DirectPrior",
    "Guide",
    "LatentDiffusionPrior",
    "NeckPrior",
    "PixelPrior",
    "Prior",
    "Schedule",
    "Skip",
    "Step",
    "compile_networks",
    "ddim_invert",
    "ddim_sample",
    "identify",
    "modified_reverse",
]
