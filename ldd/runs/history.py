"""The commands that made what lies on disk: every verb leaves its own in `commands.json`, the report shows them."""

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ldd import __version__
from ldd.disk.files import read_json, write_json
from ldd.errors import UserError

NAME = "commands.json"
"""In a folder; beside a single file it is called `<file>.commands.json`."""

_STANDS_FOR = {"root": "ROOT", "cache_dir": "CACHE"}
"""What stands for an absolute path, by the last part of the option that takes it; elsewhere its last name does."""

# `//` after a colon belongs to a URL; what follows a letter, a dot or a dash to a relative path.
_ABSOLUTE = r"(?<![\w./~-])(?!(?<=:)//)(?:file:)?(?:~[\w-]*(?=[/\s\"',\]}]|$)|/)"
_WHOLE = re.compile(_ABSOLUTE + r".*", re.DOTALL)
_WITHIN = re.compile(rf"(?<=\"){_ABSOLUTE}[^\"]*|(?<='){_ABSOLUTE}[^']*|{_ABSOLUTE}[^\s\"',\[\]{{}}]*")


class Recorded(NamedTuple):
    """A command as `commands.json` has it.

    Attributes:
        verb: of `latentdd`.
        command: the whole line, ready for a shell.
        version: of the package that ran it.
    """

    verb: str
    command: str
    version: str


def public_command(arguments: Sequence[str]) -> str:
    """Return `latentdd ARGUMENTS` for a shell, without what only this machine knows.

    Relative paths stay as they were typed. Absolute ones, and those below a home (`~`), would tell where somebody
    keeps their files: the data root becomes ROOT, a cache CACHE, and of any other path the last name is left. They are
    found as values of options, after `=`, and inside JSON or YAML.

    Args:
        arguments: of `latentdd`, the verb first.
    """
    words: list[str] = []
    option = ""
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            option = name
            words.append(name + equals + _public(value, option))
        else:
            words.append(_public(word, option))
    return shlex.join(["latentdd", *words])


def record_command(
    made: Path | str, arguments: Sequence[str], *, source: Path | str | None = None, anew: bool = False
) -> None:
    """Add a command to those that made what lies at a place; one that is there already is not repeated.

    Args:
        made: a folder that exists, or a file. What made an earlier file of this name is forgotten.
        arguments: of `latentdd`, the verb first.
        source: what it was made of: the commands that made that come first.
        anew: also forget what made an earlier content of the folder.

    Raises:
        UserError: the folder cannot be written.
    """
    found: list[Recorded] = []
    for place in (source, None if anew or Path(made).is_file() else made):
        with suppress(UserError):  # damaged; what was made is worth keeping all the same
            found += [] if place is None else recorded_commands(place)
    found.append(Recorded(arguments[0], public_command(arguments), __version__))
    written = [
        {"verb": verb, "command": command, "package_version": version}
        for verb, command, version in dict.fromkeys(found)
    ]
    write_json(_file(Path(made)), written)


def recorded_commands(made: Path | str) -> list[Recorded]:
    """Return the commands that made what lies at a place, in order; empty where nothing was recorded.

    Args:
        made: a file, or a folder: of a run, of its set, or of whatever else a verb writes.

    Raises:
        UserError: the record is damaged.
    """
    made = Path(made)
    files = [_file(made)]
    if made.name == "distilled":  # a run's set; the record is the run's
        files.append(made.parent / NAME)
    path = next(filter(Path.is_file, files), None)
    if path is None:
        return []
    try:
        found = [Recorded(one["verb"], one["command"], one["package_version"]) for one in read_json(path)]
        # Another's file may be here: what is shown to be run again must be one command of this program.
        harmless = all(_is_one(one.command) and isinstance(one.version, str) for one in found)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no record of commands ({error!r}); delete it") from error
    if not harmless:
        raise UserError(f"{path} holds other commands than those of latentdd; delete it")
    return found


def _is_one(command: str) -> bool:
    words = shlex.split(command)
    return words[:1] == ["latentdd"] and shlex.join(words) == command


def _file(made: Path) -> Path:
    return made.with_name(f"{made.name}.{NAME}") if made.is_file() else made / NAME


def _public(value: str, option: str) -> str:
    placeholder = _STANDS_FOR.get(re.split(r"[.-]", option)[-1])

    def named(path: re.Match[str]) -> str:
        _, below, name = path[0].rstrip("/").rpartition("/")
        home = os.path.expanduser(path[0].rstrip("/")) == os.path.expanduser("~")
        return placeholder or (name if below and not home else "PATH")

    pattern = _WHOLE if _WHOLE.match(value) else _WITHIN
    return pattern.sub(named, value)
