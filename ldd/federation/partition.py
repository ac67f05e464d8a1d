"""Splitting the classes of a task into sub-tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

from ldd.data import DistillationData
from ldd.disk.files import write_json
from ldd.disk.records import read_record
from ldd.errors import UserError, listed
from ldd.images import ClassInfo
from ldd.networks.scoring import ScoringNetwork, by_class
from ldd.runtime.seeding import derive_seed, generator

T = TypeVar("T")
Array = npt.NDArray[Any]
Rule = Literal["contiguous", "random", "semantic"]
"""How classes are split."""

_MAX_ROUNDS = 100
_STARTS = 10


@dataclass(frozen=True)
class ClassPartition:
    """Disjoint blocks of classes whose sizes differ by at most one.

    D3 (arXiv 2403.00999, as released) takes contiguous blocks of the data's own order. Blocks are kept as wnids, since
    the numbers of classes differ between copies of the same data.

    Attributes:
        blocks: wnids of each sub-task, in the order of their labels there.
        rule: how it was made (`Rule`).
        others: wnids that each sub-task learns besides its block, see `overlapping`; none at all by default.
    """

    blocks: tuple[tuple[str, ...], ...]
    rule: str = "contiguous"
    others: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.others and len(self.others) != len(self.blocks):
            raise UserError(
                f"others must be of each of the {len(self.blocks)} blocks, got {len(self.others)}"
            )

    @classmethod
    def contiguous(cls, classes: Sequence[ClassInfo], subtasks: int) -> Self:
        """Return blocks in the order of the labels, the larger ones first.

        Raises:
            UserError: fewer than one class for each sub-task.
        """
        sizes = _block_sizes(len(classes), subtasks)
        return cls(_cut([info.wnid for info in classes], sizes), "contiguous")

    @classmethod
    def random(cls, classes: Sequence[ClassInfo], subtasks: int, seed: int) -> Self:
        """Return blocks of classes drawn by `seed`; within a block they keep the order of their labels.

        Raises:
            UserError: fewer than one class for each sub-task.
        """
        sizes = _block_sizes(len(classes), subtasks)
        order = torch.randperm(len(classes), generator=generator(seed, "partition"))
        blocks = _cut(order.tolist(), sizes)
        return cls(tuple(tuple(classes[label].wnid for label in sorted(block)) for block in blocks), "random")

    @classmethod
    def semantic(cls, classes: Sequence[ClassInfo], subtasks: int, features: Tensor, seed: int) -> Self:
        """Return blocks of similar classes, by balanced k-means (Malinen and Fraenti, S+SSPR 2014).

        Blocks are numbered by their first class, and within a block classes keep the order of their labels.

        Args:
            classes: the K classes.
            subtasks: number of blocks.
            features: (K, F), one row a class, for instance the mean feature of its images.
            seed: of the starting centres.

        Raises:
            UserError: fewer than one class for each sub-task.
        """
        sizes = _block_sizes(len(classes), subtasks)
        members = balanced_k_means(features.double().numpy(), sizes, derive_seed(seed, "partition"))
        blocks = sorted(np.flatnonzero(members == block).tolist() for block in range(subtasks))
        return cls(tuple(tuple(classes[label].wnid for label in block) for block in blocks), "semantic")

    def overlapping(self, classes: Sequence[ClassInfo], count: int, seed: int) -> Self:
        """Return the partition with `count` classes of other blocks for each sub-task, drawn by `seed`.

        A sub-task whose experts know its own classes alone makes images that tell those apart, and nothing else. With
        others beside them its images differ from theirs too; what it learns of the others is left out of the merge.

        Raises:
            UserError: a number below 0, or more classes than lie in other blocks.
        """
        most = len(classes) - max(map(len, self.blocks))
        if not 0 <= count <= most:
            raise UserError(
                f"--overlap ({count}) must lie in 0..{most}, the number of classes in the other sub-tasks"
            )
        if not count:
            return replace(self, others=())
        others = []
        for number, block in enumerate(self.blocks):
            elsewhere = [info.wnid for info in classes if info.wnid not in block]
            drawn = torch.randperm(len(elsewhere), generator=generator(seed, "overlap", number))[:count]
            others.append(tuple(elsewhere[place] for place in sorted(drawn.tolist())))
        return replace(self, others=tuple(others))

    @property
    def overlap(self) -> int:
        """Number of classes that each sub-task learns besides its own."""
        return len(self.others[0]) if self.others else 0

    def learned(self, number: int) -> tuple[str, ...]:
        """Return the wnids of all classes that a sub-task learns, its own first."""
        return (*self.blocks[number], *(self.others[number] if self.others else ()))

    def save(self, path: Path | str) -> None:
        """Write the partition as JSON.

        Raises:
            UserError: the file cannot be written.
        """
        others = {"others": self.others} if self.others else {}
        write_json(path, {"rule": self.rule, "blocks": self.blocks, **others})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, or holds no partition.
        """
        return read_record(path, cls, "make it anew")

    def check(self, classes: Sequence[ClassInfo]) -> None:
        """Raise unless each of `classes` is in exactly one block.

        Raises:
            UserError: a class that is in no block, in two, or not among `classes`; the message names it.
        """
        check_blocks(self.blocks, classes)


def check_blocks(blocks: Sequence[Sequence[str]], classes: Sequence[ClassInfo]) -> None:
    """Raise UserError unless blocks of wnids hold each of `classes` once; the message names the first few."""
    places: dict[str, list[int]] = {}
    for number, block in enumerate(blocks):
        for wnid in block:
            places.setdefault(wnid, []).append(number)
    known = {info.wnid for info in classes}
    twice = [f"{wnid} (sub-tasks {', '.join(map(str, at))})" for wnid, at in places.items() if len(at) > 1]
    missing = [info.wnid for info in classes if info.wnid not in places]
    strange = [wnid for wnid in places if wnid not in known]
    for what, found in (
        ("in more than one sub-task", twice),
        ("in none", missing),
        ("not in the task", strange),
    ):
        if found:
            raise UserError(
                f"sub-tasks: {listed(found)}: {what}; each class of the task belongs to exactly one"
            )


def _block_sizes(num_classes: int, subtasks: int) -> list[int]:
    """Return sizes that differ by at most one, the larger ones first."""
    if not 1 <= subtasks <= num_classes:
        raise UserError(f"--subtasks ({subtasks}) must lie in 1..{num_classes}, the number of classes")
    each, more = divmod(num_classes, subtasks)
    return [each + (number < more) for number in range(subtasks)]


def balanced_k_means(points: Array, sizes: Sequence[int], seed: int) -> Array:
    """Return cluster numbers (N,) of `points` (N, F) with `sizes` members each, near their means.

    Lloyd's iteration, with an optimal assignment of points to the seats of clusters instead of the nearest centre.
    Several starts by k-means++ are tried; the one with the least sum of squared distances to the means is kept.
    """
    seats = np.repeat(np.arange(len(sizes)), sizes)
    best, least = seats, np.inf
    for start in range(_STARTS):
        state = np.random.RandomState(derive_seed(seed, start) % 2**32)
        centres, _ = kmeans_plusplus(points, len(sizes), random_state=state)
        members = seats
        for round_ in range(_MAX_ROUNDS):
            _, columns = linear_sum_assignment(cdist(points, centres, "sqeuclidean")[:, seats])
            before, members = members, seats[columns]
            if round_ and (members == before).all():
                break
            centres = np.stack([points[members == cluster].mean(0) for cluster in range(len(sizes))])
        cost = float(((points - centres[members]) ** 2).sum())
        if cost < least:
            best, least = members, cost
    return best


def _cut(values: Sequence[T], sizes: Sequence[int]) -> tuple[tuple[T, ...], ...]:
    ends = np.cumsum(sizes).tolist()
    return tuple(tuple(values[end - size : end]) for size, end in zip(sizes, ends, strict=True))


def class_means(data: DistillationData, network: ScoringNetwork, seed: int) -> Tensor:
    """Return the mean feature of each class's core-set, (K, F), in a network trained on all of them."""
    real, spec = data.core_set, data.spec
    trained = network.trained(real.at_hand, real.labels, spec, seed, "partition")
    parts = network.features_in_parts(trained, real.at_hand, spec)
    return torch.stack([features.mean(0) for features in by_class(parts, real.labels)])
