"""What every export shares: where it may be written, and the class table beside the images."""

from collections.abc import Callable
from pathlib import Path

from ldd.distilled import DistilledSet
from ldd.errors import UserError
from ldd.files import holds_files

Writer = Callable[[DistilledSet, Path, bool], Path]
"""`write(distilled, out, overwrite)` -> what was written; as a whole or not at all."""

CLASSES = "classes.json"
"""In every exported folder: a list of {label, id, wnid, name}, by label; it also marks the folder as ours."""


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
