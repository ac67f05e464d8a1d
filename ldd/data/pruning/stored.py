"""Pruning by scores that were saved: a table of `latentdd prune`, on this machine or another."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch import Tensor

from ldd.data.pruning.base import (
    CACHE_DIR,
    Order,
    RankedPruner,
    Scope,
    check_window,
    exact_floor,
    fit_together,
    hash_items,
)
from ldd.data.pruning.table import Floats, ScoreFacts, ScoreTable
from ldd.data.sources import Item, Source
from ldd.errors import UserError, check_at_least
from ldd.images import DataSpec, rows_by_label
from ldd.runtime.seeding import generator


class TablePruner(RankedPruner):
    """Selects by a saved score table, whatever criterion it is of; what the file says was kept does not matter.

    The images are known by path and, where the table has hashes, by contents. The table may hold more images than
    the data: it then serves a subset of the classes too.

    Args:
        scores: path of the Parquet file.
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest scores, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        cache_dir: folder of the images' hashes, so that unchanged files are not read again; null keeps none.

    Raises:
        UserError: a share is outside its range, or the file is not a score table.
    """

    def __init__(
        self,
        scores: str,
        keep: float,
        order: Order = "easy",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, cache_dir)
        self.path = scores
        self.table = ScoreTable.load(scores)

    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Return the saved rows of the items; raise UserError if the table is of other data."""
        hashes = hash_items(source, items, self.cache_dir) if self.table.hashed else None
        own = ScoreTable.build(items, hashes, spec.classes, ScoreFacts(), np.zeros(len(items)))
        return _matched(self.table, self.path, own)


def _matched(table: ScoreTable, path: str, own: ScoreTable) -> ScoreTable:
    """Return the rows of `table`, saved at `path`, of the images of `own`, in their order."""
    places = pc.index_in(own.rows["path"], value_set=table.rows["path"].combine_chunks())
    saved = table.rows.take(places)
    there = pc.equal(saved["wnid"], own.rows["wnid"]).fill_null(False).to_numpy()
    same = there & pc.equal(saved["sha256"], own.rows["sha256"]).fill_null(not own.hashed).to_numpy()
    if same.all():
        return table.take(places.to_numpy(), own.labels)
    lacking, changed = np.flatnonzero(~there), np.flatnonzero(there & ~same)
    found = [
        f"{len(rows)} {what}, e.g. {own.rows['path'][int(rows[0])].as_py()}"
        for rows, what in ((lacking, "are not in it"), (changed, "have other contents"))
        if len(rows)
    ]
    raise UserError(
        f"scores={path!r} are of other data: fingerprint {table.fingerprint} ({len(table)} images), and the data's is "
        f"{own.fingerprint}; of its {len(own)} images {' and '.join(found)}; run `latentdd prune` on these data"
    )


class StratifiedPruner(TablePruner):
    """Coverage-centric selection (CCS; Zheng et al., ICLR 2023, arXiv 2210.15809) over a saved score table.

    In each class the hardest images are left out, the range of the remaining scores is cut into equal stretches, and
    the images to keep are shared out evenly among these, from the one with the fewest images on; within a stretch they
    are drawn by chance.

    Args:
        scores: path of the Parquet file with any criterion, e.g. of `latentdd prune`.
        keep: share kept, in (0, 1]; exactly floor(keep x n) of a class with n images.
        strata: stretches of the scores' range (published: 50).
        skip_hardest: share of the hardest images left out first; with `keep` at most 1.
        seed: of the draws; the table knows only the seed of its scores.
        cache_dir: folder of the images' hashes; null keeps none.

    Raises:
        UserError: a setting is outside its range, or the file is not a score table.
    """

    def __init__(
        self,
        scores: str,
        keep: float,
        strata: int = 50,
        skip_hardest: float = 0.0,
        seed: int = 0,
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(scores, keep, cache_dir=cache_dir)
        check_at_least(1, "pruner", strata=strata)
        check_window("skip_hardest", skip_hardest, keep)
        self.strata = strata
        self.skip_hardest = skip_hardest
        self.seed = seed

    def keep(self, table: ScoreTable) -> Tensor:
        """Return the indices (m,) int64, ascending, of the items kept."""
        self.selection(table)  # raises where a share leaves a class empty
        kept: list[int] = []
        places, values = table.rows["rank"].to_numpy(), table.values
        for label, rows in rows_by_label(torch.tensor(table.labels)):
            mine, count = rows.numpy(), len(rows)
            # By rank, so that equal scores have one order everywhere.
            mine = mine[np.argsort(places[mine])][: count - exact_floor(self.skip_hardest, count)]
            kept += self._draw(values[mine], mine, exact_floor(self.selection.keep, count), label)
        return torch.tensor(sorted(kept))

    def smallest_keep(self, table: ScoreTable, needed: int) -> float | None:
        """Return the smallest share that leaves `needed` images and room for those left out as hardest."""
        keep = super().smallest_keep(table, needed)
        return keep if keep is not None and fit_together(self.skip_hardest, keep) else None

    def _draw(self, values: Floats, rows: npt.NDArray[np.int64], budget: int, label: int) -> list[int]:
        chosen: list[int] = []
        members = [group for group in strata_of(values, self.strata) if len(group)]
        for place, group in enumerate(sorted(members, key=len)):
            share = (budget - len(chosen)) // (len(members) - place)
            draws = generator(self.seed, "stratified", label, place)
            picks = torch.randperm(len(group), generator=draws)[:share].tolist()
            chosen += [int(rows[group[pick]]) for pick in picks]
        return chosen


def strata_of(values: Floats, count: int) -> Sequence[npt.NDArray[np.int64]]:
    """Return the positions in `values` that fall into each of `count` equal stretches of their range."""
    edges = np.linspace(values.min(), values.max(), count + 1)
    numbers = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, count - 1)
    return [np.flatnonzero(numbers == number) for number in range(count)]
