"""Options of a verb, between its words and what is made of them: one spelling of a path, no nulls, errors in a line."""

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from ldd.disk.stores import as_named, fetched, is_url, opened
from ldd.errors import UserError, in_a_line

_FOLDERS = ("out", "default_root_dir")
"""Options, by the last part of their names, below which a verb writes."""

_LOCAL = ("cache_dir", "root")
"""Options, likewise, whose files are mapped into memory or are too many to be fetched first."""


_READ = ("trajectories", "ckpt_path")
"""Options, likewise, that name a file or a folder which is read."""


def parse(parser: ArgumentParser, arguments: Sequence[str] | None) -> Namespace:
    """Return the options of a verb, with paths in one spelling and no null where a value is needed."""
    options: Namespace = parser.parse_args(None if arguments is None else list(arguments))
    refuse_nulls(parser, options)
    spell_paths(options)
    return options


def instantiate(parser: ArgumentParser, options: Namespace) -> Namespace:
    """Return the options with every `class_path` instantiated."""
    with mistakes_named(options):
        made: Namespace = parser.instantiate(options)
    return made


@contextmanager
def mistakes_named(options: Namespace) -> Iterator[None]:
    """Let what classes refuse while a block makes them of `options` end in one line, with the option and the class."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (mistake := _as_mistake(error, options)) is None:
            raise
        raise mistake from error


def raised_in(error: BaseException, package: str) -> bool:
    """Return whether a module of `package` raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    name = str(frames[-1][0].f_globals.get("__name__")) if frames else ""
    return name.partition(".")[0] == package


def spell_paths(options: Namespace, section: str = "") -> None:
    """Write out the home folder in every value that begins with it (`~/x`), in whatever option it stands.

    So all who are handed the value, Lightning and users' own classes among them, mean one place. Other paths stay as
    they were typed, and with them what is recorded of a run.
    """
    for name, value in list(options.items()):
        options[name] = _spelt(f"{section}{name}", value)


def name_urls(options: Namespace) -> None:
    """Put back the URLs for which `spell_paths` has put folders of this machine."""
    for name, value in list(options.items()):
        options[name] = _named(value)


def _named(value: Any) -> Any:  # noqa: ANN401 - any option
    if isinstance(value, Namespace):
        name_urls(value)
    elif isinstance(value, dict):
        return {key: _named(inner) for key, inner in value.items()}
    elif isinstance(value, (list, tuple)):
        return type(value)(map(_named, value))
    return as_named(value) if type(value) is str else value  # a member of an enumeration stays one


def _spelt(name: str, value: Any) -> Any:  # noqa: ANN401 - any option
    if isinstance(value, Namespace):
        spell_paths(value, f"{name}.")
    elif isinstance(value, dict):
        return {key: _spelt(f"{name}.{key}", inner) for key, inner in value.items()}
    elif isinstance(value, (list, tuple)):
        return type(value)(_spelt(name, inner) for inner in value)
    elif isinstance(value, Path):
        return Path(_spelt_text(name, str(value)))
    elif isinstance(value, str):
        return _spelt_text(name, value)
    return value


def _spelt_text(name: str, value: str) -> str:
    if value == "~" or (value.startswith("~") and "/" in value):  # a class of that name has no slash
        expanded = os.path.expanduser(value)
        if expanded == value:
            raise UserError(f"{name} ({value}): there is no such user; write the path out, or ./{value}")
        value = expanded
    last = name.rpartition(".")[2]
    if last in _LOCAL and is_url(value):
        raise UserError(
            f"{name} ({value}) must lie on this machine or be mounted: its files are mapped into memory"
        )
    if last in _READ and is_url(value):
        return str(fetched(value, name))
    if last in _FOLDERS:
        if is_url(value):
            return opened(value, name)
        plain = os.path.normpath(value)  # which is what Lightning works in
        if os.path.realpath(value) != os.path.realpath(plain):  # `link/../x`
            return os.path.realpath(value)
    return value


def refuse_nulls(parser: ArgumentParser, options: Namespace) -> None:
    """Raise if null is given for what cannot be null, or a value in the place of a section."""
    for action in parser._actions:
        hint: Any = getattr(action, "_typehint", action.type)
        free = hint is None or hint is Any or type(None) in get_args(hint)
        if free or action.default is None or action.dest.endswith(".help"):
            continue
        parts = action.dest.split(".")
        names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        for name in names:
            value = options.get(name, "")
            if value is None:
                raise UserError(f"{name} (null) needs a value; leave it out to have the default")
            if name != action.dest and name in options and not isinstance(value, Namespace):
                raise UserError(f"{name} ({value}) must hold settings, {name}.{parts[-1]} for instance")


def _as_mistake(error: Exception, options: Namespace) -> UserError | None:
    """Return what a constructor said, under the option that names its class; None where this package itself failed.

    The parser tries every type that an option may have, and chains what each of them raised.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    if (known := next((one for one in chain if isinstance(one, UserError)), None)) is not None:
        return known
    if raised_in(chain[-1], "ldd"):
        return None
    told = "\n".join(map(str, chain))
    named = [(name, path) for name, path in _class_paths(options) if path in told]
    where = "; ".join(f"{name} ({path})" for name, path in named) or "a class of the configuration"
    return UserError(f"{where}: {in_a_line(chain[-1])}; correct its arguments, or leave it out")


def _class_paths(options: Any, section: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any option
    """Return every class that is named in the options: (option, dotted name)."""
    if isinstance(options, Namespace):
        options = vars(options)
    if isinstance(options, dict):
        if isinstance(path := options.get("class_path"), str):
            yield section.removesuffix("."), path
        for key, value in options.items():
            yield from _class_paths(value, f"{section}{key}.")
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _class_paths(value, section)
