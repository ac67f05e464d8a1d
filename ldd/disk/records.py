"""Records: dataclasses as JSON, and JSON that anybody may have written as checked dataclasses.

What a value must be is read from the annotation of its field: `str`, `int`, `float`, `bool`, `Any` (plain JSON),
`list`, `tuple`, `dict`, another dataclass, and each of these `| None`. Text holds no control characters, since it is
printed; whole numbers fit into 64 bits; numbers are finite. A dataclass checks rules of its own in `__post_init__`,
which raises UserError.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints
from unicodedata import category

from ldd.disk.files import read_json
from ldd.errors import UserError

T = TypeVar("T")

CURE = "write it anew or restore it"
REST = MappingProxyType({"rest": True})
"""Metadata of the dataclass field, a dictionary, that takes keys without a field of their own; it is written last.

Without such a field, unknown keys are refused.
"""


def read_record(path: Path | str, kind: type[T], cure: str = CURE) -> T:
    """Return the record of a dataclass in a JSON file; every message ends with the `cure`."""
    value = read_json(path, cure)
    try:
        return parse(kind, value)
    except UserError as error:
        raise UserError(f"{path}: {error}; {cure}") from error


def parse(kind: type[T], value: object) -> T:
    """Return a mapping, as JSON gives it, as a record of a dataclass; tuples may be lists, and records mappings."""
    return cast("T", _parse(kind, value, ""))


def to_json(record: Any) -> Any:  # noqa: ANN401 - a dataclass, or a value in one
    """Return a record as plain values for JSON, in the order of its fields, without those that are None by default."""
    if not is_dataclass(record):
        if isinstance(record, Mapping):
            return {key: to_json(value) for key, value in record.items()}
        return [to_json(value) for value in record] if isinstance(record, list | tuple) else record
    plain: dict[str, Any] = {}
    for one in fields(record):
        value = getattr(record, one.name)
        if one.metadata == REST:
            plain |= to_json(value)
        elif value is not None or one.default is not None:
            plain[one.name] = to_json(value)
    return plain


def shown(value: object) -> str:
    """Return a value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _parse(hint: Any, value: Any, place: str) -> Any:  # noqa: ANN401 - any JSON
    kind, arguments = _kind(hint)
    if kind is Any:
        return _plain(value, place)
    if value is None and _is_optional(hint):
        return None
    if is_dataclass(kind) and isinstance(value, (Mapping, cast("type", kind))):
        return _parse_record(kind, to_json(value), place)
    if kind is dict and isinstance(value, Mapping):
        if arguments == (str, Any):
            return _plain(value, place)
        if all(_is_text(key) for key in value):
            return {key: _parse(arguments[1], part, f"{place}[{key!r}]") for key, part in value.items()}
    elif kind in (list, tuple) and isinstance(value, list | tuple):
        fixed = kind is tuple and Ellipsis not in arguments
        if not fixed or len(value) == len(arguments):
            parts = arguments if fixed else arguments[:1] * len(value)
            return kind(
                _parse(h, v, f"{place}[{i}]") for i, (h, v) in enumerate(zip(parts, value, strict=True))
            )
    elif kind in _SCALARS and _SCALARS[kind][1](value):
        return value
    raise UserError(f"{place or 'the record'} must be {_needed(hint)}, got {shown(value)}")


def _parse_record(kind: Any, value: Mapping[str, Any], place: str) -> Any:  # noqa: ANN401 - any dataclass
    where = f"{place}: " if place else ""
    hints, known = _hints(kind)
    rests = [name for name, one in known.items() if one.metadata == REST]
    others = {key: part for key, part in value.items() if key not in known or key in rests}
    if others and not rests:
        raise UserError(f"{where}unknown {', '.join(map(shown, others))}; known are {', '.join(known)}")
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in value]:
        raise UserError(f"{where}missing {', '.join(missing)}")
    read = {
        name: _parse(hints[name], value[name], f"{place}.{name}" if place else name)
        for name in known
        if name in value and name not in rests
    }
    read |= {name: _plain(others, place) for name in rests}
    try:
        return kind(**read)
    except UserError as error:
        raise UserError(f"{where}{error}") from error


@cache
def _hints(kind: Any) -> tuple[dict[str, Any], dict[str, Field[Any]]]:  # noqa: ANN401 - any dataclass
    return get_type_hints(kind), {one.name: one for one in fields(kind)}


def _kind(hint: Any) -> tuple[Any, tuple[Any, ...]]:  # noqa: ANN401 - any annotation
    """Return the type to look for, without `| None`, and its arguments."""
    if _is_optional(hint):
        [hint] = [part for part in get_args(hint) if part is not NoneType]
    origin = get_origin(hint)
    return (hint if origin is None else dict if origin is Mapping else origin), get_args(hint)


def _is_optional(hint: Any) -> bool:  # noqa: ANN401 - any annotation
    return get_origin(hint) in (Union, UnionType)


def _plain(value: Any, place: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{place or 'the record'} must be plain JSON values: {error}") from error


def _is_text(value: object) -> bool:
    # No terminal escapes, no halves of surrogate pairs.
    return isinstance(value, str) and all(c in "\n\t" or category(c) not in ("Cc", "Cs") for c in value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


_SCALARS: dict[Any, tuple[str, Any]] = {
    str: ("text without control characters", _is_text),
    int: ("a whole number", _is_whole),
    float: ("a number", lambda value: _is_whole(value) or _is_finite(value)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
}


def _needed(hint: Any) -> str:  # noqa: ANN401 - any annotation
    kind, arguments = _kind(hint)
    if is_dataclass(kind):
        named = ", ".join(name for name, one in _hints(cast("type", kind))[1].items() if one.metadata != REST)
        words = f"a mapping with {named}"
    elif kind in (list, tuple):
        fixed = kind is tuple and Ellipsis not in arguments
        words = f"a list of {len(arguments)} values" if fixed else "a list"
    else:
        words = _SCALARS[kind][0] if kind in _SCALARS else "a mapping"
    return f"{words} or null" if _is_optional(hint) else words
