"""A table of results on disk to which processes add while they work, and which survives their being killed."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldd.disk.files import atomic_file
from ldd.runtime.ranks import rank_zero_warn

_ABANDONED = 3600  # seconds after which a file that was not finished is a killed process's
_AT_ONCE = 2**16  # texts that are Python's own
_TRIES = 5  # readings of the folder while another process merges its files


def in_column(texts: Iterable[str] | pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts as a column of Arrow's, which takes a third of what as many Python strings do."""
    if isinstance(texts, pa.ChunkedArray):
        return texts
    parts, rest = list[pa.Array](), iter(texts)
    while part := list(islice(rest, _AT_ONCE)):
        parts.append(pa.array(part, pa.string()))
    return pa.chunked_array(parts, pa.string())


def texts_of(column: pa.ChunkedArray) -> Iterator[list[str]]:
    """Yield the texts of a column, some at a time."""
    for start in range(0, len(column), _AT_ONCE):
        yield column.slice(start, _AT_ONCE).to_pylist()


class Store:
    """Results by key, in a folder of Parquet files that are written atomically and never changed.

    A key names everything that its result follows from, so that no result goes stale, and any number of processes may
    add. The folder is made with the first result, and may be deleted at any time. `columns` are names and types.
    """

    def __init__(self, folder: Path, columns: Mapping[str, pa.DataType]) -> None:
        self._folder = folder
        self._schema = pa.schema({"key": pa.string(), **columns})

    def find(self, keys: Iterable[str] | pa.ChunkedArray) -> pa.Table:
        """Return a row for each key, in order; unknown keys have null in all columns."""
        rows = self._read(self._files())
        places = pc.index_in(in_column(keys), value_set=rows["key"])
        return rows.drop_columns("key").take(places)

    def add(self, keys: Sequence[str] | pa.ChunkedArray, **columns: pa.Array) -> None:
        """Write results as a file of their own."""
        if len(keys):
            self._write(pa.table({"key": in_column(keys), **columns}, schema=self._schema))

    def merge(self) -> None:
        """Merge all files into one."""
        files = self._files()
        if len(files) < 2:
            return
        rows = self._read(files)
        first = pc.index_in(rows["key"], value_set=pc.unique(rows["key"]))
        chosen = pa.table({"first": first, "row": pa.array(range(len(rows)))})
        chosen = chosen.group_by("first").aggregate([("row", "min")])
        merged = self._write(rows.take(chosen["row_min"]))
        for file in files:
            if file != merged:
                file.unlink(missing_ok=True)

    def _write(self, rows: pa.Table) -> Path:
        digest = hashlib.sha256()
        for number, part in enumerate(texts_of(rows["key"])):
            digest.update("\n".join([""] * (number > 0) + part).encode())
        path = self._folder / f"{digest.hexdigest()[:16]}.parquet"
        for leftover in self._folder.glob(".*.parquet.*.tmp"):  # of others, who may be writing theirs
            with suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > _ABANDONED:
                    leftover.unlink()
        with atomic_file(path) as beside:
            pq.write_table(rows, beside, compression="zstd", write_page_checksum=True)
        return path

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))

    def _read(self, files: Sequence[Path]) -> pa.Table:
        for _ in range(_TRIES):
            try:
                return pa.concat_tables([self._schema.empty_table(), *map(self._read_one, files)])
            except FileNotFoundError:  # merged by another process since it was listed
                files = self._files()
        return self._schema.empty_table()

    def _read_one(self, file: Path) -> pa.Table:
        try:
            with open(file, "rb") as opened:
                rows = pq.read_table(opened, page_checksum_verification=True)
            return rows.select(self._schema.names).cast(self._schema)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            rank_zero_warn(f"{file} is damaged ({reason}); what it held is computed again")
            file.unlink(missing_ok=True)
            return self._schema.empty_table()
