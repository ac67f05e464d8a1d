"""D3HR: inversion, fit, choice and decoding written out."""

import numpy as np
import pytest
import torch
from by_hand import Hand, draws_seed, started
from initializer_conformance import core_set
from scipy import stats
from small_world import CLASSES

from ldd.errors import UserError
from ldd.images import to_unit_range
from ldd.initializers import InvertedStatistics, inverted
from ldd.initializers.base import ClassStart
from ldd.initializers.inverted import best_group
from ldd.runtime.seeding import generator


def chosen_by_hand(mean, deviation, noise, weight):
    """Group by group in NumPy; scipy's skewness."""
    draws = mean + deviation * noise.astype(np.float64)
    scores = [
        np.linalg.norm(group.mean(0) - mean)
        + np.linalg.norm(group.std(0) - deviation)
        + weight * np.linalg.norm(np.nan_to_num(stats.skew(group, axis=0)))
        for group in draws
    ]
    return draws[int(np.argmin(scores))]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_the_best_group(size, monkeypatch):
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=16), rng.uniform(0.5, 2, size=16)
    noise = torch.randn(200, size, 16, generator=generator(1)).numpy()
    expected = chosen_by_hand(mean, deviation, noise, 0.3)
    for at_once in (2**24, 64 * size * 16):
        monkeypatch.setattr(inverted, "_FLOATS_AT_ONCE", at_once)
        found = best_group(torch.from_numpy(mean), torch.from_numpy(deviation), size, 200, 0.3, generator(1))
        assert np.abs(found.numpy() - expected).max() < 1e-9


def released_skewness(group):
    """The sum over the elements of each draw, with the number of elements in the factor."""
    n = group.shape[1]
    return (((group - group.mean(0)) / group.std(0, ddof=1)) ** 3).sum(1) * n / ((n - 1) * (n - 2))


@pytest.mark.parametrize("size", [2, 5, 10])
def test_the_best_group_by_the_released_score(size):
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=16), rng.uniform(0.5, 2, size=16)
    draws = mean + deviation * torch.randn(200, size, 16, generator=generator(1)).double().numpy()
    scores = [
        np.linalg.norm(group.mean(0) - mean)
        + np.linalg.norm(group.std(0, ddof=1) - deviation)
        + 3 * np.linalg.norm(released_skewness(group))
        for group in draws
    ]
    parts = torch.from_numpy(mean), torch.from_numpy(deviation), size, 200, 3.0
    found = best_group(*parts, generator(1), 1, "released")
    assert np.abs(found.numpy() - draws[int(np.argmin(scores))]).max() < 1e-9
    if size == 10:
        assert not torch.equal(found, best_group(*parts, generator(1)))


def test_statistics_as_released(prior):
    """Draws of the posterior, inverted under guidance, deviations with ddof 1; absolute error 1e-8."""
    options = {"inversion_guidance": 2.0, "encodings": "sample", "ddof": 1, "num_steps": 10, "groups": 1}
    initializer, real, info = InvertedStatistics(strength=0.6, **options), core_set(), CLASSES[1]
    empty = torch.empty(0, dtype=torch.float64)
    start = ClassStart(info, 2, prior, real, real.spec, 7, empty)
    mean, deviation = initializer.statistics(start)
    with torch.no_grad():
        images = to_unit_range(real.of_class(info.label)).double()
        found = prior.autoencoder.autoencoder.encode(images).latent_dist
        noise = torch.randn(found.mean.shape, generator=generator(7, "posterior", info.wnid))
        drawn = found.mean + torch.exp(0.5 * found.logvar) * noise
        latents = (drawn - prior.autoencoder.shift) * prior.autoencoder.scale
    hand = Hand(prior, 2 + info.label, 2.0, 10)
    hand.noise, plain = lambda x, t, scale: plain(x, t, 2.0), hand.noise
    noisy = hand.up(latents, 6)
    assert (mean - noisy.mean(0)).abs().max() < 1e-8
    assert (deviation - noisy.std(0, correction=1)).abs().max() < 1e-8


def test_the_whole_way(prior):
    """Six of ten steps up, a Gaussian, the best of twenty pairs, and down again with guidance."""
    settings = {"strength": 0.6, "groups": 20, "skew_weight": 0.2, "num_steps": 10, "guidance_scale": 1.5}
    found = started(InvertedStatistics(**settings), prior)
    real = core_set()
    for info in CLASSES:
        hand = Hand(prior, 2 + info.label, 1.5, 10)
        noisy = hand.up(prior.encode(to_unit_range(real.of_class(info.label)).double()), 6).flatten(1).numpy()
        noise = torch.randn(20, 2, 256, generator=generator(draws_seed(), "groups", info.wnid)).numpy()
        state = chosen_by_hand(noisy.mean(0), noisy.std(0), noise, 0.2)
        expected = hand.down(torch.from_numpy(state).view(2, 4, 8, 8), 6)
        assert (expected - found[info.label]).abs().max() < 1e-8


def test_more_groups_come_nearer():
    """To the Gaussian's mean and deviation, over 20 seeds."""
    mean, deviation = torch.zeros(8).double(), torch.ones(8).double()

    def distance(groups, seed):
        group = best_group(mean, deviation, 5, groups, 0.0, generator(seed))
        return float(group.mean(0).norm() + (group.std(0, correction=0) - 1).norm())

    means = [np.mean([distance(groups, seed) for seed in range(20)]) for groups in (1, 10, 1000)]
    assert means[0] > 1.2 * means[1] > 1.4 * means[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.0}, r"initializer.strength \(0.0\) must be above 0"),
        ({"groups": 0}, r"initializer.groups \(0\) must be at least 1"),
        ({"skew_weight": -1.0}, r"initializer.skew_weight \(-1.0\) must be a number of 0 or more"),
        ({"max_images": 1}, r"initializer.max_images \(1\) must be at least 2"),
        ({"ddof": 2}, r"initializer.ddof \(2\) must be 0 or 1"),
        ({"inversion_guidance": -1.0}, "inversion_guidance=-1.0 must be a finite number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        InvertedStatistics(**arguments)


def test_one_draw_has_no_deviation(prior):
    with pytest.raises(UserError, match=r"initializer.ddof \(1\): a group of one draw"):
        started(InvertedStatistics(num_steps=2, groups=1, ddof=1), prior, per_class=1)


def test_one_image_has_no_deviation(prior):
    with pytest.raises(UserError, match=r"to fit a Gaussian to \(2\) is more than the 1 real images"):
        started(InvertedStatistics(num_steps=2, groups=1), prior, per_class=1, real=core_set(1))
