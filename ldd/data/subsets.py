"""Choosing some classes of a source and numbering them anew."""

import re
from collections.abc import Sequence, Set
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

from torch import Tensor

from ldd.data.sources import Item, Source, Split
from ldd.disk.text import read_text
from ldd.errors import UserError, listed
from ldd.imagenet import tables as imagenet
from ldd.images import ClassInfo

_WNID = re.compile(r"n\d{8}")
_LISTED = 10  # classes spelt out in a message


class Subset(Source):
    """Some classes of another source, labelled 0..K-1 in the order in which they are named.

    Args:
        source: where the images come from.
        chosen: the name of a published ImageNet subset (`imagenette`, `birds`, `a`...; `imagenet-1k` is all
            1,000 classes), or the path of a text file (`*.txt`) with one wnid a line, or a list of wnids or names
            (text) and ids (numbers; ImageNet's own indices where the classes are ImageNet's, the folders' names where
            these are numbers). There is no `imagenet-100`: at least four lists of that name circulate, so give the
            file of the one you mean.

    Raises:
        UserError: an unknown subset or class (the message lists the nearest names), one that the source lacks,
            one named twice, or none at all.
    """

    def __init__(self, source: Source, chosen: str | Sequence[str | int]) -> None:
        names = subset_wnids(chosen, source.classes) if isinstance(chosen, str) else chosen
        if not names:
            raise UserError("subset=[] names no class; name at least one, or leave it null for all classes")
        self._refuse_missing(source, names)
        found = [find_class(source.classes, name) for name in names]
        labels = [info.label for info in found]
        for label, name in zip(labels, names, strict=True):
            if labels.count(label) > 1:
                raise UserError(f"subset names class {name!r} twice; name each class once")
        self._source = source
        self._labels = labels
        self.classes = [replace(info, label=label) for label, info in enumerate(found)]
        self.licence = source.licence
        self.place = source.place
        self.in_memory = source.in_memory

    @staticmethod
    def _refuse_missing(source: Source, names: Sequence[str | int]) -> None:
        """Raise with all wnids that the source lacks, not only the first."""
        there = {text for info in source.classes for text in (info.wnid, info.name)}
        wnids = [name for name in names if isinstance(name, str) and _WNID.fullmatch(name)]
        if missing := [wnid for wnid in wnids if wnid not in there]:
            known = imagenet.indices()
            shown = [
                f"{wnid} ({imagenet.readable_name(wnid)})" if wnid in known else wnid for wnid in missing
            ]
            raise UserError(
                f"subset: {source.place} has no images of {len(missing)} of {len(names)} classes: "
                f"{listed(shown, _LISTED)}; add their folders or choose other classes"
            )

    def class_items(self, split: Split, label: int) -> list[Item]:
        """Return the other source's images of the class, under its new label."""
        items = self._source.class_items(split, self._labels[label])
        return [Item(key=item.key, label=label) for item in items]

    def read(self, item: Item) -> Tensor:
        """Read one image at its native size, (3, h, w) uint8 RGB."""
        return self._source.read(item)

    def stamp(self, item: Item) -> str:
        """Return what the other source gives."""
        return self._source.stamp(item)

    def revision(self, item: Item) -> str:
        """Return what the other source gives."""
        return self._source.revision(item)

    def sha256(self, item: Item) -> str:
        """Return what the other source gives."""
        return self._source.sha256(item)


def subset_wnids(subset: str, classes: Sequence[ClassInfo] = (), option: str = "subset") -> Sequence[str]:
    """Return the wnids of a published subset, or of a text file with one a line; `#` starts a comment.

    A line is a class's name, which may hold spaces, where it is one of `classes` or does not begin with a wnid of
    ImageNet; else its first word counts. Messages call the setting `option`.
    """
    if subset.endswith(".txt") or "/" in subset:
        try:
            lines = read_text(Path(subset).expanduser()).splitlines()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{option}={subset!r}: cannot read this list of wnids ({error}); give a text file with one wnid a line"
            ) from error
        known = {_composed(text) for info in classes for text in (info.wnid, info.name)}
        wnids = [_name_in(words, known) for line in lines if (words := line.partition("#")[0].split())]
        if not wnids:
            raise UserError(f"{option}={subset!r}: the file names no class; write one wnid a line")
        return wnids
    wnids_of_name = imagenet.find_subset(subset)
    if wnids_of_name is None:
        raise UserError(_unknown_subset(subset, option))
    return wnids_of_name


def _name_in(words: Sequence[str], known: Set[str]) -> str:
    whole = " ".join(words)
    first_counts = _WNID.fullmatch(words[0]) or _composed(words[0]) in known
    return words[0] if first_counts and _composed(whole) not in known else whole


def _composed(name: str) -> str:
    """Return a name in the one form of Unicode that compares: some systems write accents as characters of their own."""
    return normalize("NFC", name)


def _unknown_subset(subset: str, option: str) -> str:
    known = ["imagenet-1k" if name == "1k" else name for name in imagenet.named_subsets()]
    near = get_close_matches(subset.lower(), known, n=3, cutoff=0.5)
    if "100" in subset:
        cure = f"several lists of that name circulate: give yours as a text file, {option}=PATH.txt"
    elif subset in imagenet.indices():
        cure = f"for single classes write a list, {option}=[{subset}]"
    else:
        cure = "or give a list of wnids or indices, or a text file of wnids"
    nearest = f"nearest: {', '.join(near)}; " if near else ""
    return f"unknown {option}={subset!r}; {nearest}known: {', '.join(known)}; {cure}"


def find_class(classes: Sequence[ClassInfo], name: str | int) -> ClassInfo:
    """Return the class with this wnid or name (text) or id (number)."""
    if isinstance(name, bool):
        raise UserError(
            f"subset: {name} is a truth value; YAML takes yes, no, on and off for such: quote the name"
        )
    if isinstance(name, int):
        found = [info for info in classes if info.id == name]
    else:
        same = _composed(name)
        found = [info for info in classes if _composed(info.wnid) == same] or [
            info for info in classes if _composed(info.name) == same
        ]
    if len(found) == 1:
        return found[0]
    if found:
        wnids = ", ".join(info.wnid for info in found[:_LISTED])
        raise UserError(f"subset: {len(found)} classes are called {name!r}; use a wnid: {wnids}")
    if isinstance(name, int):
        near = [str(info.id) for info in sorted(classes, key=lambda info: abs(info.id - name))[:3]]
    else:
        known = [text for info in classes for text in dict.fromkeys((info.wnid, info.name))]
        near = get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    raise UserError(
        f"subset: unknown class {name!r}; nearest of {len(classes)}: {', '.join(near)} "
        "(text is a wnid or a name, a number is an id)"
    )
