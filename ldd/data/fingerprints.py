"""Which images data are, by their contents: fingerprints of splits that tell an edited or a replaced image."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ldd.data.sources import Item, Source, UnreadableImage
from ldd.disk.table import in_column, texts_of

FORMAT = "2"
"""Version of fingerprints, kept with them. Format 1, `Source.fingerprint`, is over names and sizes."""

_IN_WORDS = {
    "train": "the training images",
    "core_set": "the core-set",
    "selection": "the selection split",
    "test": "the test split",
}


def content_hashes(source: Source, items: Sequence[Item], *, skip: bool = False) -> pa.ChunkedArray:
    """Return the SHA-256 of each image's file, which is kept by its path, size and time of change.

    With `skip` an unreadable image has no contents, and an empty hash.
    """
    try:
        from ldd.data.pruning.base import hash_items  # here: who only compares needs no classifiers

        return hash_items(source, items, None if source.in_memory else _cache())
    except UnreadableImage:
        if not skip:
            raise
        return in_column(_hash_or_nothing(source, item) for item in items)


def fingerprint(items: Sequence[Item], hashes: pa.ChunkedArray) -> str:
    """Return a hash over labels, names and contents (`content_hashes`) of images, equal wherever the same files lie."""
    digest = hashlib.sha256(FORMAT.encode())
    for item, of_file in zip(items, chain.from_iterable(texts_of(hashes)), strict=True):
        digest.update(f"{item.label}\t{item.key}\t{of_file}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def short_hashes(hashes: pa.ChunkedArray) -> Tensor:
    """Return 60 bits of each hash as int64, ascending and each once: a set of images, whatever they are called."""
    short = (int(one[:15], 16) for one in chain.from_iterable(texts_of(hashes)) if one)
    return torch.from_numpy(np.unique(np.fromiter(short, np.int64)))


def differences(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Return in words which splits are others than they were; those that only one of the two knows are passed over."""
    if before is None or before.get("format") != now.get("format"):
        return []
    return [
        f"{words}: fingerprint then {before[name]}, now {now[name]}"
        for name, words in _IN_WORDS.items()
        if name in before and name in now and before[name] != now[name]
    ]


def _hash_or_nothing(source: Source, item: Item) -> str:
    with suppress(UnreadableImage):
        return source.sha256(item)
    return ""


def _cache() -> Path | None:
    """Return where hashes are kept, by pruning too; None where nothing can be written there."""
    from ldd.data.pruning.base import CACHE_DIR

    folder = Path(CACHE_DIR).expanduser()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK) else None
    return None
