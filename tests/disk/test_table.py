"""Tables of results to which processes add."""

import os

import pyarrow as pa

from ldd.disk.table import Store


def test_what_a_killed_process_left_goes_after_an_hour(tmp_path):
    store = Store(tmp_path, {"value": pa.float64()})
    old, new = (tmp_path / f".{'ab' * 8}.parquet.0123456{digit}.tmp" for digit in (7, 8))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    store.add(["a"], value=pa.array([1.0]))
    assert (old.exists(), new.exists()) == (False, True)
