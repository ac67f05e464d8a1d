"""Text that anybody may have written: read from regular files of a bounded size, and YAML of a bounded expansion."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ldd.errors import UserError

MAX_BYTES = 64 * 2**20
"""Most bytes of a text file: a larger one is not of ours, and would fill the memory when parsed."""

_MAX_YAML = 2**20  # characters; the parser takes seconds for as many
_MAX_NODES = 30_000  # values of a YAML file once its aliases are written out
_MAX_DEPTH = 100  # levels; the parser's C code overflows its stack on some ten thousand

PLAIN_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: Path | str, errors: str = "strict") -> str:
    """Return the text of a regular file: UTF-8, with a byte-order mark or without; `errors` as for `open`."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > MAX_BYTES:
        raise ValueError(
            f"{status.st_size / 2**20:.0f} MiB are more than the {MAX_BYTES // 2**20} MiB that it may have"
        )
    return Path(path).read_text(encoding="utf-8-sig", errors=errors)


def read_lines(path: Path | str, argument: str, cure: str) -> list[str]:
    """Return the lines of a text file that an argument names."""
    try:
        return read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{argument} ({path}) cannot be read: {error}; {cure}") from error


def parse_yaml(text: str) -> Any:  # noqa: ANN401 - what is in it
    """Return the value in YAML text; nothing but plain values is constructed.

    Aliases are not written out by the parser, but by whoever walks the value: ten levels of nine are 341 bytes and
    billions of values. So they are counted, among the events of the parser, before anything is constructed.
    """
    check_expansion(text, PLAIN_LOADER)
    return yaml.load(text, Loader=PLAIN_LOADER)


def check_expansion(text: str, loader: Any) -> None:  # noqa: ANN401 - a class of PyYAML's
    """Raise as `parse_yaml` does, without making a value of the text."""
    if len(text) > _MAX_YAML:
        raise ValueError(f"{len(text)} characters are more than the {_MAX_YAML} that it may have")
    whole: dict[str, int] = {}  # anchor -> values that an alias of it stands for
    open_nodes: list[tuple[str | None, int]] = []  # anchor, values counted before it
    count, keys = 0, _Keys()
    for event in yaml.parse(text, Loader=loader):
        keys.see(event)
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, count))
            count += 1
            whole.pop(anchor or "", None)
            if len(open_nodes) > _MAX_DEPTH:
                raise ValueError(f"nested in more than {_MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            opened, before = open_nodes.pop()
            if opened is not None:
                whole[opened] = count - before
        elif isinstance(event, yaml.AliasEvent):
            if anchor in (opened for opened, _ in open_nodes) and anchor not in whole:
                raise ValueError(f"&{anchor} contains itself")
            count += whole.get(anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if anchor is not None:
                whole[anchor] = 1
        if count > _MAX_NODES:
            raise ValueError(f"more than {_MAX_NODES} values")


class _Keys:
    """The keys of those mappings that are open while text is parsed."""

    def __init__(self) -> None:
        self._open: list[dict[str, int] | None] = []  # of a list None, else key -> its line
        self._awaited: list[bool] = []  # whether a key follows, not a value

    def see(self, event: Any) -> None:  # noqa: ANN401 - an event of PyYAML's
        """Take in the next event; raise ValueError for a key that is there already."""
        if isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._awaited.pop()
        if not isinstance(event, yaml.NodeEvent):
            return
        if self._open and (keys := self._open[-1]) is not None:
            if self._awaited[-1] and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
                line = event.start_mark.line + 1 if event.start_mark else 0
                # YAML reads 01 as 1: one key of the mapping, of which the first would be dropped.
                key = str(int(event.value)) if event.implicit[0] and event.value.isdecimal() else event.value
                if key in keys:
                    raise ValueError(f"line {line} names {event.value!r} again, as line {keys[key]} does")
                keys[key] = line
            self._awaited[-1] = not self._awaited[-1]
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append({} if isinstance(event, yaml.MappingStartEvent) else None)
            self._awaited.append(True)


def parsed(path: Path | str, form: str, cure: str, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401
    """Return the value that `parse` reads from a text file."""
    try:
        return parse(read_text(path))
    except Exception as error:  # text leads parsers to RecursionError, AttributeError, OverflowError...
        reason = " ".join((str(error) or type(error).__name__).split())
        raise UserError(f"{path} cannot be read as {form} ({reason}); {cure}") from error
