"""Original DiT and SiT checkpoints: what the converted prior computes against the papers' arithmetic."""

import json

import original_transformer as original
import pytest
import torch
from tiny_prior import tiny_autoencoder

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors import LatentDiffusionPrior
from ldd.priors.conversion.transformer import convert_transformer
from ldd.runtime.seeding import generator, seeded

CLASSES = [ClassInfo(i, i, f"n{i}", f"class {i}") for i in range(original.ROWS - 1)]


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae") / "autoencoder"
    with seeded(0, "vae"):
        tiny_autoencoder(shift_factor=None).save_pretrained(folder)
    return str(folder)


def convert(tmp_path, vae, form, content, **options):
    torch.save(content, tmp_path / "model.pt")
    settings = {"classes": CLASSES, "licence": "random weights", "heads": original.HEADS, **options}
    return convert_transformer(tmp_path / "model.pt", form, vae, tmp_path / "prior", **settings)


def latents(*key):
    shape = (2, original.CHANNELS, original.SIDE, original.SIDE)
    return torch.randn(shape, generator=generator(0, *key), dtype=torch.float64)


@pytest.mark.parametrize("outputs", [4, 8], ids=["C channels", "2C channels"])
def test_sit_is_the_official_flow(tmp_path, vae, outputs):
    """Euler from noise to data with v = data - noise, time from 0 to 1; the first C channels count."""
    weights = original.state(outputs)
    folder = convert(tmp_path, vae, "sit", weights)
    prior = LatentDiffusionPrior(str(folder), num_steps=4, guidance_scale=1.0).double()
    rows, steps = torch.tensor([1, 3]), 4
    z = latents("noise")
    for k in range(steps):
        t = torch.full((2,), k / steps)
        z = z + original.forward(weights, z, t, rows)[:, :4] / steps
    noise = latents("noise")
    denoised = prior.schedule.steps(steps)
    assert [step.timestep for step in denoised] == [1.0, 0.75, 0.5, 0.25]
    x = noise
    for step in denoised:
        x0, e = prior.schedule.split(prior.denoiser(x, step.timestep, prior.embed(rows).double()), x, step)
        x = step.end.signal * x0 + step.end.noise * e
    assert (x - z).abs().max() / z.abs().max() < 1e-6  # sinusoids are float32 in the network
    saved = json.loads((folder / "prior.json").read_text())
    assert "_name_or_path" not in json.loads((folder / "vae" / "config.json").read_text()), "where it lay"
    assert (saved["form"], saved["null_class"], saved["image_size"]) == ("sit", 5, 32)


def test_dit_is_the_official_network(tmp_path, vae):
    """Whole timesteps, and the frequencies of the original, which diffusers' own model has not."""
    weights = original.state(8)
    prior = LatentDiffusionPrior(str(convert(tmp_path, vae, "dit", weights)), num_steps=4).double()
    x, rows = latents("x"), torch.tensor([0, 4])
    for timestep in (0, 250, 999):
        ours = prior.denoiser(x, timestep, prior.embed(rows).double())
        theirs = original.forward(weights, x, torch.tensor([timestep] * 2), rows)[:, :4]
        assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5
    for block in prior.denoiser.network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 1
    plain = prior.denoiser(x, 999, prior.embed(rows).double())
    assert (plain - theirs).abs().max() / theirs.abs().max() > 1e-4


def test_codes_get_gradients_through_a_sit(tmp_path, vae):
    prior = LatentDiffusionPrior(str(convert(tmp_path, vae, "sit", original.state())), num_steps=2)
    z = latents("z").float().requires_grad_()
    c = prior.embed(torch.tensor([0, 1])).detach().clone().requires_grad_()
    made = prior.decode(prior.denoise(z, c, latents("n").float()))
    assert made.shape == (2, 3, 32, 32)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(made.square().mean(), (z, c)))


def test_training_checkpoints_and_repa(tmp_path, vae):
    """The moving average by default; REPA's projectors serve only its loss."""
    ema, raw = original.state(seed=1), original.state(seed=2)
    content = {"ema": ema | {"projectors.0.0.weight": torch.zeros(3, 3)}, "model": raw, "args": {"lr": 1e-4}}
    for weights, expected in (("ema", ema), ("raw", raw)):
        (tmp_path / weights).mkdir()
        folder = convert(tmp_path / weights, vae, "sit", content, weights=weights)
        found = LatentDiffusionPrior(str(folder)).denoiser.network.proj_out_2.weight
        assert torch.equal(found, expected["final_layer.linear.weight"])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.proj.bias"), {}, "lacks blocks.1.attn.proj.bias"),
        (lambda s: s.pop("x_embedder.proj.weight"), {}, "not an original DiT or SiT: it lacks x_embedder"),
        (lambda s: s.update({"extra.weight": torch.zeros(2)}), {}, "no DiT or SiT has: extra.weight"),
        (lambda s: s["pos_embed"].mul_(2), {}, "not the table of sines"),
        (lambda s: s["final_layer.linear.bias"].fill_(float("nan")), {}, "holds other than finite numbers"),
        (lambda s: s.update({"blocks.0.mlp.fc1.weight": torch.zeros(64, 32)}), {}, "is .64, 32., not"),
        (lambda s: None, {"heads": 5}, r"--heads \(5\) must divide the width of the transformer, 32"),
        (lambda s: None, {"heads": None}, r"--heads \(0\) must divide"),
        (lambda s: None, {"classes": CLASSES[:3]}, "has 6 rows, which must be the 3 classes and one null"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, vae, change, options, message):
    weights = original.state()
    change(weights)
    with pytest.raises(UserError, match=message):
        convert(tmp_path, vae, "sit", weights, **options)
    assert not (tmp_path / "prior").exists()
