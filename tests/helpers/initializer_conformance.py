"""Conformance suite of `Initializer`: a new initialiser's test class inherits it and gains these tests.

class TestMyInitializer(InitializerConformance):
    @pytest.fixture
    def initializer(self):
        return MyInitializer(...)
"""

import pytest
import small_world
import torch

from ldd.codes import GaussianCodes, PointCodes
from ldd.errors import UserError
from ldd.initializers import Initializer
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior, NeckPrior
from ldd.runtime.seeding import generator

PER_CLASS = 2


def core_set(per_class=8):
    """Striped noise in three classes, which knows its classes."""
    images = small_world.real(per_class, 1)
    images.spec = small_world.SPEC
    return images


def codes_for(prior, kind=PointCodes, per_class=PER_CLASS):
    labels = torch.arange(3).repeat_interleave(per_class)
    noise = torch.randn(len(labels), *prior.latent_shape, generator=generator(0, "noise"))
    conditioning = torch.randn(len(labels), 1, 16, generator=generator(0, "conditioning"))
    dtype = next(prior.parameters()).dtype
    return kind(labels, torch.full_like(noise, torch.nan), conditioning, noise).to(dtype)


class InitializerConformance:
    """What the distiller relies on.

    Attributes:
        needs_diffusion: a prior without a diffusion model is refused.
        needs_encoder: a prior without encoder is refused.
    """

    needs_diffusion = True
    needs_encoder = True

    @pytest.fixture
    def initializer(self) -> Initializer:
        raise NotImplementedError

    @pytest.fixture
    def prior(self, tiny_prior_path) -> LatentDiffusionPrior:
        rows = {info.wnid: 2 + info.label for info in small_world.CLASSES}
        return LatentDiffusionPrior(str(tiny_prior_path), num_steps=0, classes=rows).double()

    @pytest.mark.parametrize("kind", [PointCodes, GaussianCodes])
    def test_sets_all_latents_and_nothing_else(self, initializer, prior, kind):
        codes, real = codes_for(prior, kind), core_set()
        before = {name: value.clone() for name, value in codes.state_dict().items()}
        frozen = {name: value.clone() for name, value in prior.state_dict().items()}
        state = torch.random.get_rng_state()
        initializer(codes, prior, real, generator(0, "initial"))
        assert torch.equal(state, torch.random.get_rng_state())
        assert codes.latents.isfinite().all()
        assert codes.latents.requires_grad
        assert codes.latents.is_leaf
        assert len(codes.latents.flatten(1).unique(dim=0)) == len(codes)
        for name, value in codes.state_dict().items():
            assert name == "latents" or torch.equal(value, before[name]), name
        assert all(torch.equal(value, frozen[name]) for name, value in prior.state_dict().items())
        assert not any(parameter.requires_grad for parameter in prior.parameters())

    def test_the_generator_decides(self, initializer, prior):
        made = []
        for seed in (0, 0, 1):
            codes = codes_for(prior)
            initializer(codes, prior, core_set(), generator(seed, "initial"))
            made.append(codes.latents.detach())
        assert torch.equal(made[0], made[1])
        assert not torch.allclose(made[0], made[2])

    def test_a_prior_that_lacks_something_is_refused_or_served(self, initializer, tiny_prior_path):
        for prior, lacking, text in (
            (AutoencoderPrior(str(tiny_prior_path)), self.needs_diffusion, "no diffusion model"),
            (
                NeckPrior(str(tiny_prior_path), width=16),
                self.needs_diffusion or self.needs_encoder,
                "no diffusion model|no encoder",
            ),
        ):
            codes = codes_for(prior)
            if lacking:
                with pytest.raises(UserError, match=text):
                    initializer(codes, prior, core_set(), generator(0))
                assert codes.latents.isnan().all()
            else:
                initializer(codes, prior, core_set(), generator(0))
                assert codes.latents.isfinite().all()
