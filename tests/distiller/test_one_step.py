"""Distilling through a prior of one step: what is learned is Z, the noise, the condition, or any of them."""

from functools import partial

import pytest
import torch
from small_runs import fit, matching

from ldd.codes import GaussianCodes, PointCodes
from ldd.distiller.module import Distiller
from ldd.distiller.synthesis import Quirks, StoredSampler
from ldd.errors import UserError
from ldd.initializers import GaussianLatents
from ldd.objectives import (
    CharacteristicMatching,
    DistributionMatching,
    GradientMatching,
    MaximumMeanDiscrepancy,
    TrajectoryMatching,
)
from ldd.priors import LatentDiffusionPrior

NAMES = ("latents", "noise", "conditioning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_prior_folder):
    return str(tiny_prior_folder(tmp_path_factory.mktemp("one step") / "prior", one_step=True))


def switches(*learned):
    return {f"learn_{name}": name in learned for name in NAMES}


@pytest.mark.parametrize("kind", [PointCodes, GaussianCodes])
@pytest.mark.parametrize("learned", [("latents",), ("noise",), ("conditioning",), NAMES])
def test_each_switch_learns_what_it_says_and_nothing_else(folder, digits, tmp_path, kind, learned):
    options = switches(*learned) | ({"learn_spread": False} if kind is GaussianCodes else {})
    prior = LatentDiffusionPrior(folder, start=0.6)
    assert prior.num_steps == 1
    start = Distiller(prior, matching(), digits.spec, codes=partial(kind, **options), seed=3)
    model = fit(prior, matching(), tmp_path, 2, digits, codes=partial(kind, **options), seed=3,
                initializer=GaussianLatents())  # fmt: skip
    assert set(model.codes.groups()) == set(learned)
    for name in NAMES[1:]:
        before, after = getattr(start.codes, name), getattr(model.codes, name)
        assert torch.equal(before, after) == (name not in learned), name
    if "latents" not in learned:
        again = fit(prior, matching(), tmp_path / "0", 0, digits, codes=partial(kind, **options), seed=3,
                    initializer=GaussianLatents())  # fmt: skip
        assert torch.equal(again.codes.latents, model.codes.latents)
    stored = model.distilled_set()
    assert torch.equal(StoredSampler(stored, prior)(None), stored.images)


def test_the_gradient_in_the_noise_is_that_of_one_step(folder):
    """x = (1 - s) Z + s n; the result is x - s u(x, 0, s), so d/dn = s d/dx and d/dZ = (1 - s) d/dx."""
    prior = LatentDiffusionPrior(folder, start=0.6).double()
    z, n = torch.randn(2, 2, *prior.latent_shape, generator=torch.Generator().manual_seed(0)).double()
    c = prior.embed(torch.tensor([1, 5])).double()
    leaves = [z.requires_grad_(), n.requires_grad_()]
    of_z, of_n = torch.autograd.grad(prior.denoise(z, c, n).square().sum(), leaves)
    x = (0.4 * z + 0.6 * n).detach().requires_grad_()
    told = torch.full((2,), 6.0)
    u = prior.unet(x, torch.tensor(6.0), encoder_hidden_states=c, class_labels=told).sample
    (of_x,) = torch.autograd.grad((x - 0.6 * u).square().sum(), x)
    assert (of_z - 0.4 * of_x).abs().max() < 1e-9
    assert (of_n - 0.6 * of_x).abs().max() < 1e-9


def test_latents_that_reach_no_image_are_not_learned(folder, digits, tiny_prior_path):
    """From pure noise one step of a flow keeps nothing of Z; a diffusion model, a start or a skip does."""
    whole = LatentDiffusionPrior(folder)
    for options in ({}, {"learn_latents": False, "learn_spread": True, "learn_noise": True}):
        kind = GaussianCodes if "learn_spread" in options else PointCodes
        with pytest.raises(UserError, match=r"no image depends on the latents; set .*start below 1"):
            Distiller(whole, matching(), digits.spec, codes=partial(kind, **options))
    Distiller(whole, matching(), digits.spec, codes=partial(PointCodes, **switches("noise", "conditioning")))
    for prior, reads in (
        (whole, False),
        (LatentDiffusionPrior(folder, num_steps=3, skip="none"), False),
        (LatentDiffusionPrior(folder, num_steps=3, skip="noised"), False),
        (LatentDiffusionPrior(folder, num_steps=3), True),
        (LatentDiffusionPrior(folder, start=0.9), True),
        (LatentDiffusionPrior(folder, num_steps=0), True),
        (LatentDiffusionPrior(str(tiny_prior_path), num_steps=1, skip="none"), True),
    ):
        assert prior.reads_latents == reads
        z = torch.zeros(1, *prior.latent_shape, requires_grad=True)
        c, n = prior.embed(torch.tensor([0])), torch.randn(1, *prior.latent_shape)
        out = prior.denoise(z, c, n)
        gradient = torch.autograd.grad(out.sum(), z)[0].abs().max() if out.requires_grad else 0
        assert (gradient > 0) == reads


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0.0}, r"start=0\.0 must lie in \(0, 1\]"),
        ({"start": 1.5}, r"start=1\.5 must lie in \(0, 1\]"),
        ({"start": 0.5, "num_steps": 0}, r"start=0\.5 has no effect with num_steps=0"),
    ],
)
def test_a_start_out_of_range_is_refused(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        LatentDiffusionPrior(folder, **arguments)


def test_redrawn_noise_cannot_be_learned(folder, digits):
    codes = partial(PointCodes, learn_noise=True)
    prior = LatentDiffusionPrior(folder, start=0.5)
    with pytest.raises(UserError, match=r"quirks\.redrawn_noise \(true\) draws the noise anew"):
        Distiller(prior, matching(), digits.spec, codes=codes, quirks=Quirks(redrawn_noise=True))


@pytest.mark.parametrize(
    "objective",
    [
        DistributionMatching,
        GradientMatching,
        MaximumMeanDiscrepancy,
        CharacteristicMatching,
        partial(TrajectoryMatching, "none"),
    ],
)
def test_every_objective_has_a_rate_for_the_noise(folder, digits, objective):
    codes = partial(PointCodes, **switches("noise"))
    model = Distiller(LatentDiffusionPrior(folder), matching(), digits.spec, codes=codes)
    (of_codes, *_) = objective(lr_noise=0.25).optimizers(model.codes, model.prior).values()
    assert [group["lr"] for group in of_codes.param_groups] == [0.25]
