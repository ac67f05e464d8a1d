"""Pruning by scores that were saved: a table of `latentdd prune`, on this machine or another."""

from collections.abc import Sequence

import numpy as np

from ldd.classes import DataSpec
from ldd.data.pruning.base import RankedPruner
from ldd.data.pruning.hashing import hash_items
from ldd.data.pruning.selection import Order, Scope
from ldd.data.pruning.table import ScoreTable
from ldd.data.sources import Item, Source
from ldd.errors import UserError


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

    Raises:
        UserError: a share is outside its range, or the file is no score table.
    """

    def __init__(
        self,
        scores: str,
        keep: float,
        order: Order = "easy",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest)
        self.path = scores
        self.table = ScoreTable.load(scores)

    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """The saved rows of the items.

        Raises:
            UserError: the table is of other data (both fingerprints are shown).
        """
        return matched(self.table, self.path, source, items, spec)


def matched(table: ScoreTable, path: str, source: Source, items: Sequence[Item], spec: DataSpec) -> ScoreTable:
    """The rows of `table` that belong to `items`, in their order.

    Args:
        table: saved scores.
        path: where they lie, for messages.
        source: where the images come from.
        items: the images.
        spec: gives the classes.

    Raises:
        UserError: an image is not in the table, or was changed since, or has another class.
    """
    rows = {name: row for row, name in enumerate(table.paths)}
    places = [rows.get(item.key, -1) for item in items]
    saved = table.rows.select(["sha256", "wnid"]).to_pydict()
    with_hashes = table.rows["sha256"].null_count == 0
    hashes = hash_items(source, items, None) if with_hashes and min(places) >= 0 else None

    def fits(item: int, row: int) -> bool:
        same_class = row >= 0 and saved["wnid"][row] == spec.classes[items[item].label].wnid
        return same_class and (hashes is None or hashes[item] == saved["sha256"][row])

    strangers = [item for item, row in enumerate(places) if not fits(item, row)]
    if strangers:
        labels = np.array([item.label for item in items])
        own = hash_items(source, items, None) if hashes is None else hashes
        raise UserError(_other_data(table, path, items, strangers, own, spec, labels))
    return table.take(np.array(places), np.array([item.label for item in items]))
