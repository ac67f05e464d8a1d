"""Pruning: exact counts per class, and nothing left empty."""

import pytest
import torch

from ldd.data import RandomPruner, RealImages, ScoreTable
from ldd.data.pruning import exact_floor, lowest_of_each_class
from ldd.errors import UserError


def real_images(*counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    return RealImages(images, labels, [f"{i:04d}" for i in range(len(labels))], len(counts))


@pytest.mark.parametrize(
    ("share", "count", "kept"), [(0.29, 100, 29), (0.57, 100, 57), (1.0, 7, 7), (0.1, 9, 0)]
)
def test_the_share_is_the_decimal_that_was_written(share, count, kept):
    assert exact_floor(share, count) == kept


def test_floor_of_the_share_is_kept_of_each_class():
    images = real_images(100, 10, 7)
    pruner = RandomPruner(0.29)
    kept = images.select(pruner.keep(pruner.score(images, None, seed=0)))
    assert kept.counts == [29, 2, 2]


def test_random_choice_follows_from_the_seed():
    images, pruner = real_images(50, 50), RandomPruner(0.5)
    first, again, other = (pruner.keep(pruner.score(images, None, seed)) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)
    assert first.equal(first.sort().values)


def test_lowest_scores_are_kept_and_ties_go_by_key():
    table = ScoreTable(
        keys=["d", "c", "b", "a", "f", "e"],
        labels=torch.tensor([0, 0, 0, 0, 1, 1]),
        scores=torch.tensor([1.0, 1.0, 0.5, 1.0, 9.0, 9.0], dtype=torch.float64),
    )
    assert lowest_of_each_class(table, 0.5).tolist() == [2, 3, 5]


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(keep):
    with pytest.raises(UserError, match=f"keep={keep} is not a share; use a number above 0 and at most 1"):
        RandomPruner(keep)


def test_an_empty_class_is_refused_with_the_share_that_works():
    images, pruner = real_images(100, 3), RandomPruner(0.3)
    with pytest.raises(
        UserError, match=r"keep=0\.3 would leave class 1 empty \(it has 3 images\); use at least 0\.334"
    ):
        pruner.keep(pruner.score(images, None, seed=0))
    assert exact_floor(0.334, 3) == 1
