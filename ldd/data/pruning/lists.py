"""The published way to say which images are kept: a JSON list of paths per class, percentage and order."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from ldd.data.pruning.base import Order, Pruner, Selection, as_fraction
from ldd.data.pruning.table import ScoreFacts, ScoreTable
from ldd.data.sources import Item, Source
from ldd.disk.files import read_json, write_json
from ldd.errors import UserError
from ldd.images import ClassInfo, DataSpec, rows_by_label

_ORDERS: dict[Order, str] = {"easy": "asc", "hard": "desc"}
_LEAST_PARTS = 2  # the class's folder and the file: what layouts of one data set agree in
_LISTED = 5


class ListPruner(Pruner):
    """Keeps the images named in lists `class_{i}_top_{percent}_{asc|desc}.json`, as the released code writes them.

    Paths may be absolute or relative, of any machine: they are matched by their last parts (class folder and file; more
    where these do not tell two images apart), and the numbers in the files' names need not be this run's labels.

    Args:
        lists: folder of the lists.
        keep: share kept, which names the files: 0.6 reads `class_*_top_60_asc.json`. Each list is taken as it is.
        order: `easy` reads `asc`, `hard` reads `desc`.

    Raises:
        UserError: `keep` is outside (0, 1], or the folder has no such list.
    """

    def __init__(self, lists: str, keep: float, order: Order = "easy") -> None:
        Selection(keep, order)
        self.folder = Path(lists).expanduser()
        self.pattern = _list_name("*", keep, order)
        self.files = sorted(self.folder.glob(self.pattern))
        if not self.files:
            others = sorted(
                {re.sub(r"^class_[^_]*", "class_*", file.name) for file in self.folder.glob("class_*.json")}
            )
            raise UserError(
                f"lists={lists!r} has no files {self.pattern}; it has "
                f"{', '.join(others[:_LISTED]) or 'no lists at all'}"
            )

    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Score 0 for an image that is listed, 1 for another; no file is opened, so the table has no hashes."""
        parts = _telling_parts([item.key for item in items])
        listed = {_tail(path, parts) for path in self._paths()}
        values = np.array([_tail(item.key, parts) not in listed for item in items], dtype=np.float64)
        for label, mine in rows_by_label(torch.tensor([item.label for item in items])):
            if values[mine.numpy()].all():
                first = items[int(mine[0])].key
                raise UserError(
                    f"lists={str(self.folder)!r}: the {len(self.files)} lists {self.pattern} match none of the "
                    f"{len(mine)} images of class {spec.classes[label].wnid!r} (the data have e.g. {first}, the "
                    f"lists e.g. {next(self._paths(), 'no path')}); use lists of these data"
                )
        return ScoreTable.build(items, None, spec.classes, ScoreFacts("unlisted"), values)

    def keep(self, table: ScoreTable) -> Tensor:
        """Return the indices (m,) int64, ascending, of the items listed."""
        return torch.from_numpy(np.flatnonzero(table.values == 0))

    def _paths(self) -> Iterator[str]:
        for file in self.files:
            paths = read_json(file, "make the list again")
            if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
                raise UserError(f"{file} is not a list of paths; make it again")
            yield from paths


def write_lists(
    folder: Path, table: ScoreTable, classes: Sequence[ClassInfo], selection: Selection, prefix: str = ""
) -> list[Path]:
    """Write what `table` keeps, a list for each class, and return the files.

    Args:
        folder: where they are written.
        table: with a selection recorded.
        classes: their ids number the files (for ImageNet, as the released code does).
        selection: what was selected with; names the files, and puts the easiest images first with order `easy`, else
            the hardest.
        prefix: put before each relative path, for readers that need absolute ones.
    """
    ranks = table.rows["rank"].to_numpy() * (1 if selection.order == "easy" else -1)
    written = []
    kept = np.flatnonzero(table.is_kept)
    by_label = {label: kept[rows.numpy()] for label, rows in rows_by_label(torch.tensor(table.labels[kept]))}
    for info in classes:
        rows = by_label.get(info.label, kept[:0])
        rows = rows[np.argsort(ranks[rows], kind="stable")]
        names = [prefix + path for path in table.rows["path"].take(rows).to_pylist()]
        written.append(folder / _list_name(str(info.id), selection.keep, selection.order))
        write_json(written[-1], names)
    return written


def _list_name(number: str, keep: float, order: Order) -> str:
    """Return the name of a list; the share is in percent: `class_0_top_60_asc.json`."""
    percent = as_fraction(keep) * 100
    shown = str(percent.numerator) if percent.denominator == 1 else f"{float(percent):.10g}"
    return f"class_{number}_top_{shown}_{_ORDERS[order]}.json"


def _tail(path: str, parts: int) -> str:
    return "/".join(PurePosixPath(path.replace("\\", "/")).parts[-parts:])


def _telling_parts(keys: Sequence[str]) -> int:
    """Return how many of a path's last parts tell all `keys` apart, at least class folder and file."""
    deepest = max(len(PurePosixPath(key).parts) for key in keys)
    for parts in range(min(_LEAST_PARTS, deepest), deepest):
        if len({_tail(key, parts) for key in keys}) == len(keys):
            return parts
    return deepest
