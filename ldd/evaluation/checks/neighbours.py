"""Search for copies: how near each image is to a real one, compared with the distances between real images."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldd.data.real import RealImages
from ldd.evaluation.features import pixels

COPY_RATIO = 0.5
"""Below this share of the usual distance between real images an image counts as a copy."""

_CHUNK = 1024  # real images compared at once


@dataclass(frozen=True)
class Neighbours:
    """The nearest real image of each of N images, by one measure of distance.

    Attributes:
        rows: (N,) int64, its place among the real images.
        distances: (N,) Euclidean.
        usual: median distance from a real image to the nearest other one of its class.
        keys: names of these real images.
        same_class: (N,) whether they are of the image's class.
    """

    rows: Tensor
    distances: Tensor
    usual: float
    keys: list[str]
    same_class: Tensor

    @property
    def ratios(self) -> Tensor:
        """Distances as shares of the usual one, (N,)."""
        return self.distances / self.usual if self.usual > 0 else torch.zeros_like(self.distances)

    def summary(self, copy_ratio: float = COPY_RATIO) -> dict[str, Any]:
        """Return plain values: each image's neighbour, and how many are copies."""
        return {
            "usual_distance": self.usual,
            "median_ratio": float(self.ratios.median()),
            "copy_ratio": copy_ratio,
            "copies": int((self.ratios < copy_ratio).sum()),
            "same_class": float(self.same_class.float().mean()),
            "images": [
                {"nearest": key, "distance": distance, "ratio": ratio}
                for key, distance, ratio in zip(
                    self.keys, self.distances.tolist(), self.ratios.tolist(), strict=True
                )
            ],
        }


def nearest_real(points: Tensor, labels: Tensor, real_points: Tensor, real: RealImages) -> Neighbours:
    """Find the nearest of all real images, of any class, by points (N, F) of a set and (M, F) of real images."""
    distances, rows = nearest(points, real_points)
    own = [nearest(part, part, skip_self=True)[0] for part in real_points.split(real.counts) if len(part) > 1]
    usual = float(torch.cat(own).median()) if own else 0.0
    keys = [real.keys[row] for row in rows.tolist()]
    return Neighbours(rows, distances, usual, keys, real.labels[rows] == labels)


def nearest(points: Tensor, others: Tensor, *, skip_self: bool = False) -> tuple[Tensor, Tensor]:
    """Return the distance (n,) from each of `points` (n, F) to the nearest of `others` (m, F), and its row.

    Of equals the first is taken. With `skip_self` the `others` are `points`, and none is its own neighbour.
    """
    best = torch.full((len(points),), torch.inf)
    rows = torch.zeros(len(points), dtype=torch.int64)
    for start in range(0, len(others), _CHUNK):
        # Without the product form, whose rounding would hide that a copy has distance 0.
        part = torch.cdist(
            points, others[start : start + _CHUNK], compute_mode="donot_use_mm_for_euclid_dist"
        )
        if skip_self:
            own = torch.arange(start, min(start + _CHUNK, len(points)))
            part[own, own - start] = torch.inf
        found, where = part.min(1)
        nearer = found < best
        best = torch.where(nearer, found, best)
        rows = torch.where(nearer, where + start, rows)
    return best, rows


def by_pixels(images: Tensor, labels: Tensor, real: RealImages) -> Neighbours:
    """Find the nearest real images by pixels in [0, 1], averaged over squares above 32 px."""
    return nearest_real(pixels(images), labels, pixels(real.images), real)
