"""Choosing some classes of a source and numbering them anew."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from torch import Tensor

from ldd.classes import ClassInfo
from ldd.data.sources import Item, Source, Split
from ldd.errors import UserError


class Subset(Source):
    """Some classes of another source, labelled 0..K-1 in the order in which they are named.

    Args:
        source: where the images come from.
        chosen: classes by wnid or name (text) or by id (number).

    Raises:
        UserError: an unknown class (the message lists the nearest names), one named twice, or none at all.
    """

    def __init__(self, source: Source, chosen: Sequence[str | int]) -> None:
        if not chosen:
            raise UserError("subset=[] names no class; name at least one, or leave it null for all classes")
        found = [find_class(source.classes, name) for name in chosen]
        for info, name in zip(found, chosen, strict=True):
            if found.count(info) > 1:
                raise UserError(f"subset names class {name!r} twice; name each class once")
        self._source = source
        self._labels = [info.label for info in found]
        self.classes = [replace(info, label=label) for label, info in enumerate(found)]
        self.licence = source.licence

    def class_items(self, split: Split, label: int) -> list[Item]:
        """The other source's images of the class, under its new label."""
        items = self._source.class_items(split, self._labels[label])
        return [Item(key=item.key, label=label) for item in items]

    def read(self, item: Item) -> Tensor:
        """One image at its native size, (3, h, w) uint8 RGB."""
        return self._source.read(item)

    def stamp(self, item: Item) -> str:
        """As the other source has it."""
        return self._source.stamp(item)


def find_class(classes: Sequence[ClassInfo], name: str | int) -> ClassInfo:
    """The class with this wnid or name (text) or id (number).

    Raises:
        UserError: there is none; the message lists the nearest names.
    """
    for info in classes:
        if name == info.id if isinstance(name, int) else name in (info.wnid, info.name):
            return info
    if isinstance(name, int):
        near = [str(info.id) for info in sorted(classes, key=lambda info: abs(info.id - name))[:3]]
    else:
        known = [text for info in classes for text in dict.fromkeys((info.wnid, info.name))]
        near = get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    raise UserError(
        f"subset: unknown class {name!r}; nearest of {len(classes)}: {', '.join(near)} "
        "(text is a wnid or a name, a number is an id)"
    )
