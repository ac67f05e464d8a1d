"""The priors in the package: small, described, and generators of the digits that they are asked for."""

import json

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import interpolate

from ldd.data import DigitsSource, DistillationData
from ldd.disk.files import read_yaml
from ldd.disk.public import public_configuration
from ldd.disk.shipped import configs_folder
from ldd.priors import LatentDiffusionPrior
from ldd.priors.loading import locate
from ldd.runtime.seeding import generator

STEPS = {"digits": 10, "digits-one-step": 1}


@pytest.fixture(params=STEPS)
def name(request):
    return request.param


def test_an_embedded_prior_is_small_and_described(name):
    folder = locate(f"embedded:{name}", ())
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 5_000_000
    card = (folder / "README.md").read_text()
    for fact in (
        f"`latentdd prior train --config configs/prior_training/{name.replace('-', '_')}.yaml`",
        "CC BY 4.0",
        "seed",
        "steps of",
    ):
        assert fact in card
    assert DigitsSource().fingerprint("test") in card  # the split it left out is the split we test on


def test_each_has_a_recipe_and_says_nothing_of_the_machine_that_made_it(name):
    file = configs_folder() / "prior" / f"{name.replace('-', '_')}.yaml"
    assert read_yaml(file)["init_args"]["path_or_hub_id"] == f"embedded:{name}"
    for path in locate(f"embedded:{name}", ()).rglob("*.json"):
        value = json.loads(path.read_text())
        assert public_configuration(value, path.name) == value
        assert not value.get("_name_or_path")


def test_the_two_are_of_one_autoencoder():
    """So that their latents are of one space, and their accuracies differ by the denoisers alone."""
    first, second = (LatentDiffusionPrior(f"embedded:{name}").autoencoder.state_dict() for name in STEPS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_embedded_prior_reconstructs_digits_it_has_not_seen(name):
    data = DistillationData()
    data.setup()
    prior = LatentDiffusionPrior(f"embedded:{name}")
    images, _ = data.test_images.batch(64, generator(0))
    with torch.no_grad():
        error = (prior.decode(prior.encode(images)) - images).abs().mean()
    assert error < 0.08  # of a range of 2


def test_samples_of_an_embedded_prior_are_the_digits_asked_for(name):
    data = DistillationData()
    data.setup()

    def pixels(images):
        return interpolate(images, size=8, mode="area")[:, 0].flatten(1).numpy()

    judge = LogisticRegression(max_iter=1000)
    judge.fit(pixels(data.train_images.images / 127.5 - 1), data.train_images.labels)
    assert judge.score(pixels(data.test_images.images / 127.5 - 1), data.test_images.labels) > 0.93
    prior = LatentDiffusionPrior(f"embedded:{name}")
    assert prior.num_steps == STEPS[name]
    labels = torch.arange(10).repeat_interleave(10)
    with torch.no_grad():
        latents = prior.sample(prior.rows(data.classes)[labels], generator(0), num_steps=prior.num_steps)
        samples = prior.decode(latents).clamp(-1, 1)
    assert judge.score(pixels(samples), labels) > 0.8
    # Not one picture per class either: samples of a class differ as real images of it do (at least half as much).
    for label in range(10):
        of_class = torch.from_numpy(pixels(samples[labels == label]))
        real = torch.from_numpy(pixels(data.train_images.draw(label, 10, generator(0))))
        assert torch.pdist(of_class).mean() > 0.5 * torch.pdist(real).mean()
