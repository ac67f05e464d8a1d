"""k-means against the best of all partitions, and D4M's noise-and-denoise step written out."""

from itertools import product

import pytest
import torch
from by_hand import Hand, draws_seed, started
from initializer_conformance import core_set
from small_world import CLASSES

from ldd.errors import UserError
from ldd.images import to_unit_range
from ldd.initializers import KMeansCentroids
from ldd.initializers.kmeans import clusters_of
from ldd.runtime.seeding import generator


def best_partition(points, count):
    """Centroids of the partition with the least squared distances, the largest clusters first; every one is tried."""
    flat, best = points.flatten(1), None
    for labels in product(range(count), repeat=len(points)):
        groups = [flat[[i for i, label in enumerate(labels) if label == group]] for group in range(count)]
        if not all(map(len, groups)):
            continue
        cost = sum(float((group - group.mean(0)).square().sum()) for group in groups)
        if best is None or cost < best[0] - 1e-12:
            best = cost, sorted(groups, key=len, reverse=True)
    return torch.stack([group.mean(0) for group in best[1]]).view(count, *points.shape[1:])


def unordered(centres):
    return sorted(centres.flatten(1).tolist())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_centroids_are_those_of_the_best_partition(count):
    points = torch.randn(7, 2, 1, 2, generator=generator(count), dtype=torch.float64)
    found = clusters_of(points, count, seed=1)[0]
    difference = torch.tensor(unordered(found)) - torch.tensor(unordered(best_partition(points, count)))
    assert difference.abs().max() < 1e-9


def test_the_largest_cluster_comes_first():
    points = torch.tensor([0.0, 9.0, 9.1, 9.2, 5.0, 5.2], dtype=torch.float64).view(6, 1, 1, 1)
    assert clusters_of(points, 3, seed=0)[0].flatten().tolist() == pytest.approx([9.1, 5.1, 0.0], abs=1e-9)


def test_centroids_alone_are_those_of_the_encodings(prior):
    real = core_set(6)
    found = started(KMeansCentroids(strength=0), prior, real=real)
    for label in range(3):
        encodings = prior.encode(to_unit_range(real.of_class(label)).double())
        difference = torch.tensor(unordered(found[label])) - torch.tensor(
            unordered(best_partition(encodings, 2))
        )
        assert difference.abs().max() < 1e-9


def test_noise_and_denoise(prior):
    """The last seven of ten steps (strength 0.7) from the noised centroids, with guidance."""
    centroids = started(KMeansCentroids(strength=0), prior)
    found = started(KMeansCentroids(strength=0.7, num_steps=10, guidance_scale=2.0), prior)
    for info in CLASSES:
        hand = Hand(prior, 2 + info.label, 2.0, 10)
        noise = torch.randn(2, 4, 8, 8, generator=generator(draws_seed(), "prior sample", info.wnid)).double()
        abar = hand.abar(hand.timesteps[3])
        x = abar.sqrt() * centroids[info.label] + (1 - abar).sqrt() * noise
        assert (hand.down(x, 7) - found[info.label]).abs().max() < 1e-9


def test_chunks_make_no_difference_to_the_encodings(prior):
    whole, parts = (started(KMeansCentroids(strength=0, chunk_size=n), prior) for n in (50, 3))
    assert (whole - parts).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 1.2}, r"initializer.strength \(1.2\) must be at least 0"),
        ({"num_steps": 0}, r"initializer.num_steps \(0\) must be at least 1"),
        ({"chunk_size": 0}, r"initializer.chunk_size \(0\) must be at least 1"),
        ({"max_images": 0}, r"initializer.max_images \(0\) must be at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0 must be a finite number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        KMeansCentroids(**arguments)


def test_too_few_images(prior):
    with pytest.raises(UserError, match=r"images_per_class \(9\) is more than the 8 real images of class 0"):
        started(KMeansCentroids(strength=0), prior, per_class=9)
    with pytest.raises(UserError, match=r"max_images \(2\) is less than the 3 clusters of each class"):
        started(KMeansCentroids(strength=0, max_images=2), prior, per_class=3)


def test_a_core_set_that_does_not_say_what_it_is(prior):
    real = core_set()
    real.spec = None
    with pytest.raises(UserError, match="does not say what its classes are"):
        started(KMeansCentroids(strength=0), prior, real=real)
