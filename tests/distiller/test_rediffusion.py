"""Re-diffusion against DDIM with a pull, written out; its record; sets of other programs; the last stage of a run."""

import shutil
from dataclasses import replace

import pytest
import torch
from small_runs import fit, matching
from tiny_prior import CLASSES
from tiny_set import random_images

from ldd import cli
from ldd.artefact.identity import identify
from ldd.artefact.set import DistilledSet
from ldd.distiller.rediffusion import PullBack, Rediffusion, rediffuse
from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors import LatentDiffusionPrior, PixelPrior
from ldd.runtime.seeding import generator

SHORT = Rediffusion(num_steps=6, strength=0.7, stop_step=2, pull=0.3, guidance_scale=1.5, chunk_size=2)


@pytest.fixture(scope="module")
def prior(tiny_prior_path):
    return LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)


def digits_set(size=32, **facts):
    infos = [ClassInfo(i, row["id"], row["wnid"], row["name"]) for i, row in enumerate(CLASSES[3:5])]
    labels = torch.tensor([0, 0, 0, 1, 1])
    return DistilledSet.from_images(random_images(5, size), labels, infos, **facts)


def by_hand(prior, clean, row, noise):
    """DDIM of a network that predicts the noise, from 4 of 6 steps on, with the pull of the formula."""
    steps = prior.schedule.steps(6)[2:]
    x = steps[0].level.signal * clean + steps[0].level.noise * noise
    given, null = prior.embed(row.expand(len(x))), prior.null(len(x))
    for k, step in zip((3, 2, 1, 0), steps, strict=True):
        without, under = (prior.denoiser(x, step.timestep, c) for c in (null, given))
        e = without + 1.5 * (under - without)
        x0 = (x - step.level.noise * e) / step.level.signal
        following = step.end.signal * x0 + step.end.noise * e
        if k >= 2:
            following = following - 0.3 * step.level.noise * (x - clean)
        x = following
    return x


@torch.no_grad()
def test_images_are_those_of_the_formula(prior):
    distilled = digits_set()
    made = rediffuse(distilled, prior, SHORT, seed=4)
    for label in (0, 1):
        places = (distilled.labels == label).nonzero().flatten()
        info, drawing = distilled.classes[label], generator(4, "rediffusion", distilled.classes[label].wnid)
        clean = prior.encode(distilled.images[places].float() / 127.5 - 1)
        noise = torch.cat([torch.randn(len(part), 4, 8, 8, generator=drawing) for part in clean.split(2)])
        images = prior.decode(by_hand(prior, clean, prior.rows([info]), noise)).clamp(-1, 1)
        wanted = ((images + 1) * 127.5).round()
        assert (made.images[places].float() - wanted).abs().max() <= 1  # float32 in another order
    assert not torch.equal(made.images, distilled.images)
    assert torch.equal(rediffuse(distilled, prior, SHORT, seed=4).images, made.images)


@torch.no_grad()
def test_the_pull_alone_to_single_precision(prior):
    clean = torch.randn(3, 4, 8, 8, generator=generator(1))
    row = prior.rows([ClassInfo(0, 3, "digit-3", "3")])
    found = prior.sample(
        row.expand(3),
        generator(2),
        num_steps=6,
        guidance_scale=1.5,
        start=clean,
        strength=0.7,
        guide=PullBack(clean, 0.3, 2),
    )
    wanted = by_hand(prior, clean, row, torch.randn(3, 4, 8, 8, generator=generator(2)))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_a_set_tells_what_was_done_and_keeps_nothing_that_no_longer_holds(prior, tmp_path):
    distilled = digits_set(
        16,
        codes={"latents": torch.zeros(5, 1)},
        soft_labels=torch.full((5, 2), 0.5),
        weights=torch.arange(5.0),
        licences={"prior": "MIT", "data": "CC0"},
    )
    twice = rediffuse(rediffuse(distilled, prior, SHORT, 1), prior, replace(SHORT, pull=0.0), 2)
    loaded = DistilledSet.load(twice.save(tmp_path / "set"))
    assert loaded.images.shape == (5, 3, 16, 16)  # through the prior's 32 px and back
    assert loaded.codes is loaded.soft_labels is loaded.manifest.prior is None
    assert torch.equal(loaded.weights, distilled.weights)
    assert loaded.manifest.licences == {"prior": "MIT; random weights", "data": "CC0"}
    first, second = loaded.manifest.rediffused
    assert (first["seed"], second["seed"], first["pull"], second["pull"]) == (1, 2, 0.3, 0.0)
    assert first["prior"] == identify(prior)


def test_the_verb_takes_an_imported_set(prior, tiny_prior_path, tmp_path, capsys):
    """A .pt file of another program, imported, re-diffused; then what cannot be done, before anything is written."""
    labels = tmp_path / "classes.txt"
    labels.write_text("digit-3\ndigit-4\n")
    file = tmp_path / "images.pt"
    torch.save({"images": random_images(4, 32), "labels": torch.tensor([0, 0, 1, 1])}, file)
    assert cli.main(["import", str(file), "--classes", str(labels), "--out", str(tmp_path / "set")]) == 0
    options = ["--rediffusion.num_steps", "4", "--rediffusion.stop_step", "1", "--seed", "3"]
    words = [
        "rediffuse",
        str(tmp_path / "set"),
        "--prior",
        str(tiny_prior_path),
        "--out",
        str(tmp_path / "out"),
        *options,
    ]
    assert cli.main(words) == 0
    assert "4 images of 2 classes re-diffused" in capsys.readouterr().out
    made = DistilledSet.load(tmp_path / "out")
    settings = Rediffusion(num_steps=4, stop_step=1)
    assert torch.equal(made.images, rediffuse(DistilledSet.load(tmp_path / "set"), prior, settings, 3).images)
    assert made.manifest.imported
    assert made.manifest.ledger.stages["rediffuse"]["decodes"] == 4
    shutil.rmtree(tmp_path / "out")
    assert cli.main([*words[:2], *words[4:]]) == 2
    assert "rediffusion.prior: name the folder or hub id of a prior" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_last_stage_of_a_run(digits, tiny_prior_path, tmp_path):
    """Pixels that a prior of another kind re-diffuses: what is exported is what the verb would make of the set."""
    settings = Rediffusion(str(tiny_prior_path), num_steps=2, stop_step=0)
    plain = fit(PixelPrior(32), matching(), tmp_path / "plain", 1, digits)
    fit(PixelPrior(32), matching(), tmp_path / "run", 1, digits, rediffusion=settings)
    exported = DistilledSet.load(tmp_path / "run")
    expected = rediffuse(plain.distilled_set(), settings.load_prior(None, torch.device("cpu")), settings, 0)
    assert torch.equal(exported.images, expected.images)
    assert exported.manifest.ledger.stages["rediffuse"]["decodes"] == 10
    assert exported.manifest.seen_networks


def test_what_is_refused(digits):
    with pytest.raises(UserError, match=r"rediffusion.strength \(0\) must be above 0"):
        Rediffusion(strength=0)
    with pytest.raises(UserError, match=r"rediffusion.pull \(-1\)"):
        Rediffusion(pull=-1)
    for settings in ({"num_steps": 20}, {"strength": 0.2}, {"num_steps": 1, "stop_step": 1}):
        with pytest.raises(
            UserError, match=r"rediffusion.stop_step \(1?[01]\) must be below the (10|1) steps"
        ):
            Rediffusion(**settings)
        assert Rediffusion(**settings, pull=0).pull == 0
    from ldd.distiller.module import Distiller

    with pytest.raises(UserError, match=r"rediffusion.prior: PixelPrior has no diffusion model"):
        Distiller(PixelPrior(32), matching(), digits.spec, rediffusion=Rediffusion())
