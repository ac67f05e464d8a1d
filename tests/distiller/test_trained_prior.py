"""A prior that is trained with the codes: started, stepped, checkpointed, resumed, exported; or refused."""

import pytest
import torch
from small_runs import NARROW, fit, matching

from ldd.artefact.set import DistilledSet
from ldd.codes import GaussianCodes, stored_codes
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.initializers import GaussianLatents, RealEncodings
from ldd.objectives import GradientMatching
from ldd.priors import DeconvolutionPrior, LatentDiffusionPrior, NeckPrior, PixelPrior
from ldd.runs.folder import find_last
from ldd.runtime.seeding import generator


def decoder(**arguments):
    return DeconvolutionPrior("small", 32, **{"width": 16, "latent_width": 8} | arguments)


def gradient_matching():
    return GradientMatching(real_batch=4, network=NARROW, outer_loop=3, inner_loop=1)


def trained(model):
    return {name: value.detach().clone() for name, value in model.prior.trained().items()}


@pytest.mark.parametrize("objective", [matching, gradient_matching], ids=["distribution", "gradient"])
@pytest.mark.parametrize("kind", ["decoder", "neck"])
def test_resume_is_bit_identical(kind, objective, tiny_prior_path, digits, tmp_path):
    def prior():
        return decoder() if kind == "decoder" else NeckPrior(str(tiny_prior_path), width=8, latent_width=8)

    def run(folder, steps, **arguments):
        return fit(prior(), objective(), tmp_path / folder, steps, digits, codes=GaussianCodes, **arguments)

    unbroken = run("whole", 5)
    run("half", 2)
    resumed = run("half", 5, ckpt_path=find_last(tmp_path / "half"))
    for name, value in unbroken.codes.state_dict().items():
        assert torch.equal(value, resumed.codes.state_dict()[name]), name
    for name, value in trained(unbroken).items():
        assert torch.equal(value, trained(resumed)[name]), name
    start = trained(run("start", 0))
    assert any(not torch.equal(value, start[name]) for name, value in trained(unbroken).items())
    saved = torch.load(tmp_path / "half" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("prior.") for name in saved if name.startswith("prior.")} == trained(
        resumed
    ).keys()


def test_the_artefact_makes_its_images_again(digits, tmp_path):
    """Codes and decoder as loaded, in a prior built anew: mean images as stored, and draws as the run drew them."""
    model = fit(decoder(), matching(), tmp_path, 2, digits, codes=GaussianCodes, images_per_class=2)
    loaded = DistilledSet.load(tmp_path / "distilled")
    prior, rows = decoder(), torch.arange(20)
    prior.load_trained(loaded.decoder)
    codes = stored_codes(loaded.codes, loaded.labels)
    with torch.no_grad():
        means = prior.decode(codes(rows).latents)
        assert (loaded.images - (means.clamp(-1, 1) + 1) * 127.5).abs().max() <= 0.5 + 1e-3
        drawn = prior.decode(codes(rows, generator(1)).latents)
        assert torch.equal(drawn, model.synthesis(rows, generator(1)))
        assert (drawn - means).abs().mean() > 1e-3
    numbers = sum(value.numel() for value in loaded.decoder.values())
    assert numbers == sum(value.numel() for value in prior.parameters())
    assert loaded.bytes["decoder"] == 4 * numbers
    assert loaded.bytes["codes"] == 4 * 2 * 20 * 8  # means and log-variances, nothing else


def test_the_start_follows_the_seed(digits, tmp_path):
    starts = [
        trained(fit(decoder(), matching(), tmp_path / str(i), 0, digits, seed=seed))
        for i, seed in enumerate((3, 3, 4))
    ]
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
    assert not torch.equal(starts[0]["decoder.1.weight"], starts[2]["decoder.1.weight"])


def test_ranks_share_the_decoder_s_gradient(digits):
    """DM over two ranks, added up as the collective would, in float64."""
    found = []
    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        objective = matching()
        model = Distiller(decoder(), objective, digits.spec, 2, codes=GaussianCodes).double()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.prior.reset_trained()
        model.initializer(model.codes, model.prior, digits.core_set, generator(0))
        (term,) = objective.terms(model.context(digits.core_set, 0, rank, world_size))
        parameters = [model.codes.latents, model.codes.log_variance, *model.prior.trainable()]
        found.append(torch.autograd.grad(term.value, parameters))
    for whole, *parts in zip(*found, strict=True):
        assert whole.abs().max() > 0
        assert (whole - sum(parts)).abs().max() < 1e-9 * whole.abs().max()


def test_gaussian_codes_in_front_of_a_frozen_diffusion_model(tiny_prior_path, digits, tmp_path):
    """D3 in LD3M: the prior stays as it is, each code has its own condition, only the spread of the latents draws."""
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    start = RealEncodings(variance_share=0.1)
    model = fit(
        prior, matching(), tmp_path, 3, digits, codes=GaussianCodes, images_per_class=2, initializer=start
    )
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
    loaded = DistilledSet.load(tmp_path / "distilled")
    assert loaded.decoder is None
    assert set(loaded.codes) == {"latents", "log_variance", "conditioning", "noise"}
    assert not torch.equal(model.codes.conditioning[0], model.codes.conditioning[1])
    codes = stored_codes(loaded.codes, loaded.labels)
    batch, mean = codes(torch.arange(20), generator(0)), codes(torch.arange(20))
    assert torch.equal(batch.noise, mean.noise)
    assert not torch.equal(batch.latents, mean.latents)


def test_means_are_decoded_together_where_they_depend_on_each_other(digits, tmp_path):
    prior = decoder(preset="faithful")
    model = fit(prior, matching(), tmp_path, 1, digits, codes=GaussianCodes, images_per_class=7)
    with torch.no_grad():
        images = prior.decode(model.codes.latents)
    assert (DistilledSet.load(tmp_path / "distilled").images - (images + 1) * 127.5).abs().max() <= 0.5 + 1e-3


def test_the_start_without_an_encoder(digits):
    assert isinstance(Distiller(decoder(), matching(), digits.spec).initializer, GaussianLatents)
    assert isinstance(Distiller(PixelPrior(32), matching(), digits.spec).initializer, RealEncodings)


class TestRefuses:
    def test_an_encoder_that_is_not_there(self, digits, tmp_path):
        with pytest.raises(
            UserError, match=r"DeconvolutionPrior has no encoder; start codes with ldd.initializers"
        ):
            fit(decoder(), matching(), tmp_path, 1, digits, initializer=RealEncodings())

    def test_an_objective_that_leaves_it_out(self, digits, tmp_path):
        objective = matching()
        optimizers = objective.optimizers
        objective.optimizers = lambda codes, prior: {"codes": optimizers(codes, PixelPrior(32))["codes"]}
        text = "DistributionMatching does not optimise the trainable weights of DeconvolutionPrior"
        with pytest.raises(UserError, match=text):
            fit(decoder(), objective, tmp_path, 1, digits)

    def test_chunks_of_a_batch(self, digits):
        with pytest.raises(
            UserError, match=r"chunk_size \(4\) would change the batch statistics of Deconvolution"
        ):
            Distiller(decoder(preset="faithful"), matching(), digits.spec, chunk_size=4)

    def test_ranks_of_a_batch(self, digits):
        model = Distiller(decoder(preset="faithful"), matching(), digits.spec)

        class Two:
            precision, world_size = "32-true", 2

        with pytest.raises(
            UserError, match="which 2 processes would split; use one, or choose preset: corrected"
        ):
            model.check_trainer(Two())

    def test_a_checkpoint_of_another_decoder(self, digits, tmp_path):
        fit(decoder(), matching(), tmp_path, 2, digits)
        text = r"ckpt_path: prior.decoder.1.weight is \[64, 8\], this configuration needs \[128, 8\]"
        with pytest.raises(UserError, match=text):
            fit(decoder(width=32), matching(), tmp_path / "b", 2, digits, ckpt_path=find_last(tmp_path))

    def test_another_decoder_s_weights(self, digits, tmp_path):
        fit(decoder(), matching(), tmp_path, 0, digits)
        weights = DistilledSet.load(tmp_path / "distilled").decoder
        with pytest.raises(
            UserError, match=r"decoder: decoder.1.weight is \[64, 8\], this Deconv\w+ needs \[128, 8\]"
        ):
            decoder(width=32).load_trained(weights)
