"""Images in folders: ImageNet's layout, or any tree with one folder per class."""

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldd.data.pictures import check_class_names, picture_files, read_file, subfolders
from ldd.data.sources import SPLIT_SEED, Item, Source, Split, UnreadableImage
from ldd.disk.files import sha256
from ldd.disk.text import read_text
from ldd.errors import UserError, listed
from ldd.imagenet import tables as imagenet
from ldd.images import SUFFIXES, ClassInfo
from ldd.runtime.ranks import rank_zero_info, rank_zero_warn
from ldd.runtime.seeding import generator

TABLES = ("classes.json", "classes.csv")
"""Names of a class table, which lies next to the folders `train` and `val`."""

LICENCES = ("LICENCE", "LICENSE", "LICENCE.txt", "LICENSE.txt", "licence.txt", "license.txt")
"""Names of a file next to these folders whose first line says the terms of the images."""

_PARTS = ("train", "val", "test")
_TESTED = 5  # of the images of a folder without such parts every so-manieth is a test image
_SAID: set[Path] = set()  # folders of which this process has said that they are split here
_LISTED = 5  # names spelt out in a message
_LONGEST = 200  # characters of the terms


class FolderSource(Source):
    """Image files in `train/<class>/` and `val/<class>/`, as of ImageNet or torchvision's `ImageFolder`.

    The classes are the folders of `train`: where all of them are ImageNet wnids, with ImageNet's indices and names;
    else as the table `classes.json` or `classes.csv` next to `train` says (`class_table`); else numbered in sorted
    order. `val` (`test` where there is no `val`, as in copies of CIFAR) is the test split; a fixed twentieth of
    each training class (at least one image where there are two) is the selection split. Files are found at any
    depth, and only listed until they are read.

    A root without such parts whose own folders are the classes, `<class>/`, is split here: a fixed fifth of each class
    (at least one image where there are two) is the test split, which is said once.

    Args:
        root: folder that holds `train` and `val`, or the classes.

    Attributes:
        licence: the first line of a file `LICENCE` in the root (see `LICENCES`); it follows the images, and no other
            setting names it.

    Raises:
        UserError: the folder, `train` or `val` is missing or has no class folders, or the table is wrong.
    """

    licence = "unknown: the terms of the folder's images apply"

    def __init__(self, root: str | None) -> None:
        if root is None:
            raise UserError(
                "root is null, but FolderSource needs the folder that holds train/ and val/; set data.root"
            )
        self.place = f"root={root!r}"
        self._root = Path(root).expanduser()
        self._whole = self._is_whole()
        self._test = "val" if (self._root / "val").is_dir() or not (self._root / "test").is_dir() else "test"
        tested, names = self._class_folders(self._test), self._class_folders("train")
        self.classes = class_table(self._root, names)
        check_class_names(self.classes, self._root)
        if more := set(tested) - set(names):
            rank_zero_warn(
                f"{self._root / self._test} has {len(more)} class folders that {self._root / 'train'} lacks "
                f"({listed(sorted(more))}); their images are not used"
            )
        self.licence = _licence(self._root) or self.licence
        self._listed: dict[tuple[str, int], list[str]] = {}

    def _is_whole(self) -> bool:
        """Whether the root holds the classes themselves, which are not split yet."""
        root = self._root
        if not root.is_dir() or any((root / part).is_dir() for part in _PARTS):
            return False
        if not any(picture_files(str(root / name)) for name in subfolders(root)):
            return False
        if (part := root.absolute().name.lower()) in _PARTS:
            raise UserError(
                f"{self.place} is the part {part} of a data set; name the folder above it, which holds the others too"
            )
        if root not in _SAID:
            _SAID.add(root)
            rank_zero_info(f"{root} has no train/ and val/: a fixed fifth of each class is kept for the test")
        return True

    def _class_folders(self, split: str) -> list[str]:
        if self._whole:
            return subfolders(self._root)
        for folder in (self._root, self._root / split):
            if not folder.is_dir():
                raise UserError(
                    f"{self.place}: there is no folder {folder}; images are expected in "
                    "<root>/train/<class>/ and <root>/val/<class>/"
                )
        names = subfolders(self._root / split)
        if names:
            return names
        cure = "one folder per class is needed"
        if any(name.lower().endswith(SUFFIXES) for name in os.listdir(self._root / split)):
            cure += (
                "; the images of ImageNet's validation archive are sorted into such folders by "
                "torchvision.datasets.ImageNet(root, split='val'), given its devkit archive"
            )
        raise UserError(f"{self.place}: {self._root / split} has no class folders; {cure}")

    def class_items(self, split: Split, label: int) -> list[Item]:
        """Return the files of one class, sorted by path."""
        part = "" if self._whole else self._test if split == "test" else "train"
        place = Path(part, self.classes[label].wnid)
        if (part, label) not in self._listed:
            self._listed[part, label] = self._list(place.as_posix())
        paths = self._listed[part, label]
        if not paths:
            raise UserError(
                f"class {self.classes[label].wnid!r} has no images in {self._root / place}; "
                f"add some ({', '.join(SUFFIXES)}), or choose other classes with data.subset"
            )
        if self._whole:
            paths = self._part_of(paths, label, tested=split == "test")
        if split != "test":
            # The key names the class, not the label: a subset must not move images between splits.
            order = torch.randperm(
                len(paths), generator=generator(SPLIT_SEED, "folder", self.classes[label].wnid)
            )
            held_out = max(len(paths) // 20, min(1, len(paths) - 1))
            chosen = order[:held_out] if split == "selection" else order[held_out:]
            paths = [paths[i] for i in chosen.sort().values.tolist()]
        return [Item(key=path, label=label) for path in paths]

    def _part_of(self, paths: Sequence[str], label: int, *, tested: bool) -> list[str]:
        """The fifth of a class's images that is kept for the test, or the others."""
        order = torch.randperm(len(paths), generator=generator(SPLIT_SEED, "test", self.classes[label].wnid))
        count = max(len(paths) // _TESTED, min(1, len(paths) - 1))
        chosen = order[:count] if tested else order[count:]
        return [paths[i] for i in chosen.sort().values.tolist()]

    def _list(self, folder: str) -> list[str]:
        """Return paths below `folder`, relative to the root."""
        start = len(os.path.join(self._root, ""))
        return [path[start:].replace(os.sep, "/") for path in picture_files(str(self._root / folder))]

    def read(self, item: Item) -> Tensor:
        """Decode one file, (3, h, w) uint8 RGB, upright."""
        return read_file(self._root / item.key)

    def stamp(self, item: Item) -> str:
        """Return the file's size in bytes."""
        status = self._status(item)
        return str(status.st_size) if status else ""

    def revision(self, item: Item) -> str:
        """Return the file's size in bytes and when it was last changed, in nanoseconds."""
        status = self._status(item)
        return f"{status.st_size} {status.st_mtime_ns}" if status else ""

    def sha256(self, item: Item) -> str:
        """Return the hash of the file's bytes; raise UnreadableImage where they cannot be read."""
        try:
            return sha256(f"{self._root}/{item.key}")
        except OSError as error:
            raise UnreadableImage(f"cannot read image {self._root / item.key}: {error.strerror}") from error

    def _status(self, item: Item) -> os.stat_result | None:
        """None for a broken link or a file removed since it was listed: reading it reports that."""
        try:
            return os.stat(f"{self._root}/{item.key}")
        except OSError:
            return None


def _licence(root: Path) -> str | None:
    """The first line of the file that says the terms of the images; None without one."""
    for file in (root / name for name in LICENCES):
        if file.is_file():
            try:
                lines = read_text(file).splitlines()
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{file} is not text ({error}); write the terms of the images, or rename it"
                ) from error
            return next((line.strip()[:_LONGEST] for line in lines if line.strip()), None)
    return None


def class_table(root: Path, names: Sequence[str]) -> list[ClassInfo]:
    """Return the classes of the folders `names` (sorted), ordered by id.

    A table next to the folders comes first: `classes.json`, a list of
    `{"wnid": folder, "id": number, "name": text}`, or `classes.csv` with these columns. `id` (default: the row's
    place) and `name` (default: the folder) may be missing; rows of folders that are not there are ignored. Without a
    table, folders that are all numbers have these as ids, in the order of their names as text.
    """
    for file in (root / name for name in TABLES):
        if file.is_file():
            return _from_table(file, names)
    indices = imagenet.indices()
    if all(name in indices for name in names):
        return [
            ClassInfo(label=i, id=indices[name], wnid=name, name=imagenet.readable_name(name))
            for i, name in enumerate(names)
        ]
    ids = [int(name) if name.isascii() and name.isdecimal() else -1 for name in names]
    if min(ids) < 0 or len(set(ids)) < len(ids):  # both 7 and 007
        ids = list(range(len(names)))
    return [ClassInfo(label=i, id=ids[i], wnid=name, name=name) for i, name in enumerate(names)]


def table_rows(file: Path) -> list[ClassInfo]:
    """Return all rows of a table, ordered by `label` where all have one (as in our exports), else by `id`."""
    try:
        text = read_text(file)
        rows: list[Any] = json.loads(text) if file.suffix == ".json" else list(csv.DictReader(StringIO(text)))
        numbers = [int(str(row.get("id", place))) for place, row in enumerate(rows)]
        labels = [str(row.get("label", "")) for row in rows]
        wnids = [str(row["wnid"]) for row in rows]
        names = [str(row.get("name") or row["wnid"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(
            f"{file} is not a table of classes ({type(error).__name__}: {error}); each row needs wnid (the folder's "
            "name) and may have id (a whole number) and name; rename the file if it is meant for something else"
        ) from error
    order = [int(label) for label in labels] if all(map(str.isdecimal, labels)) else numbers
    for what, column in (("wnid", wnids), ("id", numbers), ("label", order)):
        [(value, count)] = Counter[Any](column).most_common(1) or [("", 0)]
        if count > 1:
            raise UserError(f"{file}: {what} {value!r} stands in more than one row; each needs its own")
    ordered = sorted(zip(order, numbers, wnids, names, strict=True))
    return [
        ClassInfo(label=place, id=number, wnid=wnid, name=name)
        for place, (_, number, wnid, name) in enumerate(ordered)
    ]


def _from_table(file: Path, names: Sequence[str]) -> list[ClassInfo]:
    table = {info.wnid: info for info in table_rows(file)}
    if missing := [name for name in names if name not in table]:
        raise UserError(
            f"{file} has no row for {len(missing)} of {len(names)} class folders ({', '.join(missing[:_LISTED])}); "
            "add them or remove the folders"
        )
    ordered = sorted((table[name] for name in names), key=lambda info: info.id)
    return [replace(info, label=place) for place, info in enumerate(ordered)]
