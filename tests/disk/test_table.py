"""Tables of results to which processes add."""

import os

import pyarrow as pa

from ldd.disk import table as module
from ldd.disk.table import Store, in_column, texts_of


def test_what_a_killed_process_left_goes_after_an_hour(tmp_path):
    store = Store(tmp_path, {"value": pa.float64()})
    old, new = (tmp_path / f".{'ab' * 8}.parquet.0123456{digit}.tmp" for digit in (7, 8))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    store.add(["a"], value=pa.array([1.0]))
    assert (old.exists(), new.exists()) == (False, True)


def test_columns_are_made_and_read_some_texts_at_a_time(tmp_path, monkeypatch):
    """With many parts, the last of them smaller: the same rows, and a file of the same name."""
    keys = [f"key {number}" for number in range(11)]
    values = pa.array([float(number) for number in range(11)])
    Store(tmp_path / "whole", {"value": pa.float64()}).add(keys, value=values)
    monkeypatch.setattr(module, "_AT_ONCE", 4)
    column = in_column(iter(keys))
    assert (column.num_chunks, list(texts_of(column))) == (3, [keys[:4], keys[4:8], keys[8:]])
    store = Store(tmp_path / "parts", {"value": pa.float64()})
    store.add(column, value=values)
    assert store.find([keys[9], "no key", keys[0]])["value"].to_pylist() == [9, None, 0]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [
        path.name for path in (tmp_path / "whole").iterdir()
    ]
