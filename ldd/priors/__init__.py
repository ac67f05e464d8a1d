"""Priors: from latents and class conditions to images; frozen, but for the decoders that are trained with the codes."""

from ldd.priors.autoencoder import AutoencoderPrior
from ldd.priors.base import DirectPrior, Guide, Prior, StateGuide, compile_networks
from ldd.priors.consistency import ConsistencySchedule
from ldd.priors.deconvolution import DeconvolutionPrior
from ldd.priors.latent_diffusion import LatentDiffusionPrior
from ldd.priors.neck import NeckPrior
from ldd.priors.pixel import PixelPrior
from ldd.priors.reverse import Moment, Skip, ddim_invert, ddim_sample, modified_reverse
from ldd.priors.schedule import DiffusionSchedule, FlowSchedule, Level, Schedule, Step

__all__ = [
    "AutoencoderPrior",
    "ConsistencySchedule",
    "DeconvolutionPrior",
    "DiffusionSchedule",
    "DirectPrior",
    "FlowSchedule",
    "Guide",
    "LatentDiffusionPrior",
    "Level",
    "Moment",
    "NeckPrior",
    "PixelPrior",
    "Prior",
    "Schedule",
    "Skip",
    "StateGuide",
    "Step",
    "compile_networks",
    "ddim_invert",
    "ddim_sample",
    "modified_reverse",
]
