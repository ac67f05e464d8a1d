"""Affine views: how far they move a spot, and what they follow from."""

import math

import pytest
import torch

from ldd.augmentation.affine import AffineViews
from ldd.errors import UserError
from ldd.runtime.seeding import generator


def blob(x, y, side=33):
    """A Gaussian spot at (x, y), in units of the side from the centre."""
    ruler = (torch.arange(side) + 0.5) / side - 0.5
    return torch.exp(-((ruler[None, :] - x) ** 2 + (ruler[:, None] - y) ** 2) / 0.005)[None, None]


def centre(image):
    side = image.shape[-1]
    ruler = (torch.arange(side) + 0.5) / side - 0.5
    mass = image.sum()
    return float((image * ruler[None, :]).sum() / mass), float((image * ruler[:, None]).sum() / mass)


def test_views_move_within_their_bounds_and_follow_from_the_generator():
    spots = blob(0.2, 0.0).expand(200, 1, 33, 33)
    assert AffineViews()(spots, generator(0)).sub(spots).abs().max() < 1e-5
    shifted = [centre(image[0]) for image in AffineViews(shift=0.1)(spots, generator(0))]
    xs, ys = [x - 0.2 for x, _ in shifted], [y for _, y in shifted]
    for moves in (xs, ys):
        assert max(abs(move) for move in moves) < 0.102
        assert max(moves) > 0.09
        assert min(moves) < -0.09
    turned = [centre(image[0]) for image in AffineViews(rotation=30)(spots, generator(0))]
    angles = [math.degrees(math.atan2(y, x)) for x, y in turned]
    assert max(angles) < 30.5
    assert max(angles) > 27
    assert min(angles) < -27
    assert all(math.hypot(x, y) == pytest.approx(0.2, abs=2e-3) for x, y in turned)
    zoomed = [centre(image[0])[0] / 0.2 for image in AffineViews(zoom=0.1)(spots, generator(0))]
    assert 0.89 < min(zoomed) < 0.92
    assert 1.08 < max(zoomed) < 1.11
    mirrored = [centre(image[0])[0] > 0 for image in AffineViews(flip=True)(spots, generator(0))]
    assert 60 < sum(mirrored) < 140
    views = AffineViews(shift=0.1, rotation=10, zoom=0.1, flip=True)
    assert views(spots, generator(1)).equal(views(spots, generator(1)))
    assert not views(spots, generator(1)).equal(views(spots, generator(2)))


def test_views_out_of_range_are_refused():
    with pytest.raises(
        UserError, match=r"augmentation\.shift=1\.5 is out of range; use a number from 0 to below 1"
    ):
        AffineViews(shift=1.5)
