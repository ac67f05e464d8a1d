"""Each quirk of the released code: what it changes, and that the artefact never has any."""

import pytest
import torch
from small_runs import fit, matching

from ldd.distiller.module import Distiller
from ldd.distiller.synthesis import Quirks
from ldd.initializers import RealEncodings
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior, PixelPrior
from ldd.runtime.seeding import generator


@pytest.fixture
def prior(tiny_prior_path):
    return LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)


@torch.no_grad()
def training_images(model, digits, step=0):
    model.num_steps_done.fill_(step)
    return model.context(digits.core_set, step).decode(torch.arange(len(model.codes))).detach()


def artefact_images(model):
    with torch.no_grad():
        return model.synthesis(torch.arange(len(model.codes)))


def test_none_by_default(prior, digits):
    model = Distiller(prior, matching(), digits.spec)
    assert model.synthesis.quirks == Quirks(redrawn_noise=False, mismatched_mean=False, hard_clamp=False)
    assert not model.initializer.normalised_input
    assert torch.equal(training_images(model, digits, 0), training_images(model, digits, 1))
    torch.testing.assert_close(training_images(model, digits), artefact_images(model), rtol=0, atol=1e-6)


def test_redrawn_noise(prior, digits):
    """New noise in each step, the same in any chunks; the artefact keeps each code's own."""
    redrawn = Quirks(redrawn_noise=True)
    model = Distiller(prior, matching(), digits.spec, quirks=redrawn, seed=3)
    chunked = Distiller(prior, matching(), digits.spec, quirks=redrawn, seed=3, chunk_size=3)
    first, second = training_images(model, digits, 0), training_images(model, digits, 1)
    assert (first - second).abs().max() > 1e-3
    assert torch.equal(first, training_images(model, digits, 0))
    torch.testing.assert_close(first, training_images(chunked, digits, 0), rtol=0, atol=1e-4)
    plain = Distiller(prior, matching(), digits.spec, seed=3)
    assert torch.equal(artefact_images(model), artefact_images(plain))


def test_mismatched_noise(prior, digits):
    """Matched images have a noise of the step; their gradient is that of the images of the codes' own noise."""
    quirk = Distiller(prior, matching(), digits.spec, quirks=Quirks(mismatched_noise=True), seed=3)
    plain = Distiller(prior, matching(), digits.spec, seed=3)
    first, second = training_images(quirk, digits, 0), training_images(quirk, digits, 1)
    assert (first - second).abs().max() > 1e-3
    noise = torch.randn(quirk.codes.noise.shape, generator=generator(3, "shown noise", 0))
    other = Distiller(prior, matching(), digits.spec, seed=3)
    other.codes.noise.copy_(noise)
    torch.testing.assert_close(first, training_images(other, digits, 0), rtol=0, atol=1e-5)
    gradients = {}
    for model in (quirk, plain):
        images = model.context(digits.core_set, 0).decode(torch.arange(10))
        weights = torch.linspace(-1, 1, images.numel()).view_as(images)
        (gradients[model],) = torch.autograd.grad((images * weights).sum(), model.codes.latents)
    torch.testing.assert_close(gradients[quirk], gradients[plain], rtol=0, atol=1e-6)
    assert torch.equal(artefact_images(quirk), artefact_images(plain))


def test_mismatched_mean(digits, tmp_path):
    """A constant shift per channel of what networks see of synthetic images, as the two means imply."""
    model = Distiller(PixelPrior(32), matching(), digits.spec, quirks=Quirks(mismatched_mean=True))
    seen = digits.spec.normalise(training_images(model, digits))
    x = (artefact_images(model) + 1) / 2
    mean, std = ([0.4377, 0.4438, 0.4728], [0.229, 0.224, 0.225])
    expected = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert (seen - expected).abs().max() < 1e-6
    shift = (seen - digits.spec.normalise(artefact_images(model))).mean((0, 2, 3))
    assert (shift - torch.tensor([0.2066, 0.0545, -0.2969])).abs().max() < 1e-4
    codes = {}
    for quirk in (False, True):
        fitted = fit(
            PixelPrior(32), matching(), tmp_path / str(quirk), 1, digits, quirks=Quirks(mismatched_mean=quirk)
        )
        codes[quirk] = fitted.codes.latents
    assert not torch.equal(codes[False], codes[True])


def test_hard_clamp(digits):
    """The same images; saturated pixels alone lose their gradient."""
    gradients, images = {}, {}
    for quirk in (False, True):
        model = Distiller(PixelPrior(32), matching(), digits.spec, quirks=Quirks(hard_clamp=quirk))
        latents = torch.linspace(-1.5, 1.5, 10 * 3 * 32 * 32).reshape(10, 3, 32, 32)
        model.codes.set_latents(torch.arange(10), latents)
        decoded = model.context(digits.core_set, 0).decode(torch.arange(10))
        decoded.sum().backward()
        images[quirk], gradients[quirk] = decoded.detach(), model.codes.latents.grad
    torch.testing.assert_close(images[False], images[True], rtol=0, atol=1e-6)
    assert images[True].abs().max() == 1
    assert torch.equal(gradients[False], torch.ones_like(latents))
    assert torch.equal(gradients[True], (latents.abs() <= 1).float())


def test_encoder_fed_normalised_images(tiny_prior_path, digits):
    prior = AutoencoderPrior(str(tiny_prior_path))
    latents = {}
    for quirk in (False, True):
        model = Distiller(prior, matching(), digits.spec)
        generator = torch.Generator().manual_seed(1)
        RealEncodings(normalised_input=quirk)(model.codes, prior, digits.core_set, generator)
        latents[quirk] = model.codes.latents.detach()
    generator = torch.Generator().manual_seed(1)
    real = torch.cat([digits.core_set.draw(label, 1, generator) for label in range(10)])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((real + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(latents[False], prior.encode(real), rtol=0, atol=1e-5)
    torch.testing.assert_close(latents[True], prior.encode(normalised), rtol=0, atol=1e-5)
