"""Steps over D3's codes and decoder, small and in float64: three digits, two Gaussians each."""

from functools import partial

import torch

from ldd.codes import GaussianCodes
from ldd.distiller.module import Distiller
from ldd.networks import ConvNet
from ldd.priors import DeconvolutionPrior
from ldd.runtime.seeding import generator

TINY = partial(ConvNet, depth=2, width=4)


def gaussian_model(
    data, objective, seed=0, prior=None, codes=GaussianCodes, dtype=torch.float64, **arguments
):
    """A distiller whose codes, decoder and spread are set."""
    prior = DeconvolutionPrior("small", 32, width=16, latent_width=6) if prior is None else prior
    model = Distiller(
        prior, objective, data.spec, images_per_class=2, codes=codes, seed=seed, **arguments
    ).to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model.prior.reset_trained()
    model.initializer(model.codes, model.prior, data.core_set, generator(5))
    return model


def gradients(model, value):
    """With respect to everything that is trained, by name."""
    named = {f"codes.{name}": p for name, p in model.codes.named_parameters() if p.numel()}
    named |= model.prior.trained()
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def assert_same(found, expected, error=1e-9):
    """Gradients by name, to `error` of each one's largest element (some are zero but for rounding)."""
    assert found.keys() == expected.keys()
    floor = 1e-6 * max(value.abs().max() for value in expected.values() if value.numel())
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= error * max(value.abs().max(), floor), name
        # No condition without diffusion; a bias before a normalisation has hardly any effect.
        assert name == "codes.conditioning" or value.abs().max() > 0, name


def total(parts):
    """Sum of gradients by name."""
    return {name: sum(part[name] for part in parts) for name in parts[0]}
