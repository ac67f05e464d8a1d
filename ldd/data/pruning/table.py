"""The score table: one row per training image, kept as Parquet, with nothing in it that depends on the machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ldd.data.pruning.rows import check_rows, fingerprint_of, ranks
from ldd.data.sources import Item
from ldd.disk.files import atomic_file
from ldd.errors import UserError
from ldd.images import ClassInfo

Floats = npt.NDArray[np.float64]

FORMAT = "1"
"""Of the file."""


@dataclass(frozen=True)
class ScoreFacts:
    """What the scores of a table follow from, beside the images.

    Attributes:
        criterion: column that orders the images; low is easy (`loss`, `el2n`, `random`...).
        classifier: the network or networks that scored, by name and hash of the weights; empty where none did.
        preprocessing: how they saw the images.
        seed: of random parts, 0 where there are none.
    """

    criterion: str = "loss"
    classifier: str = ""
    preprocessing: str = ""
    seed: int = 0


class ScoreTable:
    """Scores of M training images, in the order of the items they were made of.

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

    @cached_property
    def fingerprint(self) -> str:
        """Hash over wnid, path and contents of the images, wherever they lie."""
        return fingerprint_of(self.rows)

    @classmethod
    def build(
        cls,
        items: Sequence[Item],
        hashes: Sequence[str] | None,
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
            hashes: their sha256; None where no file was opened.
            classes: the K classes, ordered by label.
            facts: what the values follow from.
            values: (M,) of the criterion.
            loss: (M,) in nats, where a classifier gave one.
            margin: (M,) in logits, likewise.

        Raises:
            UserError: there is no image, or a value is NaN or infinite.
        """
        wnids = [info.wnid for info in classes]
        columns = {
            "path": pa.array([item.key for item in items], pa.string()),
            "sha256": pa.nulls(len(items), pa.string()) if hashes is None else pa.array(hashes),
            "label": pa.array([item.label for item in items], pa.int64()),
            "wnid": pa.array([wnids[item.label] for item in items], pa.string()),
            "loss": _or_nulls(loss, len(items)),
            "margin": _or_nulls(margin, len(items)),
            "rank": pa.array(np.zeros(len(items), dtype=np.int64)),
            "kept": pa.nulls(len(items), pa.bool_()),
            facts.criterion: pa.array(values, pa.float64()),
        }
        rows = pa.table(columns)
        check_rows(rows, facts.criterion)
        return _ranked(cls(rows, facts))

    @classmethod
    def load(cls, path: Path | str) -> "ScoreTable":
        """Read and check a saved table.

        Raises:
            UserError: there is no such file, it is damaged, or no score table of this format.
        """
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
                f"score table {path} is damaged or no Parquet file ({reason}); make it again"
            ) from error
        if metadata.get("ldd_format") != FORMAT:
            raise UserError(
                f"{path} is no score table of format {FORMAT} (it says {metadata.get('ldd_format')!r}); make it with "
                "`latentdd prune` of this version"
            )
        try:
            facts = ScoreFacts(
                metadata["criterion"],
                metadata["classifier"],
                metadata["preprocessing"],
                int(metadata["seed"]),
            )
            check_rows(rows, facts.criterion)
        except (KeyError, ValueError) as error:
            reason = f"its metadata lack {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"score table {path} cannot be used: {reason}; make it again") from error
        table = cls(rows.replace_schema_metadata(None), facts)
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
        metadata = {
            "ldd_format": FORMAT,
            "criterion": self.facts.criterion,
            "classifier": self.facts.classifier,
            "preprocessing": self.facts.preprocessing,
            "seed": str(self.facts.seed),
            "data_fingerprint": self.fingerprint,
        }
        with atomic_file(path) as beside:
            rows = self.rows.replace_schema_metadata(metadata)
            pq.write_table(rows, beside, compression="zstd", write_page_checksum=True)
        return Path(path)

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
        """Of a class that has images."""
        row = int(np.flatnonzero(self.labels == label)[0])
        return str(self.rows["wnid"][row].as_py())

    @property
    def kept(self) -> Tensor | None:
        """Indices (m,) int64, ascending, of what was selected; None before a selection."""
        column = self.rows["kept"]
        return None if column.null_count else torch.from_numpy(np.flatnonzero(column.to_numpy()))

    def with_kept(self, indices: Tensor) -> "ScoreTable":
        """The same table with a selection recorded, `indices` (m,) int64."""
        kept = np.zeros(len(self), dtype=np.bool_)
        kept[indices.numpy()] = True
        return ScoreTable(_replaced(self.rows, "kept", pa.array(kept)), self.facts)

    def take(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> "ScoreTable":
        """Some of the images, in this order and under new labels, ranked among themselves, nothing selected.

        Args:
            rows: (m,) row numbers.
            labels: (m,) labels of the m images.
        """
        taken = _replaced(self.rows.take(pa.array(rows)), "label", pa.array(labels))
        taken = _replaced(taken, "kept", pa.nulls(len(rows), pa.bool_()))
        return _ranked(ScoreTable(taken, self.facts))


def _ranked(table: ScoreTable) -> ScoreTable:
    places = ranks(table.rows, table.facts.criterion)
    return ScoreTable(_replaced(table.rows, "rank", pa.array(places)), table.facts)


def _replaced(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


def _or_nulls(values: Floats | None, count: int) -> pa.Array:
    return pa.nulls(count, pa.float64()) if values is None else pa.array(values, pa.float64())
