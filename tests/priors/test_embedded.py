"""The prior in the package: small, described, and a generator of the digits that it is asked for."""

import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import interpolate

from ldd.data import DigitsSource, DistillationData
from ldd.priors import LatentDiffusionPrior
from ldd.priors.loading import locate
from ldd.runtime.seeding import generator


def test_the_embedded_prior_is_small_and_described():
    folder = locate("embedded:digits", ())
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 5_000_000
    card = (folder / "README.md").read_text()
    for fact in (
        "latentdd prior train --config configs/prior_training/digits.yaml",
        "CC BY 4.0",
        "seed",
        "steps of",
    ):
        assert fact in card
    assert DigitsSource().fingerprint("test") in card  # the split it left out is the split we test on


def test_the_embedded_prior_reconstructs_digits_it_has_not_seen():
    data = DistillationData()
    data.setup()
    prior = LatentDiffusionPrior("embedded:digits")
    images, _ = data.test_images.batch(64, generator(0))
    with torch.no_grad():
        error = (prior.decode(prior.encode(images)) - images).abs().mean()
    assert error < 0.08  # of a range of 2


def test_samples_of_the_embedded_prior_are_the_digits_asked_for():
    data = DistillationData()
    data.setup()

    def pixels(images):
        return interpolate(images, size=8, mode="area")[:, 0].flatten(1).numpy()

    judge = LogisticRegression(max_iter=1000)
    judge.fit(pixels(data.train_images.images / 127.5 - 1), data.train_images.labels)
    assert judge.score(pixels(data.test_images.images / 127.5 - 1), data.test_images.labels) > 0.93
    prior = LatentDiffusionPrior("embedded:digits")
    labels = torch.arange(10).repeat_interleave(10)
    with torch.no_grad():
        latents = prior.sample(prior.rows(data.classes)[labels], generator(0), num_steps=10)
        samples = prior.decode(latents).clamp(-1, 1)
    assert judge.score(pixels(samples), labels) > 0.8
    # Not one picture per class either: samples of a class differ as real images of it do (at least half as much).
    for label in range(10):
        of_class = torch.from_numpy(pixels(samples[labels == label]))
        real = torch.from_numpy(pixels(data.train_images.draw(label, 10, generator(0))))
        assert torch.pdist(of_class).mean() > 0.5 * torch.pdist(real).mean()
