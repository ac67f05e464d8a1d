"""What exports share: the folder with its class table, shards, encoded images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ldd.artefact.picture import as_png, to_picture
from ldd.artefact.set import DistilledSet
from ldd.disk.files import atomic_folder, holds_files, write_json
from ldd.errors import UserError

Writer = Callable[[DistilledSet, Path, bool], Path]
"""`write(distilled, out, overwrite)` -> what was written, as a whole or not at all.

`out` is a new or empty folder; with `overwrite` it may hold an earlier export, which is replaced. UserError: it holds
anything else, or cannot be written.
"""

CLASSES = "classes.json"
"""File in every exported folder: a list of {label, id, wnid, name}, by label. It marks the folder as an export of ours.

Where each picture is a grid of small images, every row also has `packing`, the columns and rows of the grid.
"""

SHARD_BYTES = 2**29
"""Pixels of one file where a format splits sets: about what data-set hubs advise."""


@contextmanager
def export_folder(
    distilled: DistilledSet, out: Path, overwrite: bool, facts: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Path]:
    """Yield a folder to fill, which then takes the place of `out`; `facts` of classes join its class table."""
    if holds_files(out):
        if not overwrite:
            raise UserError(
                f"--out ({out}) is not empty; name a new folder, or replace it with --overwrite true"
            )
        if not (out / CLASSES).is_file():
            raise UserError(
                f"--out ({out}) does not hold an earlier export (it has no {CLASSES}), so it is not replaced; name a "
                "new folder"
            )
    with atomic_folder(out, durable=False) as beside:
        yield beside
        known = facts or [{}] * distilled.num_classes
        packed = {"packing": distilled.packing} if distilled.packing > 1 else {}
        table = [
            {**info.to_dict(), **more, **packed} for info, more in zip(distilled.classes, known, strict=True)
        ]
        write_json(beside / CLASSES, table)


def shards(distilled: DistilledSet, suffix: str) -> Iterator[tuple[str, range]]:
    """Yield name and rows of each file; hubs expect shards as `data/train-00000-of-00001<suffix>`."""
    n = len(distilled.images)
    rows = max(1, SHARD_BYTES // distilled.images[0].nbytes)
    total = -(-n // rows)
    for number in range(total):
        name = f"data/train-{number:05d}-of-{total:05d}{suffix}"
        yield name, range(number * rows, min(n, (number + 1) * rows))


def png(image: Tensor) -> bytes:
    """Return an image (3, H, H) uint8 as the bytes of a PNG file, pixel-equal."""
    return as_png(to_picture(image))


def unique_names(distilled: DistilledSet) -> list[str]:
    """Return readable names by label where all differ, else wnids where those do, else the labels."""
    for names in ([i.name for i in distilled.classes], [i.wnid for i in distilled.classes]):
        if len(set(names)) == len(names):
            return names
    return [str(info.label) for info in distilled.classes]


def alphabet_places(distilled: DistilledSet) -> list[int]:
    """Return by label the place of each class among the sorted wnids: its number in an `ImageFolder` of real images.

    Raises:
        UserError: two classes share a wnid.
    """
    seen: dict[str, int] = {}
    for info in distilled.classes:
        if info.wnid in seen:
            raise UserError(
                f"classes {seen[info.wnid]} and {info.label} share the wnid {info.wnid!r}, so their images "
                "would fall into one folder; give each its own, or export to --format pt"
            )
        seen[info.wnid] = info.label
    places = {wnid: place for place, wnid in enumerate(sorted(seen))}
    return [places[info.wnid] for info in distilled.classes]
