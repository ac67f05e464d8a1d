"""The modified reverse process through a U-Net, against loops written from the formula and from diffusers."""

import json
import math

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_prior import tiny_unet, write_prior_folder

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors import LatentDiffusionPrior
from ldd.runtime.seeding import generator

SKIPS = ["clean", "noised", "none"]


class StraightThrough(torch.autograd.Function):
    """Nearest code by an explicit search; the gradient passes as if nothing had happened."""

    @staticmethod
    def forward(ctx, z, codes):
        distances = (z[:, None] - codes[None, :, :, None, None]).square().sum(2)
        return codes[distances.argmin(1)].permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Reference:
    """The prior's folder read anew; every formula is written out here, nothing is taken from `ldd`."""

    def __init__(self, folder, dtype=torch.float64, scaling=0.7):
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).to(dtype)
        self.scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(dtype)
        self.scheduler.final_alpha_cumprod = self.scheduler.final_alpha_cumprod.to(dtype)
        self.null = load_file(folder / "class_embedding.safetensors")["weight"][10].to(dtype)
        vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
        codes = vae.get("quantize.embedding.weight")
        self.codes = None if codes is None else codes.to(dtype)
        self.scaling = scaling

    def quantise(self, z):
        if self.codes is None:
            return z
        return StraightThrough.apply(z / self.scaling, self.codes) * self.scaling

    def noise_prediction(self, x, t, c, guidance):
        e_c = self.unet(x, t, encoder_hidden_states=c).sample
        e_u = self.unet(x, t, encoder_hidden_states=self.null.expand_as(c)).sample
        return e_u + guidance * (e_c - e_u)

    def library(self, z, c, n, num_steps, guidance):
        self.scheduler.set_timesteps(num_steps)
        x = self.scheduler.add_noise(z, n, self.scheduler.timesteps[:1])
        for t in self.scheduler.timesteps:
            e = self.noise_prediction(x, t, c, guidance)
            x = self.scheduler.step(e, int(t), x, eta=0.0).prev_sample
        return x

    def formula(self, z, c, n, num_steps, guidance, skip):
        beta = torch.linspace(math.sqrt(0.0015), math.sqrt(0.0195), 1000) ** 2
        abar = torch.cumprod(1 - beta, 0).to(z.dtype)
        stride, last = 1000 // num_steps, num_steps - 1
        times = [1 + stride * k for k in range(num_steps)]
        x = x_start = abar[times[last]].sqrt() * z + (1 - abar[times[last]]).sqrt() * n
        for k in range(last, -1, -1):
            w = k / last if num_steps > 1 else 0.0
            now, before = abar[times[k]], abar[max(times[k] - stride, 0)]
            e = self.noise_prediction(x, times[k], c, guidance)
            x0 = (x - (1 - now).sqrt() * e) / now.sqrt()
            if skip == "clean":
                x0 = (1 - w) * x0 + w * self.quantise(z)
            x = before.sqrt() * x0 + (1 - before).sqrt() * e
            if skip == "noised":
                x = (1 - w) * x + w * x_start
        return x

    def run(self, z, c, n, num_steps, guidance, skip):
        if skip == "none":
            return self.library(z, c, n, num_steps, guidance)
        return self.formula(z, c, n, num_steps, guidance, skip)


@pytest.fixture(scope="module")
def reference_kl(kl_folder):
    return Reference(kl_folder)


@pytest.fixture(scope="module")
def reference_vq(vq_folder):
    return Reference(vq_folder)


def codes_for(dtype=torch.float64):
    """Z (2, 4, 8, 8) and c (2, 1, 16) as leaves, noise; drawn in float32 so that both precisions start alike."""
    z, n = torch.randn(2, 2, 4, 8, 8, generator=generator(0, "codes")).to(dtype)
    c = torch.randn(2, 1, 16, generator=generator(0, "c")).to(dtype)
    return z.clone().requires_grad_(), c.requires_grad_(), n


def weighed(images):
    """A scalar with an uneven gradient."""
    return (images * torch.linspace(-1, 2, images.numel(), dtype=images.dtype).view_as(images)).sum()


@pytest.mark.parametrize(
    ("vq", "skip"), [(False, "clean"), (False, "noised"), (False, "none"), (True, "clean"), (True, "noised")]
)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 5, 7, 10])
def test_latents_and_gradients_equal_the_reference(load, request, vq, skip, guidance, num_steps):
    """Float64 against float64 to 1e-9; for a quantised prior the reference is straight-through autograd."""
    reference = request.getfixturevalue("reference_vq" if vq else "reference_kl")
    prior = load(vq, num_steps=num_steps, guidance_scale=guidance, skip=skip).double()
    z, c, n = codes_for()
    ours = prior.denoise(z, c, n)
    theirs = reference.run(z, c, n, num_steps, guidance, skip)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    for mine, other in zip(
        torch.autograd.grad(weighed(ours), [z, c]), torch.autograd.grad(weighed(theirs), [z, c]), strict=True
    ):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_single_precision_stays_close(load, reference_kl, skip, guidance):
    """Float32 against the float64 reference, relative 1e-4."""
    prior = load(num_steps=10, guidance_scale=guidance, skip=skip)
    with torch.no_grad():
        ours = prior.denoise(*codes_for(torch.float32)).double()
        theirs = reference_kl.run(*codes_for(), 10, guidance, skip)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_gradients_equal_finite_differences(load, skip, guidance):
    """Central differences along random directions of Z and of c, through the decoder too."""
    prior = load(num_steps=5, guidance_scale=guidance, skip=skip).double()
    z, c, n = codes_for()

    def value(z, c):
        return weighed(prior.decode(prior.denoise(z, c, n)))

    gradients = torch.autograd.grad(value(z, c), [z, c])
    for which, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator(0, which), dtype=torch.float64)
        shifts = [1e-5 * direction if part == which else 0.0 for part in range(2)]
        with torch.no_grad():
            slope = (value(z + shifts[0], c + shifts[1]) - value(z - shifts[0], c - shifts[1])) / 2e-5
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-6)


def test_guidance_zero_is_the_null_condition(load, reference_kl):
    z, c, n = codes_for()
    with torch.no_grad():
        unguided = load(num_steps=3, guidance_scale=0).double().denoise(z, c, n)
        theirs = reference_kl.formula(z, c, n, 3, 0.0, "clean")
    torch.testing.assert_close(unguided, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("guidance", "batch"), [(0.0, 2), (1.0, 2), (3.0, 4)])
def test_one_network_call_per_step(load, guidance, batch):
    """Guided steps run one batch of 2N, the others one of N."""
    prior = load(num_steps=4, guidance_scale=guidance)
    batches = []
    prior.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    with torch.no_grad():
        prior.denoise(*codes_for(torch.float32))
    assert batches == [batch] * 4


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_other_prediction_types(tmp_path, prediction):
    """Guidance acts on the output before it is converted, as in the library's pipelines."""
    folder = write_prior_folder(tmp_path / "prior", prediction_type=prediction)
    prior = LatentDiffusionPrior(str(folder), num_steps=7, skip="none").double()
    z, c, n = codes_for()
    with torch.no_grad():
        theirs = Reference(folder).library(z, c, n, 7, 3.0)
        torch.testing.assert_close(prior.denoise(z, c, n), theirs, rtol=0, atol=1e-9)


def test_sample_uses_guidance_and_guide(load):
    prior = load(guidance_scale=2.0)
    rows = torch.tensor([3, 8])
    seen = []

    def guide(x0, k, given):
        seen.append((k, given.tolist()))
        return torch.zeros_like(x0)

    plain = prior.sample(rows, generator(0), num_steps=4)
    assert torch.equal(plain, prior.sample(rows, generator(0), num_steps=4, guidance_scale=2.0, guide=guide))
    assert seen == [(k, [3, 8]) for k in (3, 2, 1, 0)]
    assert not torch.allclose(plain, prior.sample(rows, generator(0), num_steps=4, guidance_scale=1.0))
    start = torch.full((2, 4, 8, 8), 5.0)
    near = prior.sample(rows, generator(0), num_steps=50, guidance_scale=1.0, start=start, strength=0.02)
    assert (near - start).abs().mean() < 0.5


def test_rows_by_wnid_then_by_name(load):
    prior = load()
    classes = [ClassInfo(0, 99, "digit-7", "seven"), ClassInfo(1, 0, "my-folder", "4")]
    assert prior.rows(classes).tolist() == [7, 4]
    assert torch.equal(prior.embed(torch.tensor([7]))[0, 0], prior.denoiser.class_embedding[7])
    assert torch.equal(prior.null(3)[2, 0], prior.denoiser.class_embedding[10])


def test_ambiguous_names_and_long_lists(tmp_path):
    """Two classes named alike (ImageNet has a crane and a crane) are told apart by WordNet id only."""
    folder = write_prior_folder(tmp_path / "prior")
    save_file({"weight": torch.randn(31, 16)}, folder / "class_embedding.safetensors")
    card = json.loads((folder / "prior.json").read_text())
    card["classes"] = [
        {"id": i, "wnid": f"n{i}", "name": "crane" if i < 2 else f"name {i}"} for i in range(30)
    ]
    card["null_class"] = 30
    (folder / "prior.json").write_text(json.dumps(card))
    prior = LatentDiffusionPrior(str(folder))
    assert prior.rows([ClassInfo(0, 0, "n1", "crane")]).tolist() == [1]
    with pytest.raises(
        UserError, match=r"does not know the classes cranes/ \(crane\); it knows n0 \(crane\), .* and 10 more"
    ):
        prior.rows([ClassInfo(0, 0, "cranes/", "crane")])


def test_another_image_size(load):
    prior = load(image_size=48)
    assert (prior.image_size, prior.latent_shape) == (48, (4, 12, 12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": -1}, "num_steps=-1 must be at least 1"),
        ({"num_steps": 1000}, "num_steps=1000 leads to timestep 1000"),
        ({"guidance_scale": -1.0}, r"guidance_scale=-1\.0 must be a finite number of at least 0"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan must be"),
        ({"skip": "linear"}, "skip='linear' is unknown; choose one of clean, noised, none"),
        (
            {"image_size": 30},
            "image_size=30 is not divisible by the autoencoder's factor 4; nearest good sizes: 28 or 32",
        ),
        ({"image_size": 3}, "image_size=3 is not divisible .* nearest good sizes: 4$"),
        ({"image_size": 0}, "image_size=0 is not divisible .* nearest good sizes: 4$"),
    ],
)
def test_bad_arguments(load, arguments, message):
    with pytest.raises(UserError, match=message):
        load(**arguments)


def test_components_that_do_not_fit(tmp_path):
    folder = write_prior_folder(tmp_path / "prior")
    tiny_unet(channels=3).save_pretrained(folder / "unet")
    with pytest.raises(
        UserError, match="component 'unet' maps 3 to 3 channels but the autoencoder's latents have 4"
    ):
        LatentDiffusionPrior(str(folder))
    tiny_unet(width=24).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=r"table of shape \(11, 16\); .* asks for \(rows, 24\)"):
        LatentDiffusionPrior(str(folder))
    tiny_unet().save_pretrained(folder / "unet")
    save_file({"weight": torch.randn(10, 16)}, folder / "class_embedding.safetensors")
    with pytest.raises(
        UserError, match="names 10 classes and null_class 10, but the class table has 10 rows"
    ):
        LatentDiffusionPrior(str(folder))
    UNet2DConditionModel.from_config(tiny_unet().config, num_class_embeds=11).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=r"wants inputs beyond a class token \(num_class_embeds\)"):
        LatentDiffusionPrior(str(folder))


def test_no_steps_decode_the_latents_themselves(load):
    prior, with_steps = load(num_steps=0), load(num_steps=3)
    latents, rows = torch.randn(2, 4, 8, 8, generator=generator(0)), torch.tensor([3, 8])
    assert prior.denoise(latents, torch.zeros(2, 0, 0), torch.zeros(2, 0)) is latents
    drawn = [one.sample(rows, generator(1), num_steps=4) for one in (prior, with_steps)]
    assert torch.equal(*drawn)
    inverted = [one.invert(latents, one.embed(rows), 4, 0.5) for one in (prior, with_steps)]
    assert torch.equal(*inverted)
    state = with_steps.sample(
        rows, generator(2), num_steps=4, state=inverted[0], strength=0.5, guidance_scale=1
    )
    assert (state - latents).norm() < 0.5 * latents.norm()
