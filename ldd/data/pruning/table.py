"""The score table: one row per training image, kept as Parquet, with nothing in it that depends on the machine."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ldd.data.sources import Item
from ldd.disk.files import atomic_file
from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.runtime.tables import PlainTable

Floats = npt.NDArray[np.float64]

_FORMAT = "1"  # of the file

# Of every table; a criterion other than the loss adds a column of its name.
_COLUMNS = {
    "path": pa.string(),
    "sha256": pa.string(),
    "label": pa.int64(),
    "wnid": pa.string(),
    "loss": pa.float64(),
    "margin": pa.float64(),
    "rank": pa.int64(),
    "kept": pa.bool_(),
}
_MAY_BE_NULL = ("sha256", "loss", "margin", "kept")  # no file was opened; no classifier; nothing selected yet
_LISTED = 50  # classes in the printed table
_NOTE = "of the training split, without the images that are set aside to choose settings by (selection split)"
_ABSOLUTE = r"^(/|\\|[A-Za-z]:)|(^|/)\.\.(/|$)"


@dataclass(frozen=True)
class ScoreFacts:
    """What the scores of a table follow from, apart from the images.

    Attributes:
        criterion: column that orders the images; low is easy (`loss`, `el2n`, `random`...).
        classifier: the network or networks that scored, by name and hash of the weights; empty where none did.
        preprocessing: how they saw the images.
        seed: of random parts, 0 where there are none.
        network: dotted name of that network, which counts as seen; empty where none scored, and in older tables.
    """

    criterion: str = "loss"
    classifier: str = ""
    preprocessing: str = ""
    seed: int = 0
    network: str = ""


class ScoreTable:
    """Scores of M training images, in the order of the items they were made from.

    Args:
        rows: Arrow table with the columns `path` (relative), `sha256` (of the file; null where none was opened),
            `label`, `wnid`, `loss` (of the true class, in nats), `margin` (logit of the true class minus the highest
            other), `rank` (within the class, 0 for the lowest value of the criterion, ties by path), `kept` (null
            before a selection), and the criterion's own column where it is none of these.
        facts: what the scores follow from.
    """

    def __init__(self, rows: pa.Table, facts: ScoreFacts) -> None:
        self.rows = rows
        self.facts = facts

    @classmethod
    def build(
        cls,
        items: Sequence[Item],
        hashes: pa.ChunkedArray | None,
        classes: Sequence[ClassInfo],
        facts: ScoreFacts,
        values: Floats,
        *,
        loss: Floats | None = None,
        margin: Floats | None = None,
    ) -> "ScoreTable":
        """Return a table in memory.

        Args:
            items: the M images.
            hashes: their SHA-256; None where no file was opened.
            classes: the K classes, ordered by label.
            facts: what the values follow from.
            values: (M,) of the criterion.
            loss: (M,) in nats, where a classifier gave one.
            margin: (M,) in logits, likewise.

        Raises:
            UserError: there is no image, or a value is NaN or infinite.
        """
        wnids = [info.wnid for info in classes]
        given = {"sha256": hashes, "loss": loss, "margin": margin, "kept": None}
        columns: dict[str, Any] = {
            "path": [item.key for item in items],
            "label": [item.label for item in items],
            "wnid": [wnids[item.label] for item in items],
            "rank": np.zeros(len(items), dtype=np.int64),
            **{name: pa.nulls(len(items)) if part is None else part for name, part in given.items()},
        }
        columns |= {
            name: pa.array(part) for name, part in columns.items() if not isinstance(part, pa.ChunkedArray)
        }
        rows = pa.table({name: columns[name].cast(kind) for name, kind in _COLUMNS.items()})
        rows = _replaced(rows, facts.criterion, pa.array(values, pa.float64()))
        _check_rows(rows, facts.criterion)
        return _ranked(cls(rows, facts))

    @classmethod
    def load(cls, path: Path | str) -> "ScoreTable":
        """Read and check a saved table.

        Raises:
            UserError: there is no such file, it is damaged, or it is not a score table of this format.
        """
        rows, metadata = _read(path)
        if metadata.get("ldd_format") != _FORMAT:
            raise UserError(
                f"{path} is not a score table of format {_FORMAT} (it says {metadata.get('ldd_format')!r}); make it "
                "with `latentdd prune` of this version"
            )
        try:
            words = {name: metadata[name] for name in ("criterion", "classifier", "preprocessing")}
            facts = ScoreFacts(**words, seed=int(metadata["seed"]), network=metadata.get("network", ""))
            _check_rows(rows, facts.criterion)
        except (KeyError, ValueError) as error:
            reason = f"its metadata lack {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"score table {path} cannot be used: {reason}; make it again") from error
        table = cls(rows, facts)
        if table.fingerprint != metadata.get("data_fingerprint"):
            raise UserError(
                f"score table {path} was edited: its rows have the data fingerprint {table.fingerprint}, its metadata "
                f"say {metadata.get('data_fingerprint')}; make it again"
            )
        return table

    def save(self, path: Path | str) -> Path:
        """Write the table as Parquet, atomically; the same table gives the same bytes.

        Raises:
            UserError: `path` cannot be written.
        """
        facts = {name: str(value) for name, value in asdict(self.facts).items()}
        metadata = {"ldd_format": _FORMAT, **facts, "data_fingerprint": self.fingerprint}
        with atomic_file(path) as beside:
            rows = self.rows.replace_schema_metadata(metadata)
            pq.write_table(rows, beside, compression="zstd", write_page_checksum=True)
        return Path(path)

    def __len__(self) -> int:
        """Return M."""
        return int(self.rows.num_rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hash over wnid, path and contents of all images; equal in any order and wherever the files lie."""
        rows = self.rows.select(["wnid", "path", "sha256"]).sort_by("path")
        digest = hashlib.sha256()
        for batch in rows.to_batches(max_chunksize=2**16):
            joined = pc.binary_join_element_wise(
                *batch.columns, "\t", null_handling="replace", null_replacement=""
            )
            digest.update("\n".join([*joined.to_pylist(), ""]).encode())
        return digest.hexdigest()[:32]

    @property
    def paths(self) -> list[str]:
        """M names, as in `Item.key`."""
        names: list[str] = self.rows["path"].to_pylist()
        return names

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(M,)."""
        labels: npt.NDArray[np.int64] = self.rows["label"].to_numpy()
        return labels

    @property
    def values(self) -> Floats:
        """(M,) of the criterion; low is easy."""
        values: Floats = self.rows[self.facts.criterion].to_numpy()
        return values

    @property
    def counts(self) -> list[int]:
        """Images of each class, by label."""
        counts: list[int] = np.bincount(self.labels).tolist()
        return counts

    @property
    def hashed(self) -> bool:
        """Whether the images' contents are known."""
        return not self.rows["sha256"].null_count

    def wnid(self, label: int) -> str:
        """Return the wnid of a class that has images."""
        row = int(np.flatnonzero(self.labels == label)[0])
        return str(self.rows["wnid"][row].as_py())

    @property
    def kept(self) -> Tensor | None:
        """Indices (m,) int64, ascending, of what was selected; None before a selection."""
        return None if self.rows["kept"].null_count else torch.from_numpy(np.flatnonzero(self.is_kept))

    @property
    def is_kept(self) -> npt.NDArray[np.bool_]:
        """(M,), whether each image was selected; False for all before a selection."""
        kept: npt.NDArray[np.bool_] = self.rows["kept"].fill_null(False).to_numpy()
        return kept

    def tabulate(self) -> PlainTable:
        """Return the images and the kept ones of each class, with the criterion's range; the last row counts all."""
        name, labels = self.facts.criterion, np.unique(self.labels)
        rows = [
            (str(label), self.wnid(label), *self._counted(self.labels == label))
            for label in labels[:_LISTED].tolist()
        ]
        if len(labels) > _LISTED:
            rows.append(("", f"{len(labels) - _LISTED} more", "", "", "", ""))
        rows.append(("", "all", *self._counted(np.ones(len(self), dtype=np.bool_))))
        head = ("label", "class", "images", "kept", f"{name} kept", "of all")
        return PlainTable(f"kept by {name}", _NOTE, head, 2, tuple(rows), frozenset({len(rows) - 1}))

    def _counted(self, mine: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        kept = mine & self.is_kept
        spans = [
            f"{v.min():.3g} to {v.max():.3g}" if len(v) else ""
            for v in (self.values[kept], self.values[mine])
        ]
        return (str(mine.sum()), str(kept.sum()), *spans)

    def __repr__(self) -> str:
        """Return one line."""
        kept = "nothing selected" if self.kept is None else f"{int(self.is_kept.sum()):,} kept"
        classes = len(np.unique(self.labels))
        return f"ScoreTable({len(self):,} images of {classes} classes by {self.facts.criterion}, {kept})"

    def _repr_html_(self) -> str:
        """Return HTML for a notebook."""
        return self.tabulate()._repr_html_()

    def with_kept(self, indices: Tensor) -> "ScoreTable":
        """Return the same table with a selection recorded, `indices` (m,) int64."""
        kept = np.zeros(len(self), dtype=np.bool_)
        kept[indices.numpy()] = True
        return ScoreTable(_replaced(self.rows, "kept", pa.array(kept)), self.facts)

    def take(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> "ScoreTable":
        """Return some of the images, in this order and under new labels, ranked among themselves, nothing selected.

        Args:
            rows: (m,) row numbers.
            labels: (m,) labels of the m images.
        """
        taken = _replaced(self.rows.take(pa.array(rows)), "label", pa.array(labels))
        taken = _replaced(taken, "kept", pa.nulls(len(rows), pa.bool_()))
        return _ranked(ScoreTable(taken, self.facts))


def ordered(rows: pa.Table, group: str | None, criterion: str, *, descending: bool) -> npt.NDArray[np.int64]:
    """Return row numbers (M,) sorted by `group` (if any), then `criterion`, then path (always ascending)."""
    keys = [(criterion, "descending" if descending else "ascending"), ("path", "ascending")]
    if group is not None:
        keys.insert(0, (group, "ascending"))
    order: npt.NDArray[np.int64] = pc.sort_indices(rows, sort_keys=keys).to_numpy().astype(np.int64)
    return order


def _ranked(table: ScoreTable) -> ScoreTable:
    """Return the table with `rank`: the place of each image within its class."""
    order = ordered(table.rows, "label", table.facts.criterion, descending=False)
    labels = table.labels[order]
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - np.searchsorted(labels, labels)
    return ScoreTable(_replaced(table.rows, "rank", pa.array(places)), table.facts)


def _replaced(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Return the rows with a column replaced, or added at the end."""
    if name not in rows.column_names:
        return rows.append_column(name, values)
    return rows.set_column(rows.schema.get_field_index(name), name, values)


def _read(path: Path | str) -> tuple[pa.Table, dict[str, str]]:
    """Return the rows of a Parquet file and its metadata."""
    if not Path(path).is_file():
        raise UserError(f"score table {path} does not exist; `latentdd prune --out {path}` makes one")
    try:
        # As a file object: Arrow would take a folder or an address for a data set.
        with open(path, "rb") as file:
            rows = pq.read_table(file, page_checksum_verification=True)
        metadata = {name.decode(): value.decode() for name, value in (rows.schema.metadata or {}).items()}
        rows.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"score table {path} is damaged or not a Parquet file ({reason}); make it again"
        ) from error
    return rows.replace_schema_metadata(None), metadata


def _check_rows(rows: pa.Table, criterion: str) -> None:
    """Raise unless each column is there, has its type and holds what it may, and each image stands there once."""
    if len(set(rows.column_names)) != rows.num_columns:
        raise UserError(f"the score table has two columns of one name: {', '.join(rows.column_names)}")
    for name, kind in {**_COLUMNS, criterion: _COLUMNS.get(criterion, pa.float64())}.items():
        if name not in rows.column_names:
            raise UserError(f"the score table has no column {name!r}; it has {', '.join(rows.column_names)}")
        found = rows.schema.field(name).type
        if found != kind:
            raise UserError(f"column {name!r} of the score table is {found}, not {kind}")
        if rows[name].null_count and (name not in _MAY_BE_NULL or name == criterion):
            raise UserError(f"column {name!r} of the score table has {rows[name].null_count} empty fields")
    if rows.schema.field(criterion).type != pa.float64():
        raise UserError(f"criterion {criterion!r} of the score table is not a column of scores")
    if not rows.num_rows:
        raise UserError("the score table is empty; score at least one image")
    wrong = np.flatnonzero(~np.isfinite(rows[criterion].to_numpy()))
    if len(wrong):
        worst = rows["path"][int(wrong[0])].as_py()
        raise UserError(
            f"{criterion} of {len(wrong)} images is NaN or infinite, first {worst}; check the classifier's weights, "
            "mean and std"
        )
    for name, pattern, good, noun in (
        ("path", _ABSOLUTE, False, "path relative to the data's root"),
        ("sha256", "^[0-9a-f]{64}$", True, "hash (64 hexadecimal digits)"),
    ):
        matches = pc.match_substring_regex(rows[name], pattern).fill_null(good).to_numpy()
        wrong = np.flatnonzero(matches != good)
        if len(wrong):
            raise UserError(
                f"{name} {rows[name][int(wrong[0])].as_py()!r} of the score table is not a {noun}"
            )
    if pc.min(rows["label"]).as_py() < 0 or pc.max(rows["label"]).as_py() >= rows.num_rows:
        raise UserError("the score table has labels that are not class numbers 0..K-1")
    paths = rows["path"].take(pc.sort_indices(rows["path"]))
    if pc.any(pc.equal(paths[1:], paths[:-1])).as_py():  # an eighth of the time of counting distinct ones
        raise UserError("the score table names some path twice")
