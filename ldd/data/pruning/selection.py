"""Which images are kept once they have scores: exact counts, in vector form."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldd.data.pruning.rows import ordered
from ldd.data.pruning.table import ScoreTable
from ldd.errors import UserError

Order = Literal["easy", "hard"]
"""Keep the lowest values of the criterion, or the highest."""

Scope = Literal["class", "global"]
"""Keep the share of every class, or of all images together (classes may then lose all theirs: an error)."""

_STEPS = 10_000  # shares that a message may propose: four decimals


@dataclass(frozen=True)
class Selection:
    """Keeps a share of the images, by their order.

    Attributes:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images, read as the decimal that was written.
        order: which end is kept.
        scope: what n counts.
        skip_easiest: share of the easiest images left out first, so that a window remains; exactly
            floor(skip_easiest x n). Only with order "easy".

    Raises:
        UserError: a share is outside its range, or the settings contradict each other.
    """

    keep: float
    order: Order = "easy"
    scope: Scope = "class"
    skip_easiest: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UserError(f"keep={self.keep} is not a share; use a number above 0 and at most 1")
        if self.order not in ("easy", "hard") or self.scope not in ("class", "global"):
            raise UserError(
                f"order={self.order!r}, scope={self.scope!r}: order is easy or hard, scope is class or global"
            )
        if not 0 <= self.skip_easiest < 1 or as_fraction(self.skip_easiest) + as_fraction(self.keep) > 1:
            raise UserError(
                f"skip_easiest={self.skip_easiest} and keep={self.keep} are more than there is; skip_easiest is a "
                "share of at least 0, and with keep it is at most 1"
            )
        if self.skip_easiest and self.order == "hard":
            raise UserError(
                f"skip_easiest={self.skip_easiest} has no effect with order=hard, which starts at the other end; leave "
                "one of them out"
            )

    def __call__(self, table: ScoreTable) -> Tensor:
        """Indices (m,) int64, ascending, of the rows kept, at least one of each class.

        Raises:
            UserError: a class would be left empty (named, with the smallest share that works).
        """
        order, places, totals = self._places(table)
        skipped = np.array([exact_floor(self.skip_easiest, n) for n in totals])
        quotas = np.array([exact_floor(self.keep, n) for n in totals])
        group = table.labels[order] if self.scope == "class" else np.zeros(len(order), dtype=np.int64)
        chosen = order[(places >= skipped[group]) & (places < skipped[group] + quotas[group])]
        kept = np.bincount(table.labels[chosen], minlength=len(table.counts))
        empty = [label for label, n in enumerate(table.counts) if n and not kept[label]]
        if empty:
            raise UserError(self._empty_class(table, empty))
        return torch.from_numpy(np.sort(chosen))

    def smallest_keep(self, table: ScoreTable, needed: int) -> float | None:
        """Smallest share (four decimals) that leaves `needed` images in every class that has any; None if none does."""
        keep = self._smallest_keep(table, needed)
        fits = keep is not None and as_fraction(self.skip_easiest) + as_fraction(keep) <= 1
        return keep if fits else None

    def _smallest_keep(self, table: ScoreTable, needed: int) -> float | None:
        if self.scope == "class":
            return smallest_keep(table.counts, needed)
        order, places, _ = self._places(table)
        most = 0  # images that must be kept before the last class has its own
        for label, n in enumerate(table.counts):
            mine = places[table.labels[order] == label]
            mine = mine[mine >= exact_floor(self.skip_easiest, len(order))]
            if n and len(mine) < needed:
                return None
            most = max(most, int(mine[needed - 1]) + 1) if n else most
        return smallest_keep([len(order)], most - exact_floor(self.skip_easiest, len(order)))

    def _places(self, table: ScoreTable) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[int]]:
        """Rows in the order in which they are kept, the place of each in its group, and the groups' sizes."""
        by_class = self.scope == "class"
        order = ordered(
            table.rows, "label" if by_class else None, table.facts.criterion, descending=self.order == "hard"
        )
        if not by_class:
            return order, np.arange(len(order)), [len(order)]
        labels = table.labels[order]
        return order, np.arange(len(order)) - np.searchsorted(labels, labels), table.counts

    def _empty_class(self, table: ScoreTable, empty: Sequence[int]) -> str:
        label = empty[0]
        others = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        works = self.smallest_keep(table, 1)
        cure = "use a smaller skip_easiest" if works is None else f"use at least keep={works:g}"
        return (
            f"keep={self.keep:g} would leave class {table.wnid(label)!r} (label {label}, {table.counts[label]} images)"
            f"{others} empty; {cure}" + (", or scope=class" if self.scope == "global" else "")
        )


def exact_floor(share: float, count: int) -> int:
    """floor(share x count) of the decimal the user wrote: 0.29 of 100 is 29, though 0.29 * 100 < 29."""
    return floor(as_fraction(share) * count)


def as_fraction(share: float) -> Fraction:
    """The decimal that is printed for `share`, exactly."""
    return Fraction(repr(float(share)))


def smallest_keep(counts: Sequence[int], needed: int) -> float | None:
    """Smallest share (rounded up to four decimals) of which every class has `needed` images, or None.

    Args:
        counts: images of each class; classes without any do not count.
        needed: images that must remain in each.
    """
    smallest = min(count for count in counts if count)
    if needed > smallest:
        return None
    return ceil(Fraction(needed, smallest) * _STEPS) / _STEPS
