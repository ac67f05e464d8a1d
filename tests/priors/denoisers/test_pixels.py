"""Models of pixels, without an autoencoder: consistency models against diffusers' pipeline, in one step and several."""

import json
import math
from pathlib import Path

import pytest
import torch
from conformance import PriorConformance
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDIMPipeline, DDIMScheduler
from diffusers.schedulers import scheduling_consistency_models
from tiny_denoisers import LABELS, consistency_pipeline, ldm_pipeline, name_rows, pixel_unet

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors import ConsistencySchedule, LatentDiffusionPrior, modified_reverse
from ldd.runtime.seeding import generator

KNOWN = (ClassInfo(0, 8, "tench", "x"), ClassInfo(1, 9, "my fish", "goldfish"))
SETTINGS = {"num_train_timesteps": 40, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
"""Of the published models of ImageNet at 64 px, which are the scheduler's defaults."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return name_rows(consistency_pipeline(), tmp_path_factory.mktemp("pixels") / "consistency")


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pixels") / "unconditional"
    consistency_pipeline(None).save_pretrained(folder)
    return folder


def theirs(folder, monkeypatch, num_steps, noise, labels):
    """In [0, 1], with this noise in every step, for which the pipeline draws others."""
    pipeline = ConsistencyModelPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(scheduling_consistency_models, "randn_tensor", lambda *_, **__: noise)
    images = pipeline(2, labels, num_steps, latents=noise, output_type="np").images
    return torch.from_numpy(images).movedim(-1, 1)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("form", ["folder", "unconditional"])
def test_consistency_models_equal_their_pipeline(form, num_steps, monkeypatch, request):
    """Samples, and the chain where Z is nothing; 3 and 7 do not divide the 40 levels."""
    folder = request.getfixturevalue(form)
    prior = LatentDiffusionPrior(str(folder), num_steps=num_steps, skip="none")
    assert (prior.image_size, prior.latent_shape) == (16, (3, 16, 16))
    assert prior.guidance_scale == 1 or form == "unconditional"  # where it has no effect
    rows = prior.rows(KNOWN)
    assert rows.tolist() == [0, 1]
    noise = torch.randn(2, *prior.latent_shape, generator=generator(0))
    expected = theirs(folder, monkeypatch, num_steps, noise, rows.tolist())
    assert expected.std() > 0.01
    with torch.no_grad():
        sampled = prior.decode(prior.sample(rows, generator(0), num_steps=num_steps))
        chained = prior.decode(prior.denoise(torch.zeros_like(noise), prior.embed(rows), noise))
    for images in (sampled, chained):
        assert ((images / 2 + 0.5).clamp(0, 1) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 40])
def test_the_grid_is_the_scheduler_s(num_steps):
    """Its levels are float32, its timesteps float64."""
    library = CMStochasticIterativeScheduler(**SETTINGS)
    library.set_timesteps(num_steps)
    steps = ConsistencySchedule(**SETTINGS).steps(num_steps)
    for step, sigma, timestep in zip(
        steps, library.sigmas.tolist(), library.timesteps.tolist(), strict=False
    ):
        assert step.timestep == pytest.approx(timestep, abs=1e-9)
        assert step.level.noise / step.level.signal == pytest.approx(sigma, rel=1e-6)
        assert 1 / step.level.signal == pytest.approx(math.sqrt(sigma**2 + 0.25), rel=1e-6)
    assert steps[-1].end == (1.0, 0.0)


def network(x, timestep):
    """A smooth stand-in that knows its time."""
    return torch.tanh(x.roll(1, -1) - 0.3 * x.roll(1, 1) + math.sin(timestep / 200))


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("num_steps", "start"), [(1, 1.0), (1, 0.5), (4, 1.0), (4, 0.6)])
def test_the_chain_by_hand(num_steps, start, clip):
    """Algorithm 1 of arXiv:2303.01469 with the boundary condition of its appendix C, in images of full size."""
    schedule = ConsistencySchedule(**SETTINGS, s_noise=0.9, clip_denoised=clip)
    z, n = torch.randn(2, 2, 3, 8, 8, generator=generator(0), dtype=torch.float64)
    levels = [math.floor(start * (39 - k * (40 // num_steps))) for k in range(num_steps)]
    sigmas = [(0.002 ** (1 / 7) + i / 39 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in levels]
    images = z + sigmas[0] * n
    for k, sigma in enumerate(sigmas):
        output = network(images / math.sqrt(sigma**2 + 0.25), 250 * math.log(sigma))
        c_skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
        c_out = (sigma - 0.002) * 0.5 / math.sqrt(sigma**2 + 0.25)
        images = c_skip * images + c_out * output
        if k + 1 < num_steps:
            images = images.clamp(-1, 1) if clip else images
            images = images + 0.9 * n * math.sqrt(sigmas[k + 1] ** 2 - 0.002**2)
    ours = modified_reverse(network, z, n, schedule, num_steps, start=start, skip="none")
    assert (ours - images).abs().max() < 1e-9


@pytest.mark.parametrize("classes", [5, None])
def test_gradients_equal_finite_differences(folder, unconditional, classes):
    """Float64, of Z, c and the noise; the chain begins where Z counts."""
    prior = LatentDiffusionPrior(str(folder if classes else unconditional), start=0.4).double()
    c = prior.embed(prior.rows(KNOWN)).detach().clone()
    z, n = torch.randn(2, 2, *prior.latent_shape, generator=generator(0)).double()
    weights = torch.linspace(-1, 2, z.numel(), dtype=torch.float64).view_as(z)
    leaves = [leaf.requires_grad_() for leaf in (z, n, c) if leaf.numel()]

    def value(z, n, c=c):
        return (prior.decode(prior.denoise(z, c, n)) * weights).sum()

    gradients = torch.autograd.grad(value(*leaves), leaves)
    for which, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator(0, which), dtype=torch.float64)
        with torch.no_grad():
            ends = [
                value(
                    *(
                        leaf + sign * 1e-5 * direction if part == which else leaf
                        for part, leaf in enumerate(leaves)
                    )
                )
                for sign in (1, -1)
            ]
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-6)
        assert gradient.flatten(1).abs().amax(1).gt(0).all()


def test_diffusion_models_of_pixels_equal_their_pipeline(tmp_path):
    """As the first models of diffusers are: a UNet2DModel without classes, next to a table of betas."""
    pipeline = DDIMPipeline(pixel_unet(), DDIMScheduler())
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    prior = LatentDiffusionPrior(str(tmp_path), skip="none")
    assert (prior.num_steps, prior.image_size) == (10, 16)
    expected = pipeline(2, generator(0), num_inference_steps=5, output_type="np").images
    with torch.no_grad():
        sampled = prior.decode(prior.sample(torch.arange(2), generator(0), num_steps=5))
    error = (sampled / 2 + 0.5).clamp(0, 1) - torch.from_numpy(expected).movedim(-1, 1)
    assert error.abs().max() < 1e-5


def test_a_null_row_that_the_card_names_allows_guidance(folder, tmp_path):
    consistency_pipeline().save_pretrained(tmp_path)
    card = {"classes": [], "null_class": 4, "image_size": 16, "licence": "none"}
    (tmp_path / "prior.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"guidance_scale=2.0 needs the condition of no class"):
        LatentDiffusionPrior(str(folder), guidance_scale=2.0)
    with pytest.raises(UserError, match=r"guidance_scale=3.0 needs the condition of no class"):
        LatentDiffusionPrior(str(folder)).sample(
            torch.tensor([0]), generator(0), num_steps=1, guidance_scale=3.0
        )
    prior = LatentDiffusionPrior(str(tmp_path), guidance_scale=2.0)
    z, n = torch.randn(2, 2, *prior.latent_shape, generator=generator(0))
    c = prior.embed(torch.tensor([0, 1]))
    with torch.no_grad():
        step = prior.schedule.steps(1)[0]
        x = step.level.signal * z + step.level.noise * n
        given, without = (prior.denoiser(x, step.timestep, row) for row in (c, prior.null(2)))
        expected = prior.schedule.split(without + 2 * (given - without), x, step)[0]
        assert (prior.denoise(z, c, n) - expected).abs().max() < 1e-5
    (tmp_path / "prior.json").write_text(json.dumps(card | {"null_class": 9}))
    with pytest.raises(UserError, match="null_class 9, but the class tables of component 'unet' have 5 rows"):
        LatentDiffusionPrior(str(tmp_path))


def test_rows_are_those_of_the_table(folder):
    """Unlike a diffusion transformer's, none of them is left for the null class."""
    prior = LatentDiffusionPrior(str(folder), classes={"a": 4})
    assert [info.name for info in prior.classes] == [text.split(",")[0] for text in LABELS.values()]
    assert prior.rows([ClassInfo(0, 0, "a", "a")]).tolist() == [4]
    with pytest.raises(UserError, match=r"maps a .* to 5"):
        LatentDiffusionPrior(str(folder), classes={"a": 5}).rows([ClassInfo(0, 0, "a", "a")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_timesteps": 1}, "num_train_timesteps=1 must be at least 2"),
        ({"sigma_min": 90.0}, "sigma_min=90.0 and sigma_max=80.0 must be positive and rise"),
        ({"rho": 0}, "rho=0 must be a positive number"),
        ({"sigma_data": "x"}, "cannot be used as CMStochasticIterativeScheduler"),
    ],
)
def test_settings_that_cannot_be_right(tmp_path, changes, message):
    consistency_pipeline().save_pretrained(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        LatentDiffusionPrior(str(tmp_path))


def test_what_means_nothing_here_is_refused(folder, tmp_path):
    for arguments, message in (
        ({"num_steps": 41}, "num_steps=41 exceeds the 40 noise levels"),
        ({"grid": "compvis"}, "grid='compvis' is for tables of betas"),
        ({"quantise_decoded": False}, "quantise_decoded=false has no effect"),
        ({"image_size": 15}, "needs a multiple of 2"),
    ):
        with pytest.raises(UserError, match=message):
            LatentDiffusionPrior(str(folder), **arguments)
    ldm_pipeline().save_pretrained(tmp_path)  # a model of latents that has lost its autoencoder
    for path in (tmp_path / "vqvae").iterdir():
        path.unlink()
    (tmp_path / "vqvae").rmdir()
    pixel_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match="component 'vae' is missing"):
        LatentDiffusionPrior(str(tmp_path))


class TestConsistencyPrior(PriorConformance):
    known_classes = KNOWN
    invertible = False  # there is no path that could be run backwards

    @pytest.fixture
    def prior(self, folder):
        return LatentDiffusionPrior(str(folder), num_steps=2, start=0.5)


class TestOneStepConsistencyPrior(PriorConformance):
    known_classes = KNOWN
    invertible = False

    @pytest.fixture
    def prior(self, folder):
        return LatentDiffusionPrior(str(folder), start=0.5)


class TestUnconditionalPixels(PriorConformance):
    """A diffusion model of pixels."""

    @pytest.fixture
    def prior(self, tmp_path):
        DDIMPipeline(pixel_unet(), DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path)
        return LatentDiffusionPrior(str(tmp_path), num_steps=3)
