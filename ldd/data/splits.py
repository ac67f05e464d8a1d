"""Decoding a split to squares of bytes: into memory, or into a file on disk that ranks and runs share."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ldd.data.pictures import fit_to_square
from ldd.data.real import RealImages
from ldd.data.sources import Item, Source, Split, UnreadableImage
from ldd.disk.files import write_json
from ldd.disk.parts import WhichPart, Work, make, make_part
from ldd.disk.shards import Shards
from ldd.disk.shared import map_file
from ldd.errors import UserError
from ldd.runtime.devices import available_cores, free_bytes, in_bytes
from ldd.runtime.progress import progress
from ldd.runtime.ranks import rank_zero_info, rank_zero_warn

RECIPE = "1: RGB, upright; short side resized (bilinear, antialiased, on bytes); centre cropped"
"""What `read_file` and `fit_to_square` do; its number rises whenever the same file would give other pixels."""

OnError = Literal["raise", "skip"]
"""What an unreadable image does: end the run with its path, or stay out, reported."""

_FORMAT = 1  # of the index
_LISTED = 10  # unreadable images spelt out in a message
_AT_ONCE = 32  # images per thread between two writes, so that decoding never runs far ahead of the disk
_SHOW_PROGRESS_FROM = 2000  # images: some seconds


@dataclass(frozen=True)
class LeftOut:
    """An image that could not be read: its name, and what the decoder said."""

    key: str
    reason: str


def load_split(
    source: Source, split: Split, image_size: int, cache_dir: str | None = None, on_error: OnError = "raise"
) -> RealImages:
    """Return one split at `image_size`, mapped from `cache_dir` or decoded into it by all CPUs (None: into memory)."""
    return load_items(source, source.items(split), split, image_size, cache_dir, on_error)


def load_items(
    source: Source,
    items: Sequence[Item],
    split: Split,
    image_size: int,
    cache_dir: str | None = None,
    on_error: OnError = "raise",
) -> RealImages:
    """Return some images of a split, ordered by class, in the same way."""
    if cache_dir is None:
        return decode(source, items, image_size, on_error, every_class=split != "selection")
    entry = CacheEntry(Path(cache_dir).expanduser(), source, split, items, image_size)
    found = entry.open(on_error)
    return entry.build(on_error) if found is None else found


def decode(
    source: Source,
    items: Sequence[Item],
    image_size: int,
    on_error: OnError = "raise",
    *,
    every_class: bool = True,
) -> RealImages:
    """Decode `items`, ordered by class, into memory; with `every_class` at least one of each must be read."""
    needed, free = len(items) * 3 * image_size**2, free_bytes(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{len(items)} images at {image_size} px need {in_bytes(needed)} of memory and {in_bytes(free)} are free; "
            "set data.cache_dir to a folder on disk, or choose fewer classes or a smaller image_size"
        )
    images = torch.empty(len(items), 3, image_size, image_size, dtype=torch.uint8)
    places, left_out = iter(images.numpy()), dict[int, LeftOut]()
    for start, results in _decoded(source, items, image_size, on_error):
        left_out |= {start + i: result for i, result in enumerate(results) if isinstance(result, LeftOut)}
        for image in _images(results):
            np.copyto(next(places), image)
    kept = _kept(source, items, left_out, every_class=every_class)
    _report([*left_out.values()], on_error)
    labels = torch.tensor([item.label for item in kept], dtype=torch.int64)
    return RealImages(images[: len(kept)], labels, [item.key for item in kept], len(source.classes))


def readable(source: Source, items: Sequence[Item]) -> list[Item]:
    """Return the items that can be decoded, and print the reason for each of the others."""
    left_out = {
        start + i: result
        for start, results in _decoded(source, items, 1, "skip")
        for i, result in enumerate(results)
        if isinstance(result, LeftOut)
    }
    for entry in left_out.values():
        print(f"left out: {entry.reason}")
    return _kept(source, items, left_out)


def pixels_key(source: Source, items: Iterable[Item], image_size: int) -> str:
    """Return a hash of all that pixels follow from: labels, names, sizes and times of files, image size, recipe."""
    digest = hashlib.sha256(json.dumps([_FORMAT, RECIPE, image_size, len(source.classes)]).encode())
    for item in items:
        digest.update(f"{item.label}\t{item.key}\t{source.revision(item)}\n".encode())
    return digest.hexdigest()


class CacheEntry:
    """A decoded split on disk: `<split>-<size>px-<key>.bin`, the images one after the other, and `.json`, its index.

    The key is `pixels_key`, so an edited image, another subset or another size never meets a stale file; old files may
    be deleted at any time. The images are decoded in shards that survive a kill (see `ldd.disk.shards`); the index is
    written last.
    """

    def __init__(
        self, folder: Path, source: Source, split: Split, items: Sequence[Item], image_size: int
    ) -> None:
        self.key = pixels_key(source, items, image_size)
        self._source, self._split, self._items, self._size = source, split, items, image_size
        self._bytes_each = 3 * image_size**2
        self.data = folder / f"{split}-{image_size}px-{self.key[:16]}.bin"
        self.index = self.data.with_suffix(".json")

    def open(self, on_error: OnError) -> RealImages | None:
        """Map the images; None where there are none, or damaged ones (with a message)."""
        if not self.index.is_file():
            return None
        try:
            index = json.loads(self.index.read_text(encoding="utf-8"))
            counts, left_out = list(index["counts"]), [LeftOut(**entry) for entry in index["left_out"]]
            missing = {entry.key for entry in left_out}
            keys = [
                item.key for item in self._items if item.key not in missing
            ]  # the source's own texts, not copies
            if index["key"] != self.key or sum(counts) != len(keys) or index["keys"] != keys:
                raise ValueError("another index")
            images = map_file(self.data, len(keys) * self._bytes_each, torch.uint8)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            rank_zero_warn(f"the cache {self.data} is damaged ({error}); it is built again")
            return None
        _report(left_out, on_error, f" ({self.index} lists them; delete it to try them again)")
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        return RealImages(images.view(-1, 3, self._size, self._size), labels, keys, len(counts))

    def build(self, on_error: OnError) -> RealImages:
        """Decode the images into the file, with other ranks, unless another process has done so meanwhile; map it."""
        return make(self._work(on_error))

    def build_part(self, part: WhichPart, on_error: OnError) -> RealImages | None:
        """Decode a part of the images (see `ldd.disk.parts`), and map the file if all others are there."""
        return make_part(self._work(on_error), part)

    def _work(self, on_error: OnError) -> Work[RealImages]:
        return Work(
            self.data,
            self.key,
            len(self._items),
            done=lambda facts: sum(count for count, _ in facts),
            add=lambda shards, places: self._add(shards, places, on_error),
            finish=self._finish,
            find=lambda: self.open(on_error),
            contents=f"{len(self._items)} images at {self._size} px",
            num_bytes=len(self._items) * self._bytes_each,
        )

    def _add(self, shards: Shards, places: range, on_error: OnError) -> None:
        done = sum(count for count, _ in shards.facts)
        there = f"; {done} of them are there" if done else ""
        if places:
            rank_zero_info(f"decoding {done + len(places)} images into {self.data}{there}")
        if on_error == "raise":  # now, not after the rest
            _report([*_left_out(shards).values()], on_error)
        items = self._items[places.start : places.stop]
        for _, results in _decoded(self._source, items, self._size, on_error):
            missing = {i: asdict(entry) for i, entry in enumerate(results) if isinstance(entry, LeftOut)}
            shards.add((image.data for image in _images(results)), [len(results), [*missing.items()]])

    def _finish(self, shards: Shards) -> None:
        left_out = _left_out(shards)
        try:
            kept = _kept(self._source, self._items, left_out, every_class=self._split != "selection")
        except UserError:
            shards.discard()  # mended images have another key
            raise
        shards.finish()
        index = {
            "format": _FORMAT,
            "key": self.key,
            "recipe": RECIPE,
            "split": self._split,
            "image_size": self._size,
            "classes": [info.wnid for info in self._source.classes],
            "counts": np.bincount([i.label for i in kept], minlength=len(self._source.classes)).tolist(),
            "left_out": [asdict(entry) for entry in left_out.values()],
            "keys": [item.key for item in kept],
        }
        write_json(self.index, index)


def _decoded(
    source: Source, items: Sequence[Item], size: int, on_error: OnError
) -> Iterator[tuple[int, list[NDArray[np.uint8] | LeftOut]]]:
    """Decode items with all CPUs to (3, size, size) uint8; yield parts: the place of the first item, the results."""

    def work(item: Item) -> NDArray[np.uint8] | LeftOut:
        try:
            square = fit_to_square(source.read(item), size)
        except UnreadableImage as error:
            if on_error == "raise":
                raise
            return LeftOut(item.key, str(error))
        # Copied by numpy: each of these threads would start a whole team of torch's own.
        return np.ascontiguousarray(square.numpy())

    threads = available_cores()
    bar = progress("decoding images", len(items), show_from=_SHOW_PROGRESS_FROM)
    with bar as counter, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), _AT_ONCE * threads):
            results = list(pool.map(work, items[start : start + _AT_ONCE * threads]))
            yield start, results
            counter.add(len(results))


def _images(results: Iterable[NDArray[np.uint8] | LeftOut]) -> Iterator[NDArray[np.uint8]]:
    return (result for result in results if not isinstance(result, LeftOut))


def _left_out(shards: Shards) -> dict[int, LeftOut]:
    """Return what is left out of finished shards, by its place among all items."""
    found, start = dict[int, LeftOut](), 0
    for count, missing in shards.facts:
        found |= {start + place: LeftOut(**entry) for place, entry in missing}
        start += count
    return found


def _kept(
    source: Source, items: Sequence[Item], left_out: Mapping[int, LeftOut], *, every_class: bool = True
) -> list[Item]:
    """Return the items that could be read: with `every_class`, at least one of each class that has any."""
    kept = [item for place, item in enumerate(items) if place not in left_out]
    gone = {item.label for item in items} - {item.label for item in kept} if every_class else set()
    for label in sorted(gone):
        reason = next(entry.reason for place, entry in left_out.items() if items[place].label == label)
        raise UserError(
            f"class {source.classes[label].wnid!r} is left without images: none of its files can be read, e.g. {reason}"
        )
    return kept


def _report(left_out: Sequence[LeftOut], on_error: OnError, hint: str = "") -> None:
    """Warn of images that were left out, or raise if `on_error` says so."""
    if not left_out:
        return
    if on_error == "raise":
        raise UnreadableImage(left_out[0].reason + hint)
    lines = [f"\n  {entry.key}: {entry.reason}" for entry in left_out[:_LISTED]]
    if len(left_out) > _LISTED:
        lines.append(f"\n  and {len(left_out) - _LISTED} more")
    rank_zero_warn(f"{len(left_out)} unreadable images are left out{hint}:{''.join(lines)}")
