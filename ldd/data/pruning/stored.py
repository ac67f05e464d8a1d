"""Pruning by scores that were saved: a table of `latentdd prune`, on this machine or another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from ldd.classes import DataSpec
from ldd.data.pruning.base import RankedPruner
from ldd.data.pruning.hashing import CACHE_DIR, hash_items
from ldd.data.pruning.selection import Order, Scope
from ldd.data.pruning.table import ScoreFacts, ScoreTable
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
        cache_dir: folder of the images' hashes, so that unchanged files are not read again; null keeps none.

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
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest)
        self.path = scores
        self.table = ScoreTable.load(scores)
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """The saved rows of the items.

        Raises:
            UserError: the table is of other data (both fingerprints are shown).
        """
        hashes = hash_items(source, items, self.cache_dir) if self.table.hashed else None
        own = ScoreTable.build(items, hashes, spec.classes, ScoreFacts(), np.zeros(len(items)))
        return matched(self.table, self.path, own)


def matched(table: ScoreTable, path: str, own: ScoreTable) -> ScoreTable:
    """The rows of `table` that belong to the images of `own`, in their order.

    Args:
        table: saved scores.
        path: where they lie, for messages.
        own: a table of the data's images, whatever its scores; with hashes where `table` has them.

    Raises:
        UserError: an image is not in the table, has another class there, or was changed since.
    """
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
