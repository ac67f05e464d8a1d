"""Which row of a prior's class table stands for which class of the data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import final

import torch
from torch import Tensor

from ldd.errors import UserError
from ldd.images import ClassInfo

_LISTED = 20
IMAGENET_CLASSES = 1000


@final
class ClassTable:
    """The classes a prior was trained on, found by WordNet id, else by a name that only one of them bears.

    Args:
        classes: the prior's own classes; `label` is the row. Empty if the prior does not name them.
        num_rows: rows of the table, the null row included.
        names: (name, row) of every name the classes go by; None takes those in `classes`.
    """

    def __init__(
        self, classes: Sequence[ClassInfo], num_rows: int, names: Sequence[tuple[str, int]] | None = None
    ) -> None:
        self.classes = list(classes)
        self.num_rows = num_rows
        names = [(info.name, info.label) for info in classes] if names is None else names
        bearers = Counter(name for name, _ in names)
        self._by_name = {name: row for name, row in names if bearers[name] == 1}
        self._by_wnid = {info.wnid: info.label for info in classes}

    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Rows (K,) int64 of the data's classes.

        Args:
            classes: of the data.
            mapping: WordNet id or name of a data class -> row, WordNet id or name of the prior; goes before
                everything else.

        Raises:
            UserError: a class this prior does not know, or a mapping to a row or class it does not have.
        """
        rows = [self._row(info, mapping) for info in classes]
        unknown = [
            f"{info.wnid} ({info.name})" for info, row in zip(classes, rows, strict=True) if row is None
        ]
        if unknown:
            raise UserError(
                f"the prior does not know the classes {', '.join(unknown)}; it knows {self._choices()}; choose "
                "classes among these, name a row or class for each in classes: {WNID OR NAME: ROW OR NAME}, or take "
                "another prior: a text-to-image one (a prompt per class), an unconditional one, or one "
                "trained on your images (latentdd prior train)"
            )
        return torch.tensor(rows, dtype=torch.int64)

    def _row(self, info: ClassInfo, mapping: Mapping[str, int | str]) -> int | None:
        wish = mapping.get(info.wnid, mapping.get(info.name))
        if wish is None:
            return self._by_wnid.get(info.wnid, self._by_name.get(info.name))
        row = wish if isinstance(wish, int) else self._by_wnid.get(wish, self._by_name.get(wish))
        if row is None or not 0 <= row < self.num_rows:
            raise UserError(
                f"classes maps {info.wnid} ({info.name}) to {wish!r}, which the prior does not have; it has the rows "
                f"0 to {self.num_rows - 1} and knows {self._choices()}"
            )
        return row

    def _choices(self) -> str:
        if not self.classes:
            return f"none by name, only the rows 0 to {self.num_rows - 1}"
        more = len(self.classes) - _LISTED
        return ", ".join(f"{info.wnid} ({info.name})" for info in self.classes[:_LISTED]) + (
            f" and {more} more (its prior.json or model_index.json lists them)" if more > 0 else ""
        )


def labelled_table(labels: Mapping[str, str], num_classes: int) -> ClassTable:
    """The table of a pipeline whose `model_index.json` names its rows.

    A thousand classes are taken for ImageNet's in the order of their WordNet ids, which is that of every published
    class-conditional model over it.

    Args:
        labels: `id2label`, row -> names separated by commas; may be empty.
        num_classes: rows, the null row not counted.
    """
    synsets = _synsets() if num_classes == IMAGENET_CLASSES else ()
    names = {int(row): [name.strip() for name in text.split(",")] for row, text in labels.items()}
    if not names and not synsets:
        return ClassTable([], num_classes + 1)
    classes = []
    for row in range(num_classes):
        given = names.get(row, [synsets[row] if synsets else f"row {row}"])
        classes.append(ClassInfo(row, row, synsets[row] if synsets else given[0], given[0]))
    every = [(name, row) for row, given in names.items() for name in dict.fromkeys(given)]
    return ClassTable(classes, num_classes + 1, every)


def _synsets() -> tuple[str, ...]:
    """ImageNet's WordNet ids in order, from the package's data (a resource; the layer above is not imported)."""
    text = files("ldd.imagenet").joinpath("imagenet_synsets.txt").read_text(encoding="utf-8")
    return tuple(text.split())
