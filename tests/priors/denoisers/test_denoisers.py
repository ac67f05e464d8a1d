"""Every form of diffusion model as prior, against the library's own pipelines and finite differences."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conformance import PriorConformance
from diffusers import (
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
)
from diffusers.schedulers import scheduling_lcm
from tiny_denoisers import (
    STABLE_1,
    STABLE_2,
    dit_pipeline,
    ldm_pipeline,
    name_rows,
    text_pipeline,
    xl_pipeline,
)
from tiny_prior import PUBLISHED
from torch.utils.checkpoint import checkpoint

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors import LatentDiffusionPrior
from ldd.runtime.seeding import generator

KNOWN = (
    ClassInfo(0, 8, "tench", "tench"),
    ClassInfo(1, 9, "my fish", "goldfish"),
    ClassInfo(2, 7, "my church", "church building"),
)
CLASSES = [ClassInfo(0, 3, "n1", "church"), ClassInfo(1, 5, "n2", "goldfish")]
STEPS = 5


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("denoisers") / "dit"
    return name_rows(dit_pipeline(), folder)


@pytest.fixture(scope="module")
def ldm_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("denoisers") / "ldm"
    ldm_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="needs the extra text")
    files = tmp_path_factory.mktemp("denoisers")
    text_pipeline(files).save_pretrained(files / "text")
    return files / "text"


@pytest.fixture(scope="module")
def turbo_folder(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="needs the extra text")
    files = tmp_path_factory.mktemp("denoisers")
    pipeline = text_pipeline(files, STABLE_2)
    pipeline.scheduler = EulerDiscreteScheduler(timestep_spacing="trailing", **PUBLISHED)
    pipeline.save_pretrained(files / "turbo")
    return files / "turbo"


@pytest.fixture(params=["dit", "tied dit", "ldm", "text", "turbo", "lcm", "xl"])
def prior(request) -> LatentDiffusionPrior:
    """Each form in turn."""
    folder = request.getfixturevalue(f"{request.param.split()[-1]}_folder")
    return LatentDiffusionPrior(
        str(folder), num_steps=STEPS, skip="none", tied=request.param.startswith("tied")
    )


def start_at(prior, noise):
    """Z with which the reverse process starts at `noise`, the noise tensor being the same."""
    signal, spread = prior.schedule.steps(STEPS)[0].level
    return noise * (1 - spread) / signal


def images_of(prior, conditioning, guidance):
    """In [0, 1], as pipelines return them, from the noise that `generator(0)` gives a pipeline."""
    prior.guidance_scale = guidance
    noise = torch.randn(2, *prior.latent_shape, generator=generator(0))
    with torch.no_grad():
        decoded = prior.decode(prior.denoise(start_at(prior, noise), conditioning, noise))
    return (decoded / 2 + 0.5).clamp(0, 1)


def assert_close(ours, theirs):
    """Relative error at most 1e-4, of images that are no constants."""
    assert theirs.std() > 0.01
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_transformer_equals_its_pipeline(tmp_path, guidance):
    """With a thousand classes, since the pipeline takes row 1000 for the null class; rows found by WordNet id."""
    pipeline = dit_pipeline(rows=1000)
    pipeline.save_pretrained(tmp_path)
    prior = LatentDiffusionPrior(str(tmp_path), num_steps=STEPS, skip="none")
    rows = prior.rows([ClassInfo(0, 0, "n03028079", "x"), ClassInfo(1, 1, "n01440764", "y")])
    assert rows.tolist() == [497, 0]
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        rows.tolist(),
        guidance_scale=guidance,
        generator=generator(0),
        num_inference_steps=STEPS,
        output_type="np",
    ).images
    assert_close(images_of(prior, prior.embed(rows), guidance), torch.from_numpy(theirs).movedim(-1, 1))


def test_channels_of_a_guidance_that_there_is_not_are_refused(ldm_folder, lcm_folder):
    with pytest.raises(
        UserError, match="guided_channels=3 has no effect: this prior has no classes to guide"
    ):
        LatentDiffusionPrior(str(ldm_folder), guided_channels=3)
    with pytest.raises(UserError, match="guided_channels=3 has no effect: this prior is told its guidance"):
        LatentDiffusionPrior(str(lcm_folder), guided_channels=3)


def test_unconditional_equals_its_pipeline(ldm_folder):
    prior = LatentDiffusionPrior(str(ldm_folder), num_steps=STEPS, skip="none")
    assert prior.embed(prior.rows(CLASSES)).shape == (2, 0, 0)
    pipeline = ldm_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(2, generator=generator(0), num_inference_steps=STEPS, output_type="np").images
    for guidance in (0.0, 1.0, 3.0):
        ours = images_of(prior, prior.null(2), guidance)
        assert_close(ours, torch.from_numpy(theirs).movedim(-1, 1))


@pytest.mark.parametrize(
    ("unet", "prediction"), [(STABLE_1, "epsilon"), (STABLE_1, "v_prediction"), (STABLE_2, "v_prediction")]
)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_text_to_image_equals_its_pipeline(tmp_path, unet, prediction, guidance):
    """The forms of Stable Diffusion 1.5 and 2.x."""
    pytest.importorskip("transformers", reason="needs the extra text")
    pipeline = text_pipeline(tmp_path, unet, prediction_type=prediction)
    pipeline.save_pretrained(tmp_path / "text")
    prior = LatentDiffusionPrior(
        str(tmp_path / "text"),
        num_steps=STEPS,
        skip="none",
        prompt="an image of {name}",
        classes={"n2": "a koi"},
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["an image of church", "a koi"], 32, 32, STEPS, guidance_scale=guidance, generator=generator(0),
        output_type="np",
    ).images  # fmt: skip
    ours = images_of(prior, prior.embed(prior.rows(CLASSES)), guidance)
    assert_close(ours, torch.from_numpy(theirs).movedim(-1, 1))


@pytest.mark.parametrize("num_steps", [1, 3, 4])
def test_sd_turbo_equals_its_pipeline(turbo_folder, num_steps):
    """Euler's method with trailing timesteps: samples, and the chain where Z is nothing; three do not divide 1,000."""
    pipeline = StableDiffusionPipeline.from_pretrained(turbo_folder)
    assert type(pipeline.scheduler) is EulerDiscreteScheduler
    pipeline.set_progress_bar_config(disable=True)
    prior = LatentDiffusionPrior(str(turbo_folder), num_steps=num_steps, guidance_scale=1.0, skip="none")
    rows = prior.rows(CLASSES)
    theirs = pipeline(
        ["a photo of a church", "a photo of a goldfish"], 32, 32, num_steps, guidance_scale=0.0,
        generator=generator(0), output_type="np",
    ).images  # fmt: skip
    theirs = torch.from_numpy(theirs).movedim(-1, 1)
    noise = torch.randn(2, *prior.latent_shape, generator=generator(0))
    with torch.no_grad():
        sampled = prior.decode(prior.sample(rows, generator(0), num_steps=num_steps))
        chained = prior.decode(prior.denoise(torch.zeros_like(noise), prior.embed(rows), noise))
    for images in (sampled, chained):
        assert_close((images / 2 + 0.5).clamp(0, 1), theirs)


@pytest.fixture(scope="module")
def lcm_folder(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="needs the extra text")
    files = tmp_path_factory.mktemp("denoisers")
    parts = text_pipeline(files, {"time_cond_proj_dim": 12}).components
    parts |= {"scheduler": LCMScheduler(**PUBLISHED)}
    LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(files / "lcm")
    return files / "lcm"


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("guidance", [1.0, 8.0])
def test_lcm_equals_its_pipeline(lcm_folder, monkeypatch, num_steps, guidance):
    """With the noise of the chain in every step, for which the pipeline draws another."""
    pipeline = LatentConsistencyModelPipeline.from_pretrained(lcm_folder)
    pipeline.set_progress_bar_config(disable=True)
    prior = LatentDiffusionPrior(str(lcm_folder), num_steps=num_steps, guidance_scale=guidance, skip="none")
    noise = torch.randn(2, *prior.latent_shape, generator=generator(0))
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *arguments, **options: noise)
    theirs = pipeline(
        ["a photo of a church", "a photo of a goldfish"], 32, 32, num_steps, guidance_scale=guidance,
        generator=generator(0), output_type="np",
    ).images  # fmt: skip
    theirs = torch.from_numpy(theirs).movedim(-1, 1)
    rows = prior.rows(CLASSES)
    with torch.no_grad():
        sampled = prior.decode(prior.sample(rows, generator(0), num_steps=num_steps))
    assert_close((sampled / 2 + 0.5).clamp(0, 1), theirs)
    with torch.no_grad():
        signal, spread = prior.schedule.steps(num_steps)[0].level
        z = noise * (1 - spread) / signal
        assert_close(prior.decode(prior.denoise(z, prior.embed(rows), noise)), sampled)
    with pytest.raises(UserError, match="num_steps=60 exceeds the 50 steps of the scheduler's training"):
        prior.schedule.steps(60)


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_tcd_equals_its_pipeline(tmp_path, num_steps, guidance):
    pytest.importorskip("transformers", reason="needs the extra text")
    pipeline = text_pipeline(tmp_path)
    pipeline.scheduler = TCDScheduler(**PUBLISHED)
    pipeline.save_pretrained(tmp_path / "tcd")
    pipeline.set_progress_bar_config(disable=True)
    prior = LatentDiffusionPrior(
        str(tmp_path / "tcd"), num_steps=num_steps, guidance_scale=guidance or 1.0, skip="none"
    )
    theirs = pipeline(
        ["a photo of a church", "a photo of a goldfish"], 32, 32, num_steps, guidance_scale=guidance, eta=0.0,
        generator=generator(0), output_type="np",
    ).images  # fmt: skip
    with torch.no_grad():
        sampled = prior.decode(prior.sample(prior.rows(CLASSES), generator(0), num_steps=num_steps))
    assert_close((sampled / 2 + 0.5).clamp(0, 1), torch.from_numpy(theirs).movedim(-1, 1))


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="needs the extra text")
    files = tmp_path_factory.mktemp("denoisers")
    xl_pipeline(files).save_pretrained(files / "xl")
    return files / "xl"


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_stable_diffusion_xl_equals_its_pipeline(tmp_path, xl_folder, guidance, zeros):
    """Two encoders, a pooled embedding, sizes; the null condition is zero, or the empty prompt."""
    folder = tmp_path / "xl"
    shutil.copytree(xl_folder, folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": zeros}))
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    assert pipeline.config.force_zeros_for_empty_prompt == zeros
    prior = LatentDiffusionPrior(str(folder), num_steps=STEPS, skip="none")
    assert prior.embed(prior.rows(CLASSES)).shape == (2, 33, 32)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["a photo of a church", "a photo of a goldfish"], height=32, width=32, num_inference_steps=STEPS,
        guidance_scale=guidance, generator=generator(0), output_type="np",
    ).images  # fmt: skip
    ours = images_of(prior, prior.embed(prior.rows(CLASSES)), guidance)
    assert_close(ours, torch.from_numpy(theirs).movedim(-1, 1))


@pytest.mark.parametrize("num_steps", [1, 4])
def test_sdxl_turbo_equals_its_pipeline(tmp_path, num_steps):
    pytest.importorskip("transformers", reason="needs the extra text")
    pipeline = xl_pipeline(tmp_path)
    pipeline.scheduler = EulerDiscreteScheduler(timestep_spacing="trailing", **PUBLISHED)
    pipeline.save_pretrained(tmp_path / "xl")
    pipeline.set_progress_bar_config(disable=True)
    prior = LatentDiffusionPrior(str(tmp_path / "xl"), num_steps=num_steps, guidance_scale=1.0)
    theirs = pipeline(
        ["a photo of a church", "a photo of a goldfish"], height=32, width=32, num_inference_steps=num_steps,
        guidance_scale=0.0, generator=generator(0), output_type="np",
    ).images  # fmt: skip
    with torch.no_grad():
        sampled = prior.decode(prior.sample(prior.rows(CLASSES), generator(0), num_steps=num_steps))
    assert_close((sampled / 2 + 0.5).clamp(0, 1), torch.from_numpy(theirs).movedim(-1, 1))


def test_guidance_of_the_first_channels_is_that_of_the_original_transformers(dit_folder):
    """e_u + s (e_c - e_u) in the first three of four channels, e_c in the last, at every step of DDIM."""
    prior = LatentDiffusionPrior(
        str(dit_folder), num_steps=2, guidance_scale=3.0, skip="none", guided_channels=3
    )
    rows, z = prior.rows(KNOWN), torch.zeros(3, *prior.latent_shape)
    x = noise = torch.randn(3, *prior.latent_shape, generator=generator(0))
    steps = prior.schedule.steps(2)
    with torch.no_grad():
        x = steps[0].level.noise * noise
        for step in steps:
            given = prior.denoiser(x, step.timestep, prior.embed(rows))
            without = prior.denoiser(x, step.timestep, prior.null(3))
            e = torch.cat([(without + 3 * (given - without))[:, :3], given[:, 3:]], 1)
            x0 = (x - step.level.noise * e) / step.level.signal
            x = step.end.signal * x0 + step.end.noise * e
        ours = prior.denoise(z, prior.embed(rows), noise)
    assert (ours - x).abs().max() < 1e-5
    for channels in (0, 5):
        with pytest.raises(UserError, match=f"guided_channels={channels} must be 1 to 4"):
            LatentDiffusionPrior(str(dit_folder), guided_channels=channels)


def test_gradients_equal_finite_differences(prior):
    """Float64, through the decoder; every part of the conditioning has its own effect."""
    prior.double()
    prior.guidance_scale = 3.0
    c = prior.embed(prior.rows(CLASSES)).detach().clone()
    z, n = torch.randn(2, 2, *prior.latent_shape, generator=generator(0)).double()
    leaves = [z.requires_grad_(), *([c.requires_grad_()] if c.numel() else [])]

    def value(z, c=c):
        latents = prior.denoise(z, c, n)
        if prior.autoencoder.quantised:  # decoding is a step function there
            return (latents * torch.linspace(-1, 2, latents.numel(), dtype=z.dtype).view_as(latents)).sum()
        images = prior.decode(latents)
        return (images * torch.linspace(-1, 2, images.numel(), dtype=z.dtype).view_as(images)).sum()

    gradients = torch.autograd.grad(value(*leaves), leaves)
    for which, gradient in enumerate(gradients):
        assert gradient.isfinite().all()
        assert gradient.flatten(2).abs().amax(2).gt(0).all()
        direction = torch.randn(gradient.shape, generator=generator(0, which), dtype=torch.float64)
        moved = [
            [
                leaf.detach() + (sign * 1e-5 * direction if part == which else 0)
                for part, leaf in enumerate(leaves)
            ]
            for sign in (1, -1)
        ]
        with torch.no_grad():
            slope = (value(*moved[0]) - value(*moved[1])) / 2e-5
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-6)


def test_recomputed_activations_give_the_same_gradients(prior):
    """No state of a forward is needed by its recomputation: two graphs, run backwards in the wrong order."""
    c = prior.embed(prior.rows(CLASSES)).detach().clone()
    codes = [torch.randn(2, 2, *prior.latent_shape, generator=generator(i)).unbind() for i in range(2)]
    plain = []
    for z, n in codes:
        z.requires_grad_()
        plain.append(torch.autograd.grad(prior.denoise(z, c, n).square().sum(), z)[0])
    losses = [
        checkpoint(prior.denoise, z, c * (1 + i), n, use_reentrant=False).square().sum()
        for i, (z, n) in enumerate(codes)
    ]
    recomputed = [torch.autograd.grad(losses[i], codes[i][0])[0] for i in (1, 0)]
    torch.testing.assert_close(recomputed[1], plain[0], rtol=0, atol=0)


class TestTransformerPrior(PriorConformance):
    known_classes = KNOWN

    @pytest.fixture
    def prior(self, dit_folder):
        return LatentDiffusionPrior(str(dit_folder), num_steps=3)


class TestUnconditionalPrior(PriorConformance):
    @pytest.fixture
    def prior(self, ldm_folder):
        return LatentDiffusionPrior(str(ldm_folder), num_steps=3)


class TestTextToImagePrior(PriorConformance):
    @pytest.fixture
    def prior(self, text_folder):
        return LatentDiffusionPrior(str(text_folder), num_steps=3)


class TestTurboPrior(PriorConformance):
    @pytest.fixture
    def prior(self, turbo_folder):
        return LatentDiffusionPrior(str(turbo_folder), num_steps=1, guidance_scale=1.0)


class TestLatentConsistencyPrior(PriorConformance):
    invertible = False  # there is no path that could be run backwards

    @pytest.fixture
    def prior(self, lcm_folder):
        return LatentDiffusionPrior(str(lcm_folder), num_steps=2)


class TestStableDiffusionXLPrior(PriorConformance):
    @pytest.fixture
    def prior(self, xl_folder):
        return LatentDiffusionPrior(str(xl_folder), num_steps=3)
