"""Classes of a prior by name: which row of its class table stands for which class of the data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from ldd.disk.text import read_lines
from ldd.errors import UserError
from ldd.imagenet.tables import readable_name, synsets
from ldd.images import ClassInfo
from ldd.priors.folder import PriorCard
from ldd.priors.loading import read_json

_LISTED = 20  # classes in a message, or drawn where the user names none


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
        """Return the rows (K,) int64 of the data's classes.

        `mapping` takes precedence: WordNet id or name of a data class -> a row, a WordNet id or a name of the prior.
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
        return _listed(self.classes) or f"none by name, only the rows 0 to {self.num_rows - 1}"


def _listed(classes: Sequence[ClassInfo]) -> str:
    more = len(classes) - _LISTED
    return ", ".join(f"{info.wnid} ({info.name})" for info in classes[:_LISTED]) + (
        f" and {more} more (its prior.json or model_index.json lists them)" if more > 0 else ""
    )


def find_table(folder: Path, card: PriorCard | None, component: str, rows: int, nulls: int = 1) -> ClassTable:
    """Return the table of a component's `rows`, of which the last `nulls` stand for no class.

    They are named by `card` (`prior.json`), else by `model_index.json` in the folder.

    Raises:
        UserError: either names rows that are not there.
    """
    if card is not None and (nulls or card.null_class >= 0):
        card.check_table(rows, f"the class tables of component {component!r} have")
    if card is not None:
        return ClassTable(card.classes, rows)
    index = folder / "model_index.json"
    labels = read_json(index).get("id2label") if index.is_file() else None
    try:
        labels = {str(int(row)): str(text) for row, text in (labels or {}).items()}
    except (AttributeError, ValueError) as error:
        raise UserError(f"{index}: id2label is malformed ({error}); it maps row numbers to names") from error
    if labels and max(map(int, labels)) >= rows:
        raise UserError(
            f"{index}: id2label names row {max(map(int, labels))}, but the class tables of component {component!r} "
            f"have {rows} rows"
        )
    return _labelled_table(labels, rows - nulls, rows)


def _labelled_table(labels: Mapping[str, str], num_classes: int, num_rows: int) -> ClassTable:
    """Return the table of a pipeline whose `model_index.json` may name its rows (`id2label`: "0" -> "name, name").

    A thousand classes are taken for ImageNet's in the order of their WordNet ids, as in every published
    class-conditional model trained on it.
    """
    wnids = synsets() if num_classes == len(synsets()) else ()
    names = {int(row): [name.strip() for name in text.split(",")] for row, text in labels.items()}
    if not names and not wnids:
        return ClassTable([], num_rows)
    classes = []
    for row in range(num_classes):
        given = names.get(row, [wnids[row] if wnids else f"row {row}"])
        classes.append(ClassInfo(row, row, wnids[row] if wnids else given[0], given[0]))
    every = [(name, row) for row, given in names.items() for name in dict.fromkeys(given)]
    return ClassTable(classes, num_rows, every)


def imagenet_classes() -> list[ClassInfo]:
    """Return the 1,000 classes of ILSVRC 2012, each in the row of its index."""
    return [ClassInfo(index, index, wnid, readable_name(wnid)) for index, wnid in enumerate(synsets())]


def read_class_names(path: Path | str) -> list[ClassInfo]:
    """Read classes by row, one a line: the name of the class's folder, then its readable name if that differs."""
    lines = read_lines(path, "--class-names", "give a text file")
    words = [line.split(maxsplit=1) for line in lines if line.strip()]
    twice = sorted(wnid for wnid, number in Counter(parts[0] for parts in words).items() if number > 1)
    if twice:
        raise UserError(f"--class-names ({path}) names {', '.join(twice)} twice; each class has one row")
    return [ClassInfo(row, row, parts[0], parts[-1].strip()) for row, parts in enumerate(words)]


def choose_classes(known: Sequence[ClassInfo], wanted: Sequence[str]) -> list[ClassInfo]:
    """Return the known classes that `wanted` names, by WordNet id or readable name, each once; the first 20 for none.

    One string may hold several names, separated by commas.
    """
    if not wanted:
        return list(known[:_LISTED])
    found: dict[str, list[ClassInfo]] = {}
    for info in known:
        for name in {info.wnid, info.name}:
            found.setdefault(name, []).append(info)
    names = [
        part for word in wanted for part in ([word] if word in found else map(str.strip, word.split(",")))
    ]
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UserError(
            f"--classes: the prior does not know {', '.join(unknown)}; it knows {_listed(known)}; choose among these"
        )
    for name in names:
        if len(found[name]) > 1:
            raise UserError(
                f"--classes: {name} names several classes; give one of {', '.join(c.wnid for c in found[name])}"
            )
    return list(dict.fromkeys(found[name][0] for name in names))
