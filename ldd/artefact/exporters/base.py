"""What every export shares: where it may be written, the class table beside the images, shards of encoded images."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ldd.artefact.set import DistilledSet
from ldd.disk.files import holds_files
from ldd.errors import UserError

Writer = Callable[[DistilledSet, Path, bool], Path]
"""`write(distilled, out, overwrite)` -> what was written; as a whole or not at all."""

CLASSES = "classes.json"
"""In every exported folder: a list of {label, id, wnid, name}, by label; it also marks the folder as ours."""

SHARD_BYTES = 2**29
"""Pixels of one file where a format splits sets: about what data-set hubs advise."""


def claim_folder(out: Path, overwrite: bool) -> None:
    """Refuse a folder that must not be replaced.

    Raises:
        UserError: it holds files and `overwrite` is not set, or they are not those of an earlier export.
    """
    if not holds_files(out):
        return
    if not overwrite:
        raise UserError(f"--out ({out}) is not empty; name a new folder, or replace it with --overwrite true")
    if not (out / CLASSES).is_file():
        raise UserError(
            f"--out ({out}) holds no earlier export (it has no {CLASSES}), so it is not replaced; name a new "
            "folder"
        )


def shards(distilled: DistilledSet, suffix: str) -> Iterator[tuple[str, range]]:
    """Name and rows of each file, `data/train-00000-of-00001<suffix>`: the form in which hubs expect shards."""
    n = len(distilled.images)
    rows = max(1, SHARD_BYTES // distilled.images[0].nbytes)
    total = -(-n // rows)
    for number in range(total):
        name = f"data/train-{number:05d}-of-{total:05d}{suffix}"
        yield name, range(number * rows, min(n, (number + 1) * rows))


def png(image: Tensor) -> bytes:
    """An image (3, H, H) uint8 as the bytes of a PNG file, pixel-equal."""
    buffer = BytesIO()
    to_pil_image(image).save(buffer, "PNG")
    return buffer.getvalue()


def unique_names(distilled: DistilledSet) -> list[str]:
    """Readable names by label where all differ, else wnids where those do, else the labels."""
    for names in ([i.name for i in distilled.classes], [i.wnid for i in distilled.classes]):
        if len(set(names)) == len(names):
            return names
    return [str(info.label) for info in distilled.classes]
