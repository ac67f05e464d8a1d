"""The record of commands: every verb leaves its own in `commands.json` of what it makes, and the report shows them."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ldd import __version__
from ldd.disk.files import read_json, write_json
from ldd.disk.public import public_command
from ldd.disk.stores import as_named
from ldd.errors import UserError

NAME = "commands.json"
"""Name of the record in a folder; next to a single file it is `<file>.commands.json`."""


class Recorded(NamedTuple):
    """A command as `commands.json` has it: the verb, the whole line for a shell, and the package's version."""

    verb: str
    command: str
    version: str


def record_command(
    made: Path | str, arguments: Sequence[str], *, source: Path | str | None = None, anew: bool = False
) -> None:
    """Add a command to those that made a file or a folder, after those that made its `source`; none is repeated.

    The record of an earlier file of this name is dropped, and with `anew` a folder's record too.
    """
    found: list[Recorded] = []
    for place in (source, None if anew or Path(made).is_file() else made):
        with suppress(UserError):  # damaged; what was made is worth keeping all the same
            found += [] if place is None else recorded_commands(place)
    found.append(Recorded(arguments[0], public_command([as_named(word) for word in arguments]), __version__))
    written = [
        {"verb": verb, "command": command, "package_version": version}
        for verb, command, version in dict.fromkeys(found)
    ]
    write_json(_file(Path(made)), written)


def recorded_commands(made: Path | str) -> list[Recorded]:
    """Return the commands that made a file or a folder, in order; empty where nothing was recorded."""
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
        raise UserError(f"{path} is not a record of commands ({error!r}); delete it") from error
    if not harmless:
        raise UserError(f"{path} holds commands that are not latentdd's; delete it")
    return found


def _is_one(command: str) -> bool:
    words = shlex.split(command)
    return words[:1] == ["latentdd"] and shlex.join(words) == command


def _file(made: Path) -> Path:
    return made.with_name(f"{made.name}.{NAME}") if made.is_file() else made / NAME
