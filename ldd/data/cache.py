"""Decoding a split to squares of bytes: into memory, or into a file on disk that ranks and runs share."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from ldd.data.decoding import RECIPE, LeftOut, OnError, decode_all, report_left_out
from ldd.data.real import RealImages
from ldd.data.sources import Item, Source, Split
from ldd.errors import UserError
from ldd.files import atomic_file, write_json
from ldd.memory import free_bytes
from ldd.sharing import build_once, map_file

_FORMAT = 1  # of the index


def load_split(
    source: Source, split: Split, image_size: int, cache_dir: str | None = None, on_error: OnError = "raise"
) -> RealImages:
    """One split of a source at `image_size`, decoded by all CPUs.

    Args:
        source: where the images come from.
        split: which of them.
        image_size: height and width in pixels.
        cache_dir: folder of decoded splits; a split that is there is mapped, one that is not is decoded into it.
            None decodes into memory.
        on_error: what an unreadable image does.

    Raises:
        UserError: an unreadable image, a class of which none can be read, too little memory or disk.
    """
    items = source.items(split)
    if cache_dir is None:
        return _in_memory(source, items, image_size, on_error)
    entry = CacheEntry(Path(cache_dir).expanduser(), source, split, items, image_size)
    found = entry.open(on_error)
    return entry.build(on_error) if found is None else found


def pixels_key(source: Source, items: Iterable[Item], image_size: int) -> str:
    """Hash of everything the decoded pixels of `items` follow from on this machine, in 64 hex digits.

    Labels, names, sizes and times of change of the files, image size, and the recipe.
    """
    digest = hashlib.sha256(json.dumps([_FORMAT, RECIPE, image_size, len(source.classes)]).encode())
    for item in items:
        digest.update(f"{item.label}\t{item.key}\t{source.revision(item)}\n".encode())
    return digest.hexdigest()


class CacheEntry:
    """A decoded split on disk: `<split>-<size>px-<key>.bin`, the images one after the other, and `.json`, its index.

    The key is that of `pixels_key`. So an edited image, another subset or another size never meets a stale file;
    old files may be deleted at any time. Both files are written beside and renamed, the index last.

    Args:
        folder: where entries lie.
        source: where the images come from.
        split: which of them.
        items: the source's items of that split.
        image_size: height and width in pixels.
    """

    def __init__(
        self, folder: Path, source: Source, split: Split, items: Sequence[Item], image_size: int
    ) -> None:
        self.key = pixels_key(source, items, image_size)
        self._source, self._split, self._items, self._size = source, split, items, image_size
        self.data = folder / f"{split}-{image_size}px-{self.key[:16]}.bin"
        self.index = self.data.with_suffix(".json")

    def open(self, on_error: OnError) -> RealImages | None:
        """Map the images, or None where there are none, or damaged ones (with a message).

        Raises:
            UserError: images were left out when it was built, and `on_error` is "raise".
        """
        if not self.index.is_file():
            return None
        try:
            index = json.loads(self.index.read_text(encoding="utf-8"))
            keys, counts = list(index["keys"]), list(index["counts"])
            left_out = [LeftOut(**entry) for entry in index["left_out"]]
            if index["key"] != self.key or sum(counts) != len(keys):
                raise ValueError("another index")
            images = map_file(self.data, len(keys) * self._bytes_each, torch.uint8)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            rank_zero_warn(f"the cache {self.data} is damaged ({error}); it is built again")
            return None
        report_left_out(left_out, on_error, f" ({self.index} lists them; delete it to try them again)")
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        return RealImages(images.view(-1, 3, self._size, self._size), labels, keys, len(counts))

    def build(self, on_error: OnError) -> RealImages:
        """Decode the images into the file, unless another process has done so meanwhile, and map it.

        Raises:
            UserError: an unreadable image, a class of which none can be read, a folder that cannot be written, or
                a full disk; nothing half-written stays.
        """
        return build_once(
            self.data,
            find=lambda: self.open(on_error),
            write=lambda: self._write(on_error),
            num_bytes=len(self._items) * self._bytes_each,
            contents=f"{len(self._items)} images at {self._size} px",
        )

    def _write(self, on_error: OnError) -> None:
        rank_zero_info(f"decoding {len(self._items)} images into {self.data}")
        with atomic_file(self.data) as beside, open(beside, "wb") as file:
            kept, left_out = decode_all(
                self._source, self._items, self._size, lambda image: file.write(image.data), on_error
            )
        write_json(
            self.index,
            {
                "format": _FORMAT,
                "key": self.key,
                "recipe": RECIPE,
                "split": self._split,
                "image_size": self._size,
                "classes": [info.wnid for info in self._source.classes],
                "counts": np.bincount([i.label for i in kept], minlength=len(self._source.classes)).tolist(),
                "left_out": [asdict(entry) for entry in left_out],
                "keys": [item.key for item in kept],
            },
        )

    @property
    def _bytes_each(self) -> int:
        return 3 * self._size * self._size


def _in_memory(source: Source, items: Sequence[Item], image_size: int, on_error: OnError) -> RealImages:
    needed, free = len(items) * 3 * image_size**2, free_bytes(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{len(items)} images at {image_size} px need {needed / 2**30:.2f} GiB of memory and "
            f"{free / 2**30:.2f} GiB are free; set data.cache_dir to a folder on disk, or choose fewer classes or a "
            "smaller image_size"
        )
    images = torch.empty(len(items), 3, image_size, image_size, dtype=torch.uint8)
    places = iter(images.numpy())

    def put(image: NDArray[np.uint8]) -> None:
        next(places)[...] = image

    kept, left_out = decode_all(source, items, image_size, put, on_error)
    report_left_out(left_out, on_error)
    labels = torch.tensor([item.label for item in kept], dtype=torch.int64)
    return RealImages(images[: len(kept)], labels, [item.key for item in kept], len(source.classes))
