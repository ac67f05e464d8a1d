"""Codes: rows, what is learned, what moves; of Gaussian ones also moments, limits and draws that rows decide."""

import pytest
import torch
from torch.distributions import LowRankMultivariateNormal

from ldd.codes import GaussianCodes, PointCodes, clamp, stored_codes
from ldd.errors import UserError
from ldd.initializers import GaussianLatents, RealEncodings
from ldd.objectives.matching import Rates, sgd_on_codes
from ldd.priors import PixelPrior
from ldd.runtime.seeding import generator, normal_rows

LABELS = torch.tensor([0, 0, 1, 1])


def points(**arguments):
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 2, 3, 3), (4, 1, 5), (4, 2, 3, 3)]
    latents, conditioning, noise = (torch.randn(shape, generator=generator) for shape in shapes)
    return PointCodes(torch.tensor([0, 0, 1, 1]), latents, conditioning, noise, **arguments)


def test_rows_come_back_with_their_gradient():
    found = points()
    rows = torch.tensor([3, 1])
    batch = found(rows)
    assert torch.equal(batch.labels, torch.tensor([1, 0]))
    assert torch.equal(batch.noise, found.noise[rows])
    (batch.latents.sum() + 2 * batch.conditioning.sum()).backward()
    assert found.latents.grad.flatten(1).sum(1).tolist() == [0, 18, 0, 18]
    assert found.conditioning.grad.flatten(1).sum(1).tolist() == [0, 10, 0, 10]


def test_set_latents_sets_only_those_rows():
    found = points()
    before = found.latents.clone()
    found.set_latents(torch.tensor([2]), torch.ones(1, 2, 3, 3))
    assert torch.equal(found.latents[2], torch.ones(2, 3, 3))
    assert torch.equal(found.latents[[0, 1, 3]], before[[0, 1, 3]])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["latents", "conditioning"]),
        ({"learn_latents": False}, ["conditioning"]),
        ({"learn_conditioning": False}, ["latents"]),
        ({"learn_noise": True}, ["latents", "conditioning", "noise"]),
        ({"learn_noise": True, "learn_latents": False, "learn_conditioning": False}, ["noise"]),
    ],
)
@pytest.mark.parametrize("noise", [None, 7.0])
def test_groups_are_what_is_learned(arguments, expected, noise):
    """Noise that is learned has the rate of the latents, or its own."""
    assert list(points(**arguments).groups()) == expected
    rates = Rates(3.0, 0.5, noise=noise).of_codes()
    optimizer = sgd_on_codes(points(**arguments), rates, momentum=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [
        {"latents": 3.0, "conditioning": 0.5, "noise": noise or 3.0}[n] for n in expected
    ]


def test_an_unconditional_prior_has_nothing_to_condition():
    empty = PointCodes(
        torch.tensor([0]), torch.zeros(1, 1, 2, 2), torch.zeros(1, 0, 0), torch.zeros(1, 1, 2, 2)
    )
    assert list(empty.groups()) == ["latents"]


def test_nothing_learned_or_no_rate_is_refused():
    with pytest.raises(
        UserError, match="nothing is learned; set learn_latents, learn_conditioning or learn_noise"
    ):
        sgd_on_codes(points(learn_latents=False, learn_conditioning=False), {}, 0.5)
    with pytest.raises(UserError, match="no learning rate for the codes' conditioning"):
        sgd_on_codes(points(), {"latents": 1.0}, 0.5)


def parts(dtype=torch.float32):
    draws = generator(0, "parts")
    shapes = [(4, 2, 3, 3), (4, 1, 5), (4, 2, 3, 3)]
    return [torch.randn(shape, generator=draws).to(dtype) for shape in shapes]


def gaussian(spread=True, **arguments):
    """Codes whose log-variances and factors are random."""
    codes = GaussianCodes(LABELS, *parts(), **arguments)
    with torch.no_grad():
        for parameter in codes.groups().get("spread", ()) if spread else ():
            parameter.normal_(generator=generator(0, parameter.ndim)).mul_(0.5)
    return codes


def test_a_draw_is_mean_and_deviation_times_noise():
    codes, rows = gaussian(rank=2), torch.tensor([3, 1])
    latents, conditioning, noise, labels = codes(rows, generator(7))
    drawn = normal_rows(rows, 18 + 2, generator(7))
    for i, row in enumerate(rows.tolist()):
        expected = codes.latents[row] + (codes.log_variance[row] / 2).exp() * drawn[i, :18].view(2, 3, 3)
        expected = expected + sum(drawn[i, 18 + j] * codes.factors[row, j] for j in range(2))
        assert (latents[i] - expected).abs().max() < 1e-6
    points = PointCodes(LABELS, *parts())
    for found, expected in zip((conditioning, noise, labels), points(rows)[1:], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("variance", "rank"), [("diagonal", 0), ("channel", 0), ("diagonal", 3), ("none", 2)]
)
def test_moments_of_many_draws(variance, rank):
    """Against torch's own low-rank normal: 40,000 codes of one distribution, each drawn once."""
    n, mean = 40_000, torch.randn(2, 3, 3, generator=generator(0))
    same = (
        torch.zeros(n, dtype=torch.int64),
        mean.expand(n, -1, -1, -1),
        torch.zeros(n, 0, 0),
        torch.zeros(n, 0),
    )
    codes = GaussianCodes(*same, variance=variance, rank=rank)
    with torch.no_grad():
        for parameter in codes.groups()["spread"]:
            parameter.copy_(0.5 * torch.randn(parameter.shape[1:], generator=generator(parameter.ndim)))
        found = codes(torch.arange(n), generator(1)).latents.flatten(1)
        diagonal = torch.full((18,), 1e-12)
        if variance != "none":
            diagonal = codes.log_variance[0].exp().expand(2, 3, 3).flatten()
        factor = codes.factors[0].flatten(1).T if rank else torch.zeros(18, 1)
    expected = LowRankMultivariateNormal(mean.flatten(), factor, diagonal)
    # The standard error of a mean is 0.5 % of the deviation, that of a variance 0.7 % of it.
    assert (found.mean(0) - expected.mean).abs().max() < 0.03
    assert (torch.cov(found.T) - expected.covariance_matrix).abs().max() < 0.06
    assert abs(codes.statistics()["deviation"] - expected.variance.sqrt().mean()) < 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        {"variance": "none"},
        {"log_variance": -1e4, "log_variance_range": (float("-inf"), 2.0)},
        {"variance": "channel", "log_variance": -1e4, "log_variance_range": (float("-inf"), 2.0)},
    ],
    ids=["none", "minus infinity", "minus infinity by channel"],
)
def test_without_variance_they_are_points_bit_for_bit(arguments):
    points, codes = PointCodes(LABELS, *parts()), GaussianCodes(LABELS, *parts(), **arguments)
    rows = torch.tensor([2, 0])
    for draws in (None, generator(3)):
        expected, found = points(rows, draws), codes(rows, draws)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    for batch in (points(rows), codes(rows, generator(3))):
        (batch.latents.square().sum() + batch.conditioning.sum()).backward()
    assert torch.equal(points.latents.grad, codes.latents.grad)
    assert torch.equal(points.conditioning.grad, codes.conditioning.grad)


def test_the_mean_needs_no_draw():
    codes = gaussian(rank=1)
    assert codes.stochastic
    assert torch.equal(codes(torch.arange(4)).latents, codes.latents)


def test_rows_decide_their_draws_and_not_the_rows_beside_them():
    codes = gaussian(rank=2)
    whole = codes(torch.arange(4), generator(5)).latents
    parts = [codes(rows, generator(5)).latents for rows in torch.tensor([3, 0, 2, 1]).split(1)]
    assert torch.equal(torch.cat(parts), whole[[3, 0, 2, 1]])
    draws = generator(5)
    first, second = (codes(torch.arange(4), draws).latents for _ in range(2))
    assert torch.equal(first, whole)
    assert not torch.isclose(first, second).any()


def test_neighbouring_rows_are_not_correlated():
    drawn = normal_rows(torch.arange(20_000), 18, generator(0))
    assert abs((drawn[1:] * drawn[:-1]).mean()) < 4 / (20_000 * 18) ** 0.5
    assert abs(drawn.mean()) < 4 / (20_000 * 18) ** 0.5
    assert abs(drawn.var() - 1) < 0.01


def test_gradient_of_the_log_variance():
    codes = gaussian().double()
    codes.latents.requires_grad_(False)
    codes.conditioning.requires_grad_(False)

    def loss(log_variance):
        drawn = normal_rows(torch.arange(4), 18, generator(5)).double().view(4, 2, 3, 3)
        return (codes.latents + (log_variance / 2).exp() * drawn).pow(3).sum()

    codes(torch.arange(4), generator(5)).latents.pow(3).sum().backward()
    expected = torch.func.grad(loss)(codes.log_variance.detach())
    assert (codes.log_variance.grad - expected).abs().max() < 1e-12


def test_the_clamp_lets_back_in_what_is_outside():
    values = torch.tensor([-20.0, -20.0, 0.5, 9.0, 9.0], requires_grad=True)
    clamped = clamp(values, -10.0, 2.0)
    assert clamped.tolist() == [-10.0, -10.0, 0.5, 2.0, 2.0]
    clamped.backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]))
    assert values.grad.tolist() == [0.0, -1.0, 1.0, 1.0, 0.0]  # descent goes against the gradient


def test_groups_and_rates():
    assert list(gaussian().groups()) == ["latents", "conditioning", "spread"]
    assert list(gaussian(learn_spread=False).groups()) == ["latents", "conditioning"]
    assert list(gaussian(variance="none").groups()) == ["latents", "conditioning"]
    assert len(gaussian(rank=1).groups()["spread"]) == 2
    optimizer = sgd_on_codes(gaussian(), Rates(3.0, 0.5).of_codes(), 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [3.0, 0.5, pytest.approx(0.3)]


@pytest.mark.parametrize(
    "arguments", [{}, {"variance": "channel", "rank": 2}, {"variance": "none", "rank": 1}]
)
def test_stored_tensors_draw_the_same(arguments):
    codes = gaussian(**arguments)
    with torch.no_grad():
        codes.groups()["spread"][0][0] = 30.0
    tensors = codes.tensors()
    assert "labels" not in tensors
    again, rows = stored_codes(tensors, LABELS), torch.arange(4)
    for expected, found in zip(codes(rows, generator(1)), again(rows, generator(1)), strict=True):
        assert torch.equal(expected, found)
    assert torch.equal(again.labels, LABELS)


def test_stored_points_and_tensors_that_do_not_fit():
    points = PointCodes(LABELS, torch.zeros(4, 2, 1, 1), torch.zeros(4, 0, 0), torch.zeros(4, 0))
    tensors = points.tensors()
    assert list(tensors) == ["latents"]
    assert isinstance(stored_codes(tensors, LABELS), PointCodes)
    with pytest.raises(
        UserError, match="codes hold anything; expected latents and at most conditioning, factors"
    ):
        stored_codes({"anything": torch.zeros(1)}, LABELS)
    with pytest.raises(UserError, match="do not belong together"):
        stored_codes({**tensors, "log_variance": torch.zeros(4, 3, 1, 1)}, LABELS)
    with pytest.raises(UserError, match="codes of 3 labels"):
        stored_codes(tensors, LABELS[:3])


def test_starts(digits):
    """D3's random one, and a share of the class's own variance."""
    prior, real = PixelPrior(32), digits.core_set
    labels = torch.arange(10).repeat_interleave(2)
    shape = (20, 3, 32, 32)

    def codes(kind=GaussianCodes, **arguments):
        return kind(labels, torch.zeros(shape), torch.zeros(20, 0, 0), torch.zeros(20, 0), **arguments)

    random = codes()
    GaussianLatents(log_variance=True)(random, prior, real, generator(0))
    for values in (random.latents, random.log_variance):
        assert abs(values.mean()) < 0.02
        assert abs(values.var() - 1) < 0.05
    shared = codes(variance="channel")
    RealEncodings(variance_share=0.25)(shared, prior, real, generator(0))
    sevens = (real.of_class(7).double() / 127.5 - 1).var(0, correction=0)
    expected = 0.25 * sevens.mean((1, 2))
    assert (shared.log_variance[14:16].exp().flatten(1) - expected).abs().max() < 1e-5
    for initializer in (GaussianLatents(log_variance=True), RealEncodings(variance_share=0.25)):
        with pytest.raises(UserError, match="PointCodes have no log-variance to start"):
            initializer(codes(PointCodes), prior, real, generator(0))
    with pytest.raises(UserError, match=r"codes.variance \(none\) has no log-variance"):
        GaussianLatents(log_variance=True)(codes(variance="none"), prior, real, generator(0))


def test_numbers_out_of_range():
    for arguments, message in (
        ({"rank": -1}, r"codes.rank \(-1\) must be at least 0"),
        ({"log_variance_range": (1.0, 1.0)}, r"log_variance_range \(1, 1\) must be a lower and a higher"),
        ({"log_variance": 3.0}, r"codes.log_variance \(3\) must lie in codes.log_variance_range \(-10, 2\)"),
    ):
        with pytest.raises(UserError, match=message):
            GaussianCodes(LABELS, *parts(), **arguments)
    with pytest.raises(UserError, match=r"variance_share \(0\) must be a number above 0"):
        RealEncodings(variance_share=0)
