"""What the labels of files mean: the order of classes that they state, compared with the one they are used with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ldd.artefact.exporters.base import CLASSES
from ldd.data.folders import table_rows
from ldd.data.subsets import subset_wnids
from ldd.disk.files import read_json
from ldd.errors import UserError, listed
from ldd.imagenet.tables import indices, readable_name
from ldd.images import ClassInfo


def stated_classes(classes: str, wanted: Sequence[ClassInfo] = ()) -> list[ClassInfo]:
    """Return the classes that a user names, in the order of their labels.

    Args:
        classes: names or wnids, separated by commas (`cat,ship` or `[cat, ship]`); path of a table (`.json` or `.csv`,
            see `ldd.data.folders.class_table`; `label` orders it, else `id`), path of a text file with one wnid a
            line, or the name of a published ImageNet subset.
        wanted: classes of the data that the set is for, among which names are looked up first.

    Raises:
        UserError: an unknown name, one that stands twice, or a file of another form.
    """
    if Path(classes).suffix in (".json", ".csv"):
        return table_rows(Path(classes).expanduser())
    listed = "," in classes or classes.startswith("[")
    names = _names_in(classes) if listed else subset_wnids(classes, wanted, "classes")
    known = indices()
    of_data = {text: info for info in wanted for text in (info.name, info.wnid)}
    return [
        replace(of_data[name], label=label)
        if name in of_data
        else ClassInfo(
            label=label,
            id=known.get(name, label),
            wnid=name,
            name=readable_name(name) if name in known else name,
        )
        for label, name in enumerate(names)
    ]


def _names_in(classes: str) -> list[str]:
    """Names that are separated by commas, in brackets or not."""
    names = [name.strip(" '\"") for name in classes.strip(" []").split(",")]
    for name in names:
        if not name or names.count(name) > 1:
            raise UserError(
                f"classes={classes!r}: {name!r} {'stands twice' if name else 'is not a name'}; name each class once"
            )
    return names


def renumbering(folder: Path, key: str) -> tuple[list[ClassInfo], Tensor] | None:
    """Return what the class table in a folder says of the numbers in the files next to it; None without a table.

    Args:
        folder: of an export.
        key: under which the table has the number of each class; where it has none, numbers are our labels.

    Returns:
        K classes by our label, and (K,) int64: our label of each number.

    Raises:
        UserError: a damaged table.
    """
    file = folder / CLASSES
    if not file.is_file():
        return None
    classes = table_rows(file)
    rows = read_json(file, "export the set again")
    places = {str(row["wnid"]): row.get(key) for row in rows}
    numbers = [info.label if (place := places[info.wnid]) is None else place for info in classes]
    if sorted(numbers, key=str) != sorted(range(len(classes)), key=str):
        raise UserError(f"{file}: {key} must number the {len(classes)} classes from 0; export the set again")
    return classes, torch.tensor(numbers).argsort()


def agreed_classes(
    inside: Sequence[ClassInfo] | None,
    stated: Sequence[ClassInfo] | None,
    wanted: Sequence[ClassInfo] | None,
    *,
    reorder: bool = False,
) -> tuple[list[ClassInfo], Tensor]:
    """Return the class table of an import, and which of its labels each number of the files becomes.

    No order is guessed, since a wrong one costs a set all its accuracy and shows in nothing else.

    Args:
        inside: the order that the files themselves state.
        stated: the order that the user says the files have (--classes).
        wanted: the classes of the data the set is to be used with (--data).
        reorder: renumber by wnid where the same classes come in another order.

    Returns:
        K classes by label, and (K,) int64: new label of each old one.
    """
    if inside is not None and stated is not None:
        _refuse_difference(inside, "in the files", stated, "by --classes", "leave --classes out")
    of_files = inside if inside is not None else stated
    if of_files is None and wanted is None:
        raise UserError(
            "nothing says which classes the labels 0, 1, ... of these files are; name them in that order with "
            "--classes (a table, a list of wnids, or a published subset), or give the --data whose order they have"
        )
    table = wanted if wanted is not None else of_files
    assert table is not None
    same = torch.arange(len(table))
    if of_files is None or [info.wnid for info in of_files] == [info.wnid for info in table]:
        return list(table), same
    place = {info.wnid: info.label for info in table}
    cure = "give the --data or the --classes that the set was made with"
    if place.keys() == {info.wnid for info in of_files}:
        if reorder:
            return list(table), torch.tensor([place[info.wnid] for info in of_files])
        cure = "the classes are the same, so --reorder true renumbers them"
    _refuse_difference(of_files, "in the files", table, "in --data", cure)
    raise AssertionError("orders that differ are refused")


def _refuse_difference(
    one: Sequence[ClassInfo], where_one: str, other: Sequence[ClassInfo], where_other: str, cure: str
) -> None:
    wnids = [[info.wnid for info in order] for order in (one, other)]
    if wnids[0] == wnids[1]:
        return
    raise UserError(
        f"the classes {where_one} are not those {where_other}, or come in another order; {where_one}: {shown(one)}; "
        f"{where_other}: {shown(other)}; {cure}"
    )


def shown(classes: Sequence[ClassInfo]) -> str:
    """Return number, wnid and name of the first classes, for messages."""
    names = [f"{info.label} {info.wnid}" + f" ({info.name})" * (info.name != info.wnid) for info in classes]
    return listed(names, 10)


@dataclass(frozen=True)
class RawSet:
    """A set as it was stored.

    Attributes:
        images: (N, C, H, H), C 1 or 3; uint8, or floats of any range.
        labels: (N,) whole numbers.
        form: of the files, and whose it is, in words.
        numbered: whether labels were stored as numbers, which mean something only with a class table.
        soft_labels: (N, K) probabilities, or None.
        weights: (N,), or None.
        classes: in the order of the labels, if the files say so.
        mean: of the normalisation, if the files say so.
        std: the same.
        packing: columns and rows of the grid of small images that each one is, if the files say so.
    """

    images: Tensor
    labels: Tensor
    form: str
    numbered: bool = True
    soft_labels: Tensor | None = None
    weights: Tensor | None = None
    classes: Sequence[ClassInfo] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    packing: int | None = None
