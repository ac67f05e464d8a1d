"""Draws of stored codes: the means are the stored images, each sub-task keeps its decoder, other priors are refused."""

from dataclasses import replace

import pytest
import torch
from gaussian_sets import SETTINGS, gaussian_set
from tiny_set import classes_of

from ldd.artefact.set import DistilledSet
from ldd.codes import GaussianCodes
from ldd.distiller.synthesis import StoredSampler, Synthesis
from ldd.errors import UserError
from ldd.federation import merge
from ldd.priors import DeconvolutionPrior, PixelPrior
from ldd.runtime.seeding import generator

TASK = classes_of(["a", "b", "c", "d"])


def part(wnids, seed):
    return gaussian_set(wnids, seed, log_variance=-1.0)


@pytest.fixture(scope="module")
def parts():
    return [part(["a", "c"], 1), part(["b", "d"], 2)]


def test_means_are_the_images(parts, tmp_path):
    loaded = DistilledSet.load(parts[0].save(tmp_path / "set"))
    sampler = StoredSampler(loaded)
    assert torch.equal(sampler(None), loaded.images)
    first, again, other = (sampler(generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == loaded.images.shape
    assert first.dtype == torch.uint8


def test_draws_are_mean_and_deviation(parts):
    """A draw by hand: z = mean + exp(l / 2) e, decoded by the same weights."""
    prior = DeconvolutionPrior(**SETTINGS)
    prior.load_trained(parts[0].decoder)
    codes = GaussianCodes(
        parts[0].labels, parts[0].codes["latents"], torch.zeros(4, 0, 0), torch.zeros(4, 0), log_variance=-1.0
    )
    drawn = codes(torch.arange(4), generator(3)).latents
    noise = (drawn - parts[0].codes["latents"]) / torch.tensor(-0.5).exp()
    assert 0.2 < float(noise.std()) < 2
    with torch.no_grad():
        expected = ((prior.decode(drawn).clamp(-1, 1) + 1) * 127.5).round().byte()
    assert torch.equal(StoredSampler(parts[0], prior)(generator(3)), expected)


def test_each_subtask_keeps_its_decoder(parts, tmp_path):
    merged = DistilledSet.load(merge(parts, TASK).save(tmp_path / "set"))
    means = StoredSampler(merged)(None)
    assert torch.equal(means, merged.images)
    for own, rows in zip(parts, ([0, 1, 4, 5], [2, 3, 6, 7]), strict=True):
        assert torch.equal(means[rows], own.images)
    assert merged.storage.form == "codes"
    assert merged.storage.decoder.floats == 2 * parts[0].storage.decoder.floats
    one, other = (StoredSampler(merged)(generator(seed)) for seed in (5, 5))
    assert torch.equal(one, other)


def test_priors_that_do_not_fit(parts):
    with pytest.raises(UserError, match="the prior is not the one that the set's codes belong to"):
        StoredSampler(parts[0], PixelPrior(16))
    other = parts[0].with_facts(prior={**parts[0].manifest["prior"], "sha256": "0" * 64})
    with pytest.raises(UserError, match="other frozen weights"):
        StoredSampler(other)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"names no prior of this package \(None\)"),
        (
            {"model": {"prior": {"class_path": "os.system", "init_args": {"command": "true"}}}},
            r"\(os.system\)",
        ),
        (
            {"model": {"prior": {"class_path": "ldd.priors.PixelPrior", "init_args": {"size": 3}}}},
            "cannot be built",
        ),
    ],
)
def test_a_manifest_runs_no_other_code(parts, config, message):
    changed = parts[0].with_facts(config=config)
    with pytest.raises(UserError, match=message):
        StoredSampler(changed)


def test_no_codes(parts):
    with pytest.raises(UserError, match="holds no codes to draw from"):
        StoredSampler(replace(parts[0], codes=None))


def test_draws_do_not_depend_on_the_chunks():
    labels = torch.arange(3).repeat_interleave(2)
    latents = torch.randn(6, 3, 8, 8, generator=generator(0))
    codes = GaussianCodes(labels, latents, torch.zeros(6, 0, 0), torch.zeros(6, 0), log_variance=-1.0)
    synthesis, state = Synthesis(codes, PixelPrior(8)), generator(1)
    whole = synthesis.draw(generator=state)
    assert torch.equal(
        whole, synthesis.draw(generator=state, chunk_size=4)
    )  # the generator is left as it was
    assert torch.equal(whole[[4, 1]], synthesis.draw(torch.tensor([4, 1]), state))
    assert not torch.equal(whole, synthesis.draw())
