"""Choosing from a pool: S3 against its objective written out, difficulties against every choice there is."""

import itertools
import math

import pytest
import torch
from by_hand import started
from initializer_conformance import codes_for, core_set
from small_world import NARROW

from ldd.errors import UserError
from ldd.initializers import DifficultyMatched, HerdedOrder, PriorSamples, RealEncodings, SeparatedGroups
from ldd.initializers.base import Initializer
from ldd.initializers.selection import Pool, _some, separated
from ldd.networks.scoring import ScoringNetwork
from ldd.runtime.seeding import generator

TRAINING = ScoringNetwork(network=NARROW, epochs=2, batch_size=12)


def distance(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def objective(centres, real, chosen, alpha, beta):
    """-alpha sum_i log d(c_i, r_i) + beta sum_{i<j} log d(c_i, c_j)."""
    c = [centres[i][g] for i, g in enumerate(chosen)]
    near = sum(math.log(distance(c[i], real[i])) for i in range(len(c)))
    apart = sum(math.log(distance(a, b)) for a, b in itertools.combinations(c, 2))
    return -alpha * near + beta * apart


@pytest.mark.parametrize("seed", range(5))
def test_groups_by_coordinate_ascent(seed):
    """From the nearest groups, class after class, the first group with the highest value; until nothing changes."""
    centres = torch.randn(4, 5, 6, generator=generator(seed), dtype=torch.float64)
    real = torch.randn(4, 6, generator=generator(seed, "real"), dtype=torch.float64)
    lists, wanted = centres.tolist(), real.tolist()
    chosen = [min(range(5), key=lambda g, i=i: distance(lists[i][g], wanted[i])) for i in range(4)]
    while True:
        before = list(chosen)
        for i in range(4):
            values = [
                objective(lists, wanted, [*chosen[:i], g, *chosen[i + 1 :]], 0.4, 0.9) for g in range(5)
            ]
            if max(values) > values[chosen[i]] + 1e-12:
                chosen[i] = values.index(max(values))
        if chosen == before:
            break
    assert separated(centres, real, 0.4, 0.9) == chosen


def test_without_repulsion_each_class_takes_its_nearest_group():
    centres = torch.randn(3, 4, 5, generator=generator(0))
    real = 2 * centres[torch.arange(3), torch.tensor([2, 0, 3])]
    assert separated(centres, real, 0.4, 0.0) == [2, 0, 3]


class Kept(Initializer):
    """Remembers what its pool was."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, codes, prior, real, generator):
        self.inner(codes, prior, real, generator)
        self.codes = codes


def test_a_whole_group_is_taken(prior):
    pool = Kept(PriorSamples(num_steps=2))
    found = started(SeparatedGroups(pool, groups=3, training=TRAINING), prior)
    candidates = pool.codes.latents.detach().unflatten(0, (3, 3, 2))
    for label in range(3):
        assert any(torch.equal(found[label], group) for group in candidates[label])


def test_features_have_unit_length_before_their_mean(prior):
    """The group is that of the objective on means of unit features, written out."""
    pool = Kept(PriorSamples(num_steps=2))
    initializer, seen = SeparatedGroups(pool, groups=3, training=TRAINING), []
    choose = initializer.choose
    initializer.choose = lambda candidates: seen.append(candidates) or choose(candidates)
    found = started(initializer, prior)
    (candidates,) = seen
    spec = candidates.spec
    network = TRAINING.trained(
        candidates.real.images, candidates.real.labels, spec, candidates.seed, "features"
    )

    def centre(images):
        features = TRAINING.features(network, images, spec).double()
        return (features / features.square().sum(1, keepdim=True).sqrt()).mean(0)

    centres = torch.stack([torch.stack([centre(group) for group in groups]) for groups in candidates.images])
    real = torch.stack([centre(candidates.real.of_class(label)) for label in range(3)])
    groups = pool.codes.latents.detach().unflatten(0, (3, 3, 2))
    for label, group in enumerate(separated(centres, real, 0.4, 0.9)):
        assert torch.equal(found[label], groups[label, group])


def test_real_means_of_some_images(prior):
    """Of two drawn ones of each class, the same in each call; None and a large number take all."""
    real = core_set()
    candidates = Pool(torch.empty(0), torch.empty(0), real, real.spec, 9)
    for label in range(3):
        whole = real.of_class(label)
        order = torch.randperm(len(whole), generator=generator(9, "real means", label))
        assert torch.equal(_some(candidates, label, 2), whole[order[:2]])
        assert all(torch.equal(_some(candidates, label, most), whole) for most in (None, len(whole)))
    few = SeparatedGroups(PriorSamples(num_steps=2), groups=2, training=TRAINING, max_images=2)
    assert started(few, prior).isfinite().all()


def test_difficulties_come_nearest_to_the_real_quantiles(prior):
    """Least sum over all ways to take two of six."""
    pool = Kept(RealEncodings())
    selection = DifficultyMatched(pool, groups=3, training=TRAINING)
    seen = {}
    inner = selection._difficulties

    def spy(given: Pool):
        seen["candidates"], seen["real"] = inner(given)
        return seen["candidates"], seen["real"]

    selection._difficulties = spy
    real = core_set()
    found = started(selection, prior, real=real)
    assert seen["candidates"].shape == (3, 6)
    assert ((seen["real"] > 0) & (seen["real"] < 1)).all()
    candidates = pool.codes.latents.detach().unflatten(0, (3, 6))
    for label in range(3):
        difficulties = seen["real"][real.labels == label].sort().values
        # Quantiles 1/4 and 3/4 of eight numbers lie between their neighbours at 1.75 and 5.25.
        wanted = [
            float(difficulties[low] + share * (difficulties[low + 1] - difficulties[low]))
            for low, share in ((1, 0.75), (5, 0.25))
        ]
        costs = {
            pair: sum(abs(w - float(seen["candidates"][label, p])) for w, p in zip(wanted, pair, strict=True))
            for pair in itertools.permutations(range(6), 2)
        }
        best = min(costs.values())
        taken = tuple(
            next(p for p in range(6) if torch.equal(candidates[label, p], latents))
            for latents in found[label]
        )
        assert costs[taken] == pytest.approx(best, abs=1e-12)


def test_herding_orders_all_of_one_group(prior):
    """The i-th is the candidate with which the mean of the first i features is nearest to the real mean."""
    pool = Kept(PriorSamples(num_steps=2))
    order = HerdedOrder(pool, training=TRAINING)
    seen = {}
    inner = order._features

    def spy(given: Pool):
        seen["features"], seen["real"] = inner(given)
        return seen["features"], seen["real"]

    order._features = spy
    found = started(order, prior, per_class=4)
    candidates = pool.codes.latents.detach().unflatten(0, (3, 4))
    for label in range(3):
        features, wanted = seen["features"][label, 0].tolist(), seen["real"][label].tolist()
        left, taken = list(range(4)), []
        while left:

            def away(place, taken=taken, features=features, wanted=wanted):
                rows = [features[p] for p in [*taken, place]]
                return math.dist([sum(column) / len(rows) for column in zip(*rows, strict=True)], wanted)

            taken.append(min(left, key=away))
            left.remove(taken[-1])
        assert torch.equal(found[label], candidates[label][taken])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeparatedGroups(RealEncodings(), groups=0), r"initializer.groups \(0\) must be at least 1"),
        (lambda: SeparatedGroups(RealEncodings(), repulsion=-1), r"repulsion \(-1\) must be a number of 0"),
        (
            lambda: DifficultyMatched(RealEncodings(), training=ScoringNetwork(image_size=64)),
            r"training.image_size \(64\) cannot be chosen",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_pool_that_needs_more_real_images_than_there_are(prior):
    with pytest.raises(UserError, match=r"\(10\) is more than the 8 real images of class 0"):
        started(SeparatedGroups(RealEncodings(), groups=5, training=TRAINING), prior)


def test_codes_of_some_classes_only(prior):
    codes, real = codes_for(prior), core_set()
    codes.labels[4:] = 1
    with pytest.raises(UserError, match="needs as many codes in each class"):
        SeparatedGroups(PriorSamples(num_steps=1), training=TRAINING)(codes, prior, real, generator(0))
