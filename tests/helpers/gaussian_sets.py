"""Sets of Gaussian codes with a decoder of their own, as a run would export them."""

import torch
from tiny_set import classes_of

from ldd.artefact.identity import identify
from ldd.artefact.set import DistilledSet
from ldd.codes import GaussianCodes
from ldd.distiller.synthesis import Synthesis
from ldd.priors import DeconvolutionPrior
from ldd.runtime.seeding import generator, seeded

SETTINGS = {"size": "small", "image_size": 8, "width": 16, "latent_width": 4}
CONFIG = {"model": {"prior": {"class_path": "ldd.priors.DeconvolutionPrior", "init_args": SETTINGS}}}


def gaussian_set(wnids, seed, *, scale=1.0, config=CONFIG, log_variance=None, **facts):
    """Two Gaussians a class, whose means have a deviation of `scale`."""
    with seeded(seed, "decoder"):
        prior = DeconvolutionPrior(**SETTINGS)
        prior.reset_trained()
    labels = torch.arange(len(wnids)).repeat_interleave(2)
    latents = scale * torch.randn(len(labels), 4, 1, 1, generator=generator(seed))
    nothing = torch.zeros(len(labels), 0, 0), torch.zeros(len(labels), 0)
    spread = {} if log_variance is None else {"log_variance": log_variance}
    codes = GaussianCodes(labels, latents, *nothing, **spread)
    return DistilledSet.from_images(
        Synthesis(codes, prior).draw(),
        labels,
        classes_of(wnids),
        codes=codes.tensors(),
        decoder=prior.trained(),
        prior=identify(prior),
        config=config,
        seed=seed,
        **facts,
    )
