"""Contents of images by hash; a file is read again only when its size or its time of change is another."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from ldd.data.pruning.ranks import shared
from ldd.data.sources import Item, Source
from ldd.disk.table import Store
from ldd.runtime.progress import progress
from ldd.runtime.ranks import this_rank

CACHE_DIR = "~/.cache/latentdd/scores"
"""Where hashes and scores are kept unless another folder is named."""

_THREADS = 8  # files being read at once: the disk is the limit
_AT_ONCE = 1024  # files between two updates of the bar


def hash_items(source: Source, items: Sequence[Item], cache_dir: Path | None) -> list[str]:
    """Sha256 of each image's file, in order.

    Args:
        source: where the images come from.
        items: which of them.
        cache_dir: where known hashes are kept, by place, path, size and time of change; None reads every file.

    Raises:
        UnreadableImage: a file that cannot be read.
    """
    store = Store(cache_dir / "hashes", {"sha256": pa.string()}) if cache_dir is not None else None
    keys = [f"{source.place}\t{item.key}\t{source.revision(item)}" for item in items]
    hashes: list[str | None] = (
        [None] * len(items) if store is None else store.find(keys)["sha256"].to_pylist()
    )
    missing = [i for i, digest in enumerate(hashes) if digest is None]

    def work(pieces: Sequence[int]) -> list[str]:
        found: list[str] = []
        with ThreadPoolExecutor(_THREADS) as pool, progress("hashing images", len(pieces)) as counter:
            for start in range(0, len(pieces), _AT_ONCE):
                chunk = [items[missing[piece]] for piece in pieces[start : start + _AT_ONCE]]
                found += pool.map(source.sha256, chunk)
                counter.add(len(chunk))
        return found

    computed = shared(len(missing), work)
    for i, digest in zip(missing, computed, strict=True):
        hashes[i] = digest
    if store is not None and this_rank()[0] == 0:
        store.add([keys[i] for i in missing], sha256=pa.array(computed, pa.string()))
        store.merge()
    return [digest for digest in hashes if digest is not None]
