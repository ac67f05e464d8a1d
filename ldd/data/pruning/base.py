"""What every pruner is, how a share of the images is selected by their scores, and how scores are kept and shared."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ldd.data.pruning.table import ScoreFacts, ScoreTable, ordered
from ldd.data.sources import Item, Source
from ldd.disk.table import Store
from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.runtime.progress import progress
from ldd.runtime.ranks import from_any_rank, shared, this_rank
from ldd.runtime.seeding import generator

T = TypeVar("T")

Order = Literal["easy", "hard"]
"""Keep the lowest values of the criterion, or the highest."""

Scope = Literal["class", "global"]
"""Keep the share of every class, or of all images together (it is an error if a class then loses all of its own)."""

_STEPS = 10_000  # shares that a message may propose: four decimals


@dataclass(frozen=True)
class Selection:
    """Keeps a share of the images, in the order of their scores.

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
        check_window("skip_easiest", self.skip_easiest, self.keep)
        if self.skip_easiest and self.order == "hard":
            raise UserError(
                f"skip_easiest={self.skip_easiest} has no effect with order=hard, which starts at the other end; leave "
                "one of them out"
            )

    def __call__(self, table: ScoreTable) -> Tensor:
        """Return the indices (m,) int64, ascending, of the rows kept, at least one of each class."""
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
        """Return the smallest share (four decimals) that leaves `needed` images in each class; None if none does."""
        keep = self._smallest_keep(table, needed)
        return keep if keep is not None and fit_together(self.skip_easiest, keep) else None

    def _smallest_keep(self, table: ScoreTable, needed: int) -> float | None:
        if self.scope == "class":
            return smallest_keep(table.counts, needed)
        order, places, _ = self._places(table)
        skipped = exact_floor(self.skip_easiest, len(order))
        most = 0  # images to be kept before the last class has its own
        for label, n in enumerate(table.counts):
            mine = places[table.labels[order] == label]
            mine = mine[mine >= skipped]
            if n and len(mine) < needed:
                return None
            most = max(most, int(mine[needed - 1]) + 1) if n else most
        return smallest_keep([len(order)], most - skipped)

    def _places(self, table: ScoreTable) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[int]]:
        """Return rows in the order in which they are kept, the place of each in its group, and the groups' sizes."""
        group, descending = "label" if self.scope == "class" else None, self.order == "hard"
        order = ordered(table.rows, group, table.facts.criterion, descending=descending)
        if group is None:
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
    """Return floor(share x count) of the decimal as written: 0.29 of 100 is 29, though 0.29 * 100 < 29."""
    return floor(as_fraction(share) * count)


def as_fraction(share: float) -> Fraction:
    """Return exactly the decimal that is printed for `share`."""
    return Fraction(repr(float(share)))


def fit_together(skipped: float, kept: float) -> bool:
    """Return whether two shares are at most the whole."""
    return as_fraction(skipped) + as_fraction(kept) <= 1


def check_window(name: str, skipped: float, keep: float) -> None:
    """Raise unless the share left out first, the setting `name`, is in [0, 1) and leaves enough for `keep`."""
    if not 0 <= skipped < 1 or not fit_together(skipped, keep):
        raise UserError(
            f"{name}={skipped} and keep={keep} are more than there is; {name} is a share of at least 0, and with keep "
            "it is at most 1"
        )


def smallest_keep(counts: Sequence[int], needed: int) -> float | None:
    """Return the smallest share (four decimals) that leaves `needed` images in every class that has any, or None."""
    smallest = min(count for count in counts if count)
    return None if needed > smallest else ceil(Fraction(needed, smallest) * _STEPS) / _STEPS


class Pruner(ABC):
    """Chooses the core-set of a training split, before the images are resized for the run."""

    @abstractmethod
    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Return a row of scores for each of `items`, in this order; the only part that may be slow.

        Where torch.distributed is initialised the ranks share the work, so all of them must call it.

        Args:
            source: where the images come from.
            items: training images that can be read.
            spec: classes and normalisation; its image size only matters to networks trained on the data.
            seed: of everything random.

        Raises:
            UserError: an unreadable image, or settings that do not fit the data.
        """

    @abstractmethod
    def keep(self, table: ScoreTable) -> Tensor:
        """Return the indices (m,) int64, ascending, of the items kept, at least one of each class.

        Raises:
            UserError: a class would be left empty.
        """

    def prune(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Return the scores with what is kept recorded; arguments and errors as of `score` and `keep`."""
        table = self.score(source, items, spec, seed)
        return table.with_kept(self.keep(table))

    def smallest_keep(self, table: ScoreTable, needed: int) -> float | None:
        """Return the smallest share that leaves `needed` images in every class; None where no share does."""
        return None


class RankedPruner(Pruner):
    """Keeps one end of an order.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest scores, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        cache_dir: folder of the scores; None keeps none.

    Raises:
        UserError: a share is outside its range, or the settings contradict each other.
    """

    def __init__(
        self,
        keep: float,
        order: Order = "easy",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        cache_dir: str | None = None,
    ) -> None:
        self.selection = Selection(keep, order, scope, skip_easiest)
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def keep(self, table: ScoreTable) -> Tensor:
        """Return the indices (m,) int64, ascending, of the items kept; see `Selection`."""
        return self.selection(table)

    def smallest_keep(self, table: ScoreTable, needed: int) -> float | None:
        """Call `Selection.smallest_keep`."""
        return self.selection.smallest_keep(table, needed)


class RandomPruner(RankedPruner):
    """Keeps a random share of each class, drawn from the data's seed: the baseline of every other pruner.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        scope: `class` keeps the share of every class, `global` of all images together.

    Raises:
        UserError: `keep` is outside (0, 1].
    """

    def __init__(self, keep: float, scope: Scope = "class") -> None:
        super().__init__(keep, scope=scope)

    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Draw numbers in [0, 1), a stream for each class; no file is opened, so the table has no hashes."""
        labels = torch.tensor([item.label for item in items], dtype=torch.int64)
        values = torch.empty(len(items), dtype=torch.float64)
        for label in labels.unique().tolist():
            mine = labels == label
            draws = generator(seed, "random pruner", spec.classes[label].wnid)
            values[mine] = torch.rand(int(mine.sum()), dtype=torch.float64, generator=draws)
        facts = ScoreFacts("random", seed=seed)
        return ScoreTable.build(items, None, spec.classes, facts, values.numpy())


CACHE_DIR = "~/.cache/latentdd/scores"
"""Where hashes and scores are kept unless another folder is named."""

_THREADS = 8  # files being read at once: the disk is the limit
_AT_ONCE = 1024  # files being read before the first of them is told
_SAVE_EVERY, _SAVE_SECONDS = 4096, 20  # results, or seconds: what a killed process has to do again


def complete(
    known: Sequence[T | None], work: Callable[[Sequence[int]], Sequence[T]], store: Store | None
) -> list[T]:
    """Return the known results, and the others (None) as the ranks together find them by `work`."""
    # Of any rank: one that looks late finds what another has already added.
    missing = from_any_rank([place for place, result in enumerate(known) if result is None])
    computed: list[T] = []
    if missing:
        computed = shared(len(missing), lambda pieces: work([missing[piece] for piece in pieces]))
    if store is not None and this_rank()[0] == 0:
        store.merge()
    found = dict(zip(missing, computed, strict=True))
    return [found[place] if place in found else known[place] for place in range(len(known))]  # type: ignore[misc]


def hash_items(source: Source, items: Sequence[Item], cache_dir: Path | None) -> list[str]:
    """Return the SHA-256 of each image's file; the cache knows files of the same size and time of change."""
    store = Store(cache_dir / "hashes", {"sha256": pa.string()}) if cache_dir is not None else None
    keys = [f"{source.place}\t{item.key}\t{source.revision(item)}" for item in items]

    def work(places: Sequence[int]) -> list[str]:
        with ThreadPoolExecutor(_THREADS) as pool:
            starts = range(0, len(places), _AT_ONCE)
            chunks = ([items[place] for place in places[start : start + _AT_ONCE]] for start in starts)
            found = (digest for chunk in chunks for digest in pool.map(source.sha256, chunk))
            return stored("hashing images", [keys[place] for place in places], found, store, _column)

    known = [None] * len(items) if store is None else store.find(keys)["sha256"].to_pylist()
    return complete(known, work, store)


def _column(digests: Sequence[str]) -> dict[str, pa.Array]:
    return {"sha256": pa.array(digests, pa.string())}


def stored(
    what: str,
    keys: Sequence[str],
    results: Iterable[T],
    store: Store | None,
    columns: Callable[[Sequence[T]], Mapping[str, pa.Array]],
) -> list[T]:
    """Return results, with a bar, and write them to the store as they come: a kill costs some seconds of work."""
    found: list[T] = []
    saved, at = 0, time.monotonic()

    def save() -> None:
        if store is not None and len(found) > saved:
            store.add(keys[saved : len(found)], **columns(found[saved:]))

    with progress(what, len(keys)) as counter:
        try:
            for result in results:
                found.append(result)
                counter.add(1)
                if len(found) - saved >= _SAVE_EVERY or time.monotonic() - at > _SAVE_SECONDS:
                    save()
                    saved, at = len(found), time.monotonic()
        finally:  # also what was done before an unreadable image or a signal
            save()
    return found
