"""Scaling, posterior mode and quantisation of the autoencoder prior, against diffusers' own modules."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from tiny_prior import tiny_autoencoder

from ldd.errors import UserError
from ldd.priors import AutoencoderPrior, PixelPrior
from ldd.runtime.seeding import generator, seeded

IMAGES = 2 * torch.rand(2, 3, 32, 32, generator=generator(0, "images"), dtype=torch.float64) - 1
LATENTS = torch.randn(2, 4, 8, 8, generator=generator(0, "latents"), dtype=torch.float64)


def saved(folder, kind, **config):
    """An autoencoder written to `folder`, and itself in float64."""
    with seeded(0, kind.__name__):
        model = tiny_autoencoder(kind, **config)
    model.save_pretrained(folder)
    return model.double().eval().requires_grad_(False)


def test_kl_is_the_posterior_mode_scaled(tmp_path):
    model = saved(tmp_path, AutoencoderKL)
    prior = AutoencoderPrior(str(tmp_path)).double()
    assert (prior.image_size, prior.latent_shape, prior.num_steps) == (32, (4, 8, 8), 0)
    mean = model.quant_conv(model.encoder(IMAGES)).chunk(2, 1)[0]
    torch.testing.assert_close(prior.encode(IMAGES), (mean - 0.1) * 0.7, rtol=0, atol=1e-12)
    decoded = model.decoder(model.post_quant_conv(LATENTS / 0.7 + 0.1))
    torch.testing.assert_close(prior.decode(LATENTS), decoded, rtol=0, atol=1e-12)
    assert prior.quantise(LATENTS) is LATENTS


def test_tiny_autoencoder(tmp_path):
    model = saved(tmp_path, AutoencoderTiny)
    prior = AutoencoderPrior(str(tmp_path), image_size=32).double()
    torch.testing.assert_close(prior.encode(IMAGES), (model.encoder(IMAGES) - 0.1) * 0.7, rtol=0, atol=1e-12)
    torch.testing.assert_close(prior.decode(LATENTS), model.decoder(LATENTS / 0.7 + 0.1), rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="image_size is required"):
        AutoencoderPrior(str(tmp_path))


@pytest.mark.parametrize("embed_dim", [4, 3])
def test_vq_encodes_before_quantisation_and_decodes_after(tmp_path, embed_dim):
    """`quantise` finds the nearest codes, its gradient and that of `decode` pass straight through."""
    model = saved(tmp_path, VQModel, vq_embed_dim=embed_dim)
    prior = AutoencoderPrior(str(tmp_path)).double()
    assert prior.latent_shape == (embed_dim, 8, 8)
    encoded = model.quant_conv(model.encoder(IMAGES)) * 0.7
    torch.testing.assert_close(prior.encode(IMAGES), encoded, rtol=0, atol=1e-12)

    latents = LATENTS[:, :embed_dim].clone().requires_grad_()
    codes = model.quantize.embedding.weight
    distances = (latents.detach()[:, None] / 0.7 - codes[None, :, :, None, None]).square().sum(2)
    nearest = codes[distances.argmin(1)].permute(0, 3, 1, 2)
    quantised = prior.quantise(latents)
    torch.testing.assert_close(quantised, nearest * 0.7, rtol=0, atol=1e-12)
    weights = torch.randn(quantised.shape, generator=generator(1), dtype=torch.float64)
    (passed,) = torch.autograd.grad((quantised * weights).sum(), latents)
    torch.testing.assert_close(passed, weights, rtol=0, atol=1e-12)

    leaf = nearest.clone().requires_grad_()
    images = model.decoder(model.post_quant_conv(leaf))
    torch.testing.assert_close(prior.decode(latents), images, rtol=0, atol=1e-12)
    (expected,) = torch.autograd.grad(images.square().sum(), leaf)
    (gradient,) = torch.autograd.grad(prior.decode(latents).square().sum(), latents)
    torch.testing.assert_close(gradient, expected / 0.7, rtol=0, atol=1e-11)


def test_vq_decodes_as_they_are_on_request(tmp_path):
    model = saved(tmp_path, VQModel)
    prior = AutoencoderPrior(str(tmp_path), quantise_decoded=False).double()
    expected = model.decoder(model.post_quant_conv(LATENTS / 0.7))
    torch.testing.assert_close(prior.decode(LATENTS), expected, rtol=0, atol=1e-12)
    assert not torch.equal(prior.quantise(LATENTS), LATENTS)


def test_decoding_unquantised_needs_a_codebook(tmp_path):
    saved(tmp_path, AutoencoderKL)
    with pytest.raises(UserError, match=r"quantise_decoded=false has no effect: .* has no codebook"):
        AutoencoderPrior(str(tmp_path), quantise_decoded=False)


@pytest.mark.parametrize("name", ["vae", "vqvae"])
def test_pipeline_folder(tmp_path, name):
    model = saved(tmp_path / name, VQModel if name == "vqvae" else AutoencoderKL)
    prior = AutoencoderPrior(str(tmp_path), image_size=64).double()
    assert (prior.image_size, prior.latent_shape) == (64, (4, 16, 16))
    torch.testing.assert_close(
        prior.decode(LATENTS), model.decode(LATENTS / prior.scale + prior.shift).sample
    )


def test_prior_folder_gives_size_and_licence(kl_folder):
    prior = AutoencoderPrior(str(kl_folder))
    assert (prior.image_size, prior.licence) == (32, "random weights")


def test_unsupported_autoencoders(tmp_path):
    saved(tmp_path / "grey", AutoencoderKL, in_channels=1, out_channels=1)
    with pytest.raises(UserError, match="has 1 image channels; RGB needs 3"):
        AutoencoderPrior(str(tmp_path / "grey"))
    saved(tmp_path / "statistics", AutoencoderKL, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    with pytest.raises(UserError, match="latents_mean and latents_std are not supported"):
        AutoencoderPrior(str(tmp_path / "statistics"))


def test_image_size_names_the_factor_and_good_sizes(kl_folder):
    with pytest.raises(UserError, match=r"image_size=33 .* factor 4; nearest good sizes: 32 or 36"):
        AutoencoderPrior(str(kl_folder), image_size=33)


def test_pixel_prior_refuses_no_pixels():
    with pytest.raises(UserError, match="image_size=0 must be at least 1"):
        PixelPrior(0)
