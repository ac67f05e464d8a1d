"""Folders of pictures, one folder a class, named by wnid, by number or by name."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldd.data.folders import TABLES, class_table, table_rows
from ldd.data.pictures import files_below, picture_files, read_file, subfolders
from ldd.data.sources import UnreadableImage
from ldd.errors import UserError, listed
from ldd.images import SUFFIXES, ClassInfo
from ldd.importers.classes import RawSet, shown
from ldd.runtime.ranks import rank_zero_warn


def table_inside(folder: Path) -> list[ClassInfo] | None:
    """Return the class table that lies in a folder (`classes.json`), or None; UserError if it is damaged."""
    return next((table_rows(folder / name) for name in TABLES if (folder / name).is_file()), None)


def classes_by_name(folder: Path) -> list[ClassInfo] | None:
    """Return the classes that the folders themselves name, sorted; None if they are numbers."""
    names = _class_folders(folder)
    return None if any(name.isdigit() for name in names) else class_table(folder, names)


def read_folder(folder: Path, classes: Sequence[ClassInfo]) -> RawSet:
    """Return all pictures of a folder, class-major, with their pixels as stored.

    It has one folder a class, named by wnid (Minimax, MGD3), by number (RDED, D4M: 00000, 00001, ...; a class's label,
    or its id where those are the numbers), or by readable name.
    """
    names = _class_folders(folder)
    form, place = _match(folder, names, classes)
    images: list[Tensor] = []
    labels: list[int] = []
    for name in sorted(names, key=lambda name: place[name]):
        files = picture_files(str(folder / name))
        if not files:
            raise UserError(f"{folder / name} holds no pictures ({', '.join(SUFFIXES)}); add some")
        for file in map(Path, files):
            try:
                image = read_file(file)
            except UnreadableImage as error:
                raise UserError(f"{error}; copy the folder again") from error
            size, first = tuple(image.shape[1:]), tuple((images or [image])[0].shape[1:])
            if size != first or size[0] != size[1]:
                raise UserError(
                    f"{file} has {size[1]} x {size[0]} px; all pictures must be squares of one size (the first one: "
                    f"{first[1]} x {first[0]}); crop or resize them"
                )
            images.append(image)
            labels.append(place[name])
    _tell_others(folder, len(images))
    return RawSet(torch.stack(images), torch.tensor(labels), f"folders named by {form}", form == "label")


def _tell_others(folder: Path, read: int) -> None:
    """Warn of files that were not read: pictures of other kinds, or pictures outside the class folders."""
    others = [Path(path) for path in files_below(str(folder))]
    others = [path for path in others if path.parent == folder or path.suffix.lower() not in SUFFIXES]
    names = [path.name for path in others if path.name not in TABLES]
    if names:
        rank_zero_warn(
            f"{folder}: {read} pictures are read, {len(names)} other files are not ({listed(sorted(names))})"
        )


def _class_folders(folder: Path) -> list[str]:
    names = subfolders(folder)
    if not names:
        raise UserError(f"{folder} holds no class folders; one folder a class is needed, or a .pt file")
    return names


def _match(folder: Path, names: list[str], classes: Sequence[ClassInfo]) -> tuple[str, dict[str, int]]:
    """Return what the folders are named by, and the label of each."""
    numbers = {name: int(name) for name in names if name.isascii() and name.isdigit()}
    by_wnid = {info.wnid: info.label for info in classes}
    by_name = {_plain(info.name): info.label for info in classes}
    by_label = {info.label: info.label for info in classes}
    by_id = {info.id: info.label for info in classes}
    choices: list[tuple[str, dict[str, int | None]]] = [
        ("wnid", {name: by_wnid.get(name) for name in names}),
        ("label", {name: by_label.get(numbers.get(name, -1)) for name in names}),
        ("id", {name: by_id.get(numbers.get(name, -1)) for name in names}),
        ("name", {name: by_name.get(_plain(name)) for name in names}),
    ]
    for form, labels in choices:
        found = {name: label for name, label in labels.items() if label is not None}
        if len(found) == len(names) and set(found.values()) == set(by_label):
            return form, found
    raise UserError(
        f"the folders of {folder} are not the classes: folders: {listed(names, 10)}; classes: {shown(classes)}; give "
        "the --data or the --classes that the set was made with"
    )


def _plain(name: str) -> str:
    """Return a name without spaces, commas and capitals, which may change on disk."""
    return "".join(c for c in name.lower() if c.isalnum())
