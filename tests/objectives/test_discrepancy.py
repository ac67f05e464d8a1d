"""Discrepancies between samples: against double loops, unbiased, zero where they should be."""

import itertools
import math

import pytest
import torch

from ldd.errors import UserError
from ldd.objectives import RBFMixture, Sinkhorn
from ldd.runtime.seeding import generator

PUBLISHED = RBFMixture((1.0, 2.0, 4.0, 8.0, 16.0), "absolute", "none")


def sample(k, n, features, seed, shift=0.0):
    return shift + torch.randn(k, n, features, generator=generator(seed), dtype=torch.float64)


def by_loops(x, y, bandwidths):
    """One class, as in the formula."""

    def kernel(a, b):
        square = sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))
        return sum(math.exp(-square / (2 * s * s)) for s in bandwidths)

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(kernel(a, b) for a in x for b in y) / (n * m)
    return within_x + within_y - 2 * across, across / len(bandwidths)


def test_published_form_is_the_double_loop():
    x, y = sample(3, 5, 4, 0), sample(3, 7, 4, 1, shift=0.5)
    found = PUBLISHED(x, y)
    for k in range(3):
        distance, similarity = by_loops(x[k], y[k], PUBLISHED.bandwidths)
        assert abs(found.distance[k].item() - distance) < 1e-12
        assert abs(found.similarity[k].item() - similarity) < 1e-12


@pytest.mark.parametrize("scale", ["none", "l2", "layer"])
def test_median_form_is_the_double_loop(scale):
    discrepancy = RBFMixture(scale=scale)
    x, y = sample(2, 4, 6, 0), sample(2, 5, 6, 1, shift=0.5)
    found = discrepancy(x, y).distance
    for k in range(2):
        points = torch.cat([x[k], y[k]])
        if scale == "l2":
            points = torch.stack([p / p.square().sum().sqrt() for p in points])
        if scale == "layer":
            points = torch.stack([(p - p.mean()) / (p.var(correction=0) + 1e-5).sqrt() for p in points])
        distances = sorted(float((a - b).square().sum().sqrt()) for a, b in itertools.combinations(points, 2))
        median = distances[(len(distances) - 1) // 2]
        expected, _ = by_loops(points[:4], points[4:], [median * s for s in (0.25, 0.5, 1, 2, 4)])
        assert abs(found[k].item() - expected) < 1e-10


def test_gradient_by_finite_differences():
    x, y = sample(1, 4, 3, 0).requires_grad_(), sample(1, 5, 3, 1)
    for discrepancy in (PUBLISHED, RBFMixture((1.0,), "absolute", "layer")):
        assert torch.autograd.gradcheck(lambda x, d=discrepancy: d(x, y).distance, x, eps=1e-6, atol=1e-7)


def test_unbiased():
    """Its mean over independent draws of one distribution is zero, and of two, what numerical integration gives."""
    x, y = sample(4000, 5, 2, 0), sample(4000, 6, 2, 1)
    distance = PUBLISHED(x, y).distance
    assert (distance < 0).any()
    assert abs(distance.mean()) < 4 * distance.std() / 4000**0.5
    moved = PUBLISHED(x, y + 1).distance
    # Of normals with variance 1 in d dimensions: E k = sum (s^2 / (s^2 + 2))^(d/2) exp(-|m|^2 / (2 (s^2 + 2))).
    shares = [(s * s / (s * s + 2), math.exp(-2 / (2 * (s * s + 2)))) for s in PUBLISHED.bandwidths]
    expected = sum(2 * share * (1 - far) for share, far in shares)
    assert expected > 0.5
    assert abs(moved.mean() - expected) < 4 * moved.std() / 4000**0.5


@pytest.mark.parametrize("discrepancy", [PUBLISHED, RBFMixture()], ids=["published", "median"])
def test_a_set_against_itself_is_at_most_zero_and_order_does_not_matter(discrepancy):
    x, y = sample(3, 6, 4, 0), sample(3, 5, 4, 1)
    assert (discrepancy(x, x).distance <= 0).all()
    order = torch.randperm(6, generator=generator(2))
    torch.testing.assert_close(
        discrepancy(x[:, order], y).distance, discrepancy(x, y).distance, rtol=0, atol=1e-12
    )


def test_equal_points_are_no_trouble():
    """All samples the same: a median of zero."""
    x = torch.ones(1, 3, 4, dtype=torch.float64, requires_grad=True)
    found = RBFMixture()(x, torch.ones(1, 4, 4, dtype=torch.float64)).distance
    found.backward()
    assert abs(found.item()) < 1e-12
    assert x.grad.abs().max() < 1e-6


def test_large_features_keep_their_digits():
    """Single precision, features around 100 with differences around 1."""
    x, y = sample(2, 8, 64, 0, 100.0), sample(2, 8, 64, 1, 100.2)
    exact, rough = PUBLISHED(x, y).distance, PUBLISHED(x.float(), y.float()).distance
    assert (exact - rough).abs().max() < 1e-5


def sinkhorn_by_loops(x, y, blur, steps=2000):
    """Debiased transport cost by plain iterations on the dual potentials until they stand still."""

    def cost(a, b):
        squares = (a[:, None] - b[None]).square().sum(-1) / 2
        f, g, eps = torch.zeros(len(a)).double(), torch.zeros(len(b)).double(), blur**2
        for _ in range(steps):
            f = -eps * ((g - squares) / eps - math.log(len(b))).logsumexp(1)
            g = -eps * ((f[:, None] - squares) / eps - math.log(len(a))).logsumexp(0)
        return f.mean() + g.mean()

    return cost(x, y) - cost(x, x) / 2 - cost(y, y) / 2


def test_sinkhorn_is_the_transport_cost():
    discrepancy = Sinkhorn(blur=0.3, scaling=0.97, scale="none")
    x, y = sample(2, 5, 3, 0), sample(2, 6, 3, 1, shift=0.5)
    found = discrepancy(x, y)
    assert found.similarity is None
    for k in range(2):
        assert abs(found.distance[k] - sinkhorn_by_loops(x[k], y[k], 0.3)) < 0.01 * found.distance[k]


@pytest.mark.parametrize("scale", ["none", "l2"])
def test_sinkhorn_of_a_set_and_itself(scale):
    x = sample(1, 6, 3, 0).requires_grad_()
    found = Sinkhorn(scale=scale)(x, x.detach()).distance
    found.sum().backward()
    assert found.abs().max() < 1e-6
    assert x.grad.abs().max() < 1e-3
    assert (Sinkhorn(scale=scale)(x, x.detach() + 0.5 * sample(1, 6, 3, 1)).distance > 1e-3).all()


def test_numbers_out_of_range():
    with pytest.raises(UserError, match=r"bandwidths \(\[1, 0\]\) must be one or more numbers above 0"):
        RBFMixture([1, 0])
    with pytest.raises(UserError, match="two or more samples of each class, got 1 synthetic and 4 real"):
        PUBLISHED(sample(1, 1, 2, 0), sample(1, 4, 2, 0))
    for blur in (0, float("inf")):
        with pytest.raises(UserError, match=rf"blur \({blur}\) must be a number above 0"):
            Sinkhorn(blur=blur)
    with pytest.raises(UserError, match=r"scaling \(1\) must lie between 0 and 1"):
        Sinkhorn(scaling=1)
