"""What every pruner is, how a share of the images is selected by their scores, and how scores are kept and shared."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ldd.disk.table import Store, in_column
from ldd.errors import UserError
from ldd.images import DataSpec, rows_by_label
from ldd.runtime.progress import progress
from ldd.runtime.ranks import from_any_rank, from_each_rank, shared, this_rank
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
    """Chooses the core-set of a training split, before the images are resized for the run.

    Attributes:
        decoded_in: folder for decoded images, mapped into memory; None decodes what is needed into memory. Data with a
            `cache_dir` set it.
    """

    decoded_in: str | None = None

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

    def units(self, items: Sequence[Item]) -> int:
        """Return how many pieces of work scoring is for processes that share it, each of them doing some by `share`.

        Raises:
            UserError: there is nothing to share, or no folder by which.
        """
        raise UserError(f"part: {type(self).__name__} has no work that could be shared; leave --part out")

    def share(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int, units: range) -> None:
        """Do some of the work of `score`, so that a later call of it finds what one process would have found.

        Args:
            source: see `score`.
            items: all of them, whatever the part.
            spec: see `score`.
            seed: see `score`.
            units: which of the pieces that `units` counts.
        """
        raise NotImplementedError

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

    def _check_shared(self) -> None:
        if self.cache_dir is None:
            raise UserError(
                "pruner.cache_dir (null) must name a folder that all parts see; or leave --part out"
            )

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
        for label, mine in rows_by_label(labels):
            draws = generator(seed, "random pruner", spec.classes[label].wnid)
            values[mine] = torch.rand(len(mine), dtype=torch.float64, generator=draws)
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
    missing = from_any_rank(np.array([result is None for result in known], dtype=np.bool_)).tolist()
    computed: list[T] = []
    if missing:
        computed = shared(len(missing), lambda pieces: work([missing[piece] for piece in pieces]))
    if store is not None and this_rank()[0] == 0:
        store.merge()
    found = dict(zip(missing, computed, strict=True))
    return [found[place] if place in found else known[place] for place in range(len(known))]  # type: ignore[misc]


Finder = Callable[[Sequence[int]], Iterable[tuple[object, ...]]]
"""Yields what is found for each of some items, by their places: a value for each column."""


def complete_rows(
    what: str, keys: Iterable[str], columns: Mapping[str, pa.DataType], folder: Path | None, work: Finder
) -> pa.Table:
    """Return a row for each key: those that are known in `folder`, and the others as the ranks together find them.

    The rows lie in Arrow's columns throughout: a million Python objects of each kind would take ten times as much. What
    is found is kept at once, with a bar that says `what`.
    """
    store = None if folder is None else Store(folder, columns)
    names = in_column(keys if folder is not None else ("" for _ in keys))  # which no store would keep
    schema = pa.schema(dict(columns))
    if store is None:
        known = pa.table([pa.nulls(len(names), kind) for kind in columns.values()], schema=schema)
    else:
        known = store.find(names)
    missing = from_any_rank(known[0].is_null().to_numpy())
    if len(missing):

        def mine() -> pa.Table:
            rank, ranks = this_rank()
            places = missing[rank::ranks]
            return _kept(what, names.take(pa.array(places)), work(places.tolist()), schema, store)

        parts = from_each_rank(mine)
        found = np.concatenate([np.arange(len(missing))[rank :: len(parts)] for rank in range(len(parts))])
        rows = np.arange(len(names))
        rows[missing[found]] = len(names) + np.arange(len(missing))
        known = pa.concat_tables([known, *parts]).take(pa.array(rows))
    if store is not None and this_rank()[0] == 0:
        store.merge()
    return known


def _kept(
    what: str,
    keys: pa.ChunkedArray,
    results: Iterable[tuple[object, ...]],
    schema: pa.Schema,
    store: Store | None,
) -> pa.Table:
    """Return results as a table, written to the store as they come: a kill costs some seconds of work."""
    done: list[pa.Table] = []
    waiting: list[tuple[object, ...]] = []
    saved, at = 0, time.monotonic()

    def save() -> None:
        nonlocal saved, at
        if waiting:
            rows = map(pa.array, zip(*waiting, strict=True), schema.types)
            done.append(pa.table([*rows], schema=schema))
            if store is not None:
                columns = dict(zip(schema.names, done[-1].columns, strict=True))
                store.add(keys.slice(saved, len(waiting)), **columns)
        saved, at = saved + len(waiting), time.monotonic()
        waiting.clear()

    with progress(what, len(keys)) as counter:
        try:
            for result in results:
                waiting.append(result)
                counter.add(1)
                if len(waiting) >= _SAVE_EVERY or time.monotonic() - at > _SAVE_SECONDS:
                    save()
        finally:  # also what was done before an unreadable image or a signal
            save()
    return pa.concat_tables([schema.empty_table(), *done])


def hash_items(source: Source, items: Sequence[Item], cache_dir: Path | None) -> pa.ChunkedArray:
    """Return the SHA-256 of each image's file; the cache knows files of the same size and time of change."""

    def work(places: Sequence[int]) -> Iterator[tuple[str]]:
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(places), _AT_ONCE):
                chunk = [items[place] for place in places[start : start + _AT_ONCE]]
                yield from zip(pool.map(source.sha256, chunk), strict=True)

    keys = (f"{source.place}\t{item.key}\t{source.revision(item)}" for item in items)
    folder = None if cache_dir is None else cache_dir / "hashes"
    return complete_rows("hashing images", keys, {"sha256": pa.string()}, folder, work)["sha256"]
