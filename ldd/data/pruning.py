"""Pruning before distillation: each training image gets a score, and a share of each class is kept."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import torch
from torch import Tensor

from ldd.classes import DataSpec
from ldd.data.real import RealImages
from ldd.errors import UserError
from ldd.seeding import generator


@dataclass(frozen=True)
class ScoreTable:
    """Scores of M training images.

    Attributes:
        keys: M names, as in `RealImages.keys`.
        labels: (M,) int64, ascending.
        scores: (M,) float64; what a high score means is the pruner's business.
    """

    keys: list[str]
    labels: Tensor
    scores: Tensor


class Pruner(ABC):
    """Chooses the core-set of a training split. Subclasses are final."""

    @abstractmethod
    def score(self, images: RealImages, spec: DataSpec, seed: int) -> ScoreTable:
        """Scores of all `images`; the only part that may be slow, so its result can be kept."""

    @abstractmethod
    def keep(self, table: ScoreTable) -> Tensor:
        """Indices (m,) int64, ascending, of the images kept, at least one of each class.

        Raises:
            UserError: a class would be left empty.
        """


class RandomPruner(Pruner):
    """Keeps a random share of each class: the baseline of every other pruner.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) images of a class with n.

    Raises:
        UserError: `keep` is outside (0, 1].
    """

    def __init__(self, keep: float) -> None:
        if not 0 < keep <= 1:
            raise UserError(f"keep={keep} is not a share; use a number above 0 and at most 1")
        self._share = keep

    def score(self, images: RealImages, spec: DataSpec, seed: int) -> ScoreTable:
        """Random numbers in [0, 1) from `seed`, a stream per class."""
        parts = [
            torch.rand(count, dtype=torch.float64, generator=generator(seed, "random pruner", label))
            for label, count in enumerate(images.counts)
        ]
        return ScoreTable(images.keys, images.labels, torch.cat(parts))

    def keep(self, table: ScoreTable) -> Tensor:
        """Indices of the lowest scores of each class."""
        return lowest_of_each_class(table, self._share)


def lowest_of_each_class(table: ScoreTable, share: float) -> Tensor:
    """Indices, ascending, of the floor(share x n) lowest scores of each class with n images; ties go by key.

    Raises:
        UserError: a class would be left empty.
    """
    scores, kept, start = table.scores.tolist(), [], 0
    for label, total in enumerate(torch.bincount(table.labels).tolist()):
        members = sorted(range(start, start + total), key=lambda i: (scores[i], table.keys[i]))
        start += total
        count = exact_floor(share, total)
        if total and not count:
            raise UserError(
                f"keep={share} would leave class {label} empty (it has {total} images); "
                f"use at least {ceil(1000 / total) / 1000:g}"
            )
        kept += sorted(members[:count])
    return torch.tensor(kept, dtype=torch.int64)


def exact_floor(share: float, count: int) -> int:
    """floor(share x count) of the decimal the user wrote: 0.29 of 100 is 29, though 0.29 * 100 < 29."""
    return floor(Fraction(repr(share)) * count)
