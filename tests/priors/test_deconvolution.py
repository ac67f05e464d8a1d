"""D3's decoders: published sizes, published normalisation and range, the corrected ones; the neck."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldd.errors import UserError
from ldd.priors import AutoencoderPrior, DeconvolutionPrior, NeckPrior
from ldd.priors.deconvolution import deconvolution, group_norm, small_channels
from ldd.runtime.seeding import generator


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("preset", ["corrected", "faithful"])
@pytest.mark.parametrize(
    ("size", "arguments", "parameters", "latent_shape"),
    [
        ("small", {}, 789_187, (64, 1, 1)),
        ("small", {"width": 128}, 214_371, (64, 1, 1)),
        ("medium", {}, 5_774_691, (2048, 1, 1)),
        ("large", {}, 6_308_547, (1024, 2, 2)),
    ],
)
def test_published_numbers_of_parameters(size, arguments, parameters, latent_shape, preset):
    with torch.device("meta"):
        prior = DeconvolutionPrior(size, preset=preset, **arguments)
    assert count(prior) == parameters
    assert prior.latent_shape == latent_shape
    assert len(list(prior.trainable())) == len(list(prior.parameters()))


@pytest.mark.parametrize("image_size", [8, 32, 64, 128, 256])
@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_every_size_of_image(size, image_size):
    with torch.device("meta"):
        prior = DeconvolutionPrior(size, image_size)
        shape = prior.decode(torch.zeros(2, *prior.latent_shape)).shape
    assert shape == (2, 3, image_size, image_size)


def test_channels_are_the_released_ones():
    def widths(prior):
        return [layer.out_channels for layer in prior.decoder if isinstance(layer, nn.ConvTranspose2d)]

    with torch.device("meta"):
        assert widths(DeconvolutionPrior("small", 64)) == [128, 64, 32, 32, 32]
        assert widths(DeconvolutionPrior("small", 32)) == [128, 64, 32, 32]
        assert widths(DeconvolutionPrior("small", 128)) == [128, 64, 32, 32, 32, 32]
        assert widths(DeconvolutionPrior("medium", 64)) == [256, 128, 64, 32, 32]
        assert widths(DeconvolutionPrior("medium", 32)) == [256, 128, 64, 64]
        assert widths(DeconvolutionPrior("large", 64)) == [512, 256, 128, 64, 64]


@pytest.mark.parametrize("preset", ["corrected", "faithful"])
def test_decode_is_the_formula(preset):
    """Layer by layer in float64."""
    prior = DeconvolutionPrior("small", 16, preset, width=32, latent_width=5).double()
    latents = torch.randn(4, 5, 1, 1, generator=generator(0), dtype=torch.float64)
    weights = dict(prior.decoder.named_parameters())
    x = latents.flatten(1) @ weights["1.weight"].T + weights["1.bias"]
    x = x.view(4, 32, 2, 2)
    for layer in (3, 6, 9):
        x = F.conv_transpose2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], stride=2, padding=1)
        dims = (0, 2, 3) if preset == "faithful" else (1, 2, 3)
        if preset == "corrected":
            assert x.shape[1] <= 31  # fewer than two groups of 16
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        scale, shift = (weights[f"{layer + 1}.{name}"].view(-1, 1, 1) for name in ("weight", "bias"))
        x = scale * x + shift
        x = torch.where(x > 0, x, 0.01 * x)
    expected = F.conv2d(x, weights["12.weight"], weights["12.bias"], padding=1).tanh()
    if preset == "faithful":
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double().view(2, 3, 1, 1)
        expected = (expected * std + mean) * 2 - 1
    assert (prior.decode(latents) - expected).abs().max() < 1e-6  # ImageNet's constants are kept in float32


def test_groups():
    norms = {channels: group_norm(channels).num_groups for channels in (4, 16, 24, 32, 56, 256)}
    assert norms == {4: 1, 16: 1, 24: 1, 32: 2, 56: 1, 256: 16}


@pytest.mark.parametrize(
    ("width", "parameters"), [(32, 19_535), (64, 61_083), (128, 210_227), (256, 772_707)]
)
def test_neck_sizes_at_128_px(width, parameters):
    """Latents 3 x 32 x 32, of an autoencoder with factor 4."""
    with torch.device("meta"):
        neck = deconvolution(64, small_channels(width, 32), 4, group_norm, 3)
    assert count(neck) == parameters


def test_neck_in_front_of_the_autoencoder(kl_folder):
    prior, autoencoder = NeckPrior(str(kl_folder), width=16), AutoencoderPrior(str(kl_folder))
    assert (prior.image_size, prior.latent_shape, prior.licence) == (32, (64, 1, 1), autoencoder.licence)
    latents = torch.randn(2, 64, 1, 1, generator=generator(0))
    assert torch.equal(prior.decode(latents), autoencoder.decode(prior.neck(latents)))
    assert {name.partition(".")[0] for name in prior.trained()} == {"neck"}
    prior.decode(latents).sum().backward()
    assert all(p.grad is None for p in prior.autoencoder.parameters())
    assert all(p.grad.abs().max() > 0 for p in prior.trainable())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 48}, r"image_size \(48\) must be a power of two of at least 8"),
        ({"image_size": 4}, r"image_size \(4\) must be a power of two"),
        ({"width": 36}, r"width \(36\) must be a multiple of 8"),
        ({"size": "medium", "width": 24}, r"width \(24\) must be a multiple of 16"),
        ({"size": "large", "latent_width": 64}, r"latent_width \(64\) is for small and medium decoders"),
        ({"latent_width": 0}, r"latent_width \(0\) must be at least 1"),
    ],
)
def test_settings_that_do_not_fit(arguments, message):
    with pytest.raises(UserError, match=message):
        DeconvolutionPrior(**arguments)


def test_latents_that_no_neck_can_make(tmp_path):
    from diffusers import AutoencoderTiny
    from tiny_prior import tiny_autoencoder

    tiny_autoencoder(AutoencoderTiny).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"the side of the autoencoder's latents \(12\) must be a power of two"
    ):
        NeckPrior(str(tmp_path), image_size=48)
    with pytest.raises(UserError, match=r"latent_width \(0\) must be at least 1"):
        NeckPrior(str(tmp_path), image_size=32, latent_width=0)
