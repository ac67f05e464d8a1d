"""How much of the real images a set covers, how different its images are, and how far its features lie from theirs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

K = 5
"""Neighbours that make the radius of a real image, as in the paper."""

_CHUNK = 1024


@dataclass(frozen=True)
class Spread:
    """Figures of a set of images in feature space.

    Attributes:
        coverage: share of real images with an image of the set within the distance to their 5th real neighbour
            (Naeem et al., arXiv 2002.09797, equation 4). Few images cover few neighbourhoods, so compare sets of one
            size.
        density: mean over images of the number of such real neighbourhoods that hold it, divided by 5 (equation 3).
        diversity: mean distance between images of one class, over classes of two or more; None where there is none.
        real_diversity: the same for the real images.
    """

    coverage: float
    density: float
    diversity: float | None
    real_diversity: float | None


def spread_of(points: Tensor, labels: Tensor, real_points: Tensor, real_labels: Tensor) -> Spread:
    """Measure points (N, F) and real points (M, F) class by class, then average over the images."""
    covered, inside = [], []
    for label in real_labels.unique().tolist():
        own, theirs = points[labels == label], real_points[real_labels == label]
        if len(theirs) <= K or not len(own):
            continue
        held = _distances(own, theirs) < _radius(theirs)
        covered.append(held.any(0))
        inside.append(held.sum(1) / K)
    return Spread(
        coverage=float(torch.cat(covered).float().mean()) if covered else 0.0,
        density=float(torch.cat(inside).float().mean()) if inside else 0.0,
        diversity=_diversity(points, labels),
        real_diversity=_diversity(real_points, real_labels),
    )


def _distances(one: Tensor, other: Tensor) -> Tensor:
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


def _radius(points: Tensor) -> Tensor:
    """Distance (n,) from each point to its K-th nearest other."""
    parts = [_distances(part, points).kthvalue(K + 1).values for part in points.split(_CHUNK)]
    return torch.cat(parts)


def _diversity(points: Tensor, labels: Tensor) -> float | None:
    total, pairs = 0.0, 0
    for label in labels.unique().tolist():
        own = points[labels == label]
        count = len(own) * (len(own) - 1)
        if count:
            total += sum(float(_distances(part, own).sum()) for part in own.split(_CHUNK))
            pairs += count
    return total / pairs if pairs else None


class _Identity(nn.Module):
    """Hands on features in the place of a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(points: Tensor, real_points: Tensor) -> float | None:
    """Return the Frechet distance of Gaussians fitted to features (N, F) and (M, F), by torchmetrics, in float64.

    This is FID with another network in the place of Inception: compare it only between sets of one size and one
    network. It is None for fewer than two images, which have no covariance.
    """
    if min(len(points), len(real_points)) < 2:
        return None
    metric = FrechetInceptionDistance(feature=_Identity(points.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(real_points.double(), real=True)
    metric.update(points.double(), real=False)
    return float(metric.compute())
