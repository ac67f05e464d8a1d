"""The score table: one row per training image, kept as Parquet, with nothing in it that depends on the machine."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ldd.classes import ClassInfo
from ldd.data.sources import Item
from ldd.errors import UserError
from ldd.files import atomic_file

Floats = npt.NDArray[np.float64]

FORMAT = 1
"""Of the file; a higher one is refused."""

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
_OPTIONAL = {"loss", "margin", "kept"}  # null where the criterion has none, or nothing was selected yet
_RESERVED = set(_COLUMNS) - {"loss", "margin"}  # the other columns that no criterion can be named after


@dataclass(frozen=True)
class ScoreFacts:
    """What the scores of a table follow from, beside the images.

    Attributes:
        criterion: column that orders the images; low is easy (`loss`, `el2n`, `random`...).
        classifier: the network or networks that scored, by name and weights' hash; empty where none did.
        preprocessing: how it saw the images.
        seed: of random parts; null where there are none.
    """

    criterion: str = "loss"
    classifier: str = ""
    preprocessing: str = ""
    seed: int | None = None


class ScoreTable:
    """Scores of M training images, in the order of the items they were made of.

    Args:
        rows: Arrow table with the columns `path` (relative), `sha256` (of the file), `label`, `wnid`, `loss` (of the
            true class, in nats), `margin` (logit of the true class minus the highest other), `rank` (within the class,
            0 for the lowest value of the criterion, ties by path), `kept` (null before a selection), and the
            criterion's own column where that is none of these.
        facts: what they follow from.
        fingerprint: of the images, see `fingerprint_of`.

    Raises:
        UserError: a column is missing, of another type or holds what it must not.
    """

    def __init__(self, rows: pa.Table, facts: ScoreFacts, fingerprint: str) -> None:
        self.rows = rows
        self.facts = facts
        self.fingerprint = fingerprint
        _check(rows, facts)

    @classmethod
    def build(
        cls,
        items: Sequence[Item],
        hashes: Sequence[str],
        classes: Sequence[ClassInfo],
        facts: ScoreFacts,
        values: Floats,
        *,
        loss: Floats | None = None,
        margin: Floats | None = None,
    ) -> "ScoreTable":
        """A table in memory.

        Args:
            items: the M images.
            hashes: their sha256.
            classes: the K classes, ordered by label.
            facts: what the values follow from.
            values: (M,) of the criterion.
            loss, margin: (M,) of the classifier, where there was one.

        Raises:
            UserError: a value is NaN or infinite.
        """
        nothing = pa.nulls(len(items), pa.float64())
        wnids = [info.wnid for info in classes]
        columns = {
            "path": pa.array([item.key for item in items], pa.string()),
            "sha256": pa.array(hashes, pa.string()),
            "label": pa.array([item.label for item in items], pa.int64()),
            "wnid": pa.array([wnids[item.label] for item in items], pa.string()),
            "loss": nothing if loss is None else pa.array(loss),
            "margin": nothing if margin is None else pa.array(margin),
        }
        columns[facts.criterion] = pa.array(values)
        columns["rank"] = pa.array(_ranks(pa.table(columns), facts.criterion))
        columns["kept"] = pa.nulls(len(items), pa.bool_())
        order = [*_COLUMNS, *({facts.criterion} - set(_COLUMNS))]
        rows = pa.table({name: columns[name] for name in order})
        return cls(rows, facts, fingerprint_of(rows))

    def __len__(self) -> int:
        """M."""
        return int(self.rows.num_rows)

    @property
    def paths(self) -> list[str]:
        """M names, as in `Item.key`."""
        names: list[str] = self.rows["path"].to_pylist()
        return names

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(M,)."""
        return self._column("label")

    @property
    def values(self) -> Floats:
        """(M,) of the criterion; low is easy."""
        return self._column(self.facts.criterion)

    @property
    def counts(self) -> list[int]:
        """Images of each class, by label."""
        counts: list[int] = np.bincount(self.labels).tolist()
        return counts

    @property
    def names(self) -> dict[int, str]:
        """Wnid of each label that has images."""
        pairs = self.rows.select(["label", "wnid"]).group_by(["label", "wnid"]).aggregate([]).to_pylist()
        return {pair["label"]: pair["wnid"] for pair in pairs}

    @property
    def kept(self) -> Tensor | None:
        """Indices (m,) int64, ascending, of what was selected; None before a selection."""
        column = self.rows["kept"]
        if column.null_count:
            return None
        return torch.from_numpy(np.flatnonzero(column.to_numpy()))

    def with_kept(self, indices: Tensor) -> "ScoreTable":
        """The same table with a selection recorded; `indices` (m,) int64."""
        kept = np.zeros(len(self), dtype=np.bool_)
        kept[indices.numpy()] = True
        return self._with_column("kept", pa.array(kept))

    def take(self, indices: npt.NDArray[np.int64]) -> "ScoreTable":
        """The rows at `indices`, with ranks among themselves and no selection."""
        rows = self.rows.take(pa.array(indices))
        rows = rows.set_column(rows.schema.get_field_index("kept"), "kept", pa.nulls(len(rows), pa.bool_()))
        table = ScoreTable(rows, self.facts, fingerprint_of(rows))
        return table._with_column("rank", pa.array(_ranks(rows, self.facts.criterion)))

    def relabelled(self, labels: npt.NDArray[np.int64]) -> "ScoreTable":
        """The same images under other labels (M,), as a subset of classes has them; the ranks must still hold."""
        return self._with_column("label", pa.array(labels))

    def save(self, path: Path | str) -> Path:
        """Write the table as Parquet, atomically; the same table gives the same bytes.

        Raises:
            UserError: `path` cannot be written.
        """
        metadata = {
            "ldd_format": str(FORMAT),
            **{name: json.dumps(value) for name, value in asdict(self.facts).items() if value is None},
            **{name: str(value) for name, value in asdict(self.facts).items() if value is not None},
            "data_fingerprint": self.fingerprint,
        }
        with atomic_file(path) as beside:
            rows = self.rows.replace_schema_metadata(metadata)
            pq.write_table(rows, beside, compression="zstd", write_page_checksum=True)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> "ScoreTable":
        """Read and check a saved table.

        Raises:
            UserError: there is no such file, it is damaged, or no score table of a version known here.
        """
        if not Path(path).is_file():
            raise UserError(f"score table {path} does not exist; `latentdd prune --out {path}` makes one")
        try:
            rows = pq.read_table(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"score table {path} is damaged or no Parquet file ({reason}); make it again") from error
        try:
            found = {name.decode(): value.decode() for name, value in (rows.schema.metadata or {}).items()}
            facts = _facts(found)
            table = cls(rows.replace_schema_metadata(None), facts, found["data_fingerprint"])
        except (KeyError, ValueError, UnicodeDecodeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"{path} is no score table: {reason}; make it with `latentdd prune`") from error
        actual = fingerprint_of(table.rows)
        if actual != table.fingerprint:
            raise UserError(
                f"score table {path} was edited: its images have fingerprint {actual} and it says {table.fingerprint}; "
                "make it again with `latentdd prune`"
            )
        return table

    def _column(self, name: str) -> npt.NDArray[np.float64]:
        values: npt.NDArray[np.float64] = self.rows[name].to_numpy()
        return values

    def _with_column(self, name: str, values: pa.Array) -> "ScoreTable":
        rows = self.rows.set_column(self.rows.schema.get_field_index(name), name, values)
        return ScoreTable(rows, replace(self.facts), self.fingerprint)
