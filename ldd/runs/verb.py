"""Running one verb: YAML is guarded, a function's signature is the command line, errors become exit codes."""

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_loader

# What `set_loader` replaces; there are no public names.
from jsonargparse._loaders_dumpers import get_yaml_default_loader, yaml_load

from ldd.artefact.location import located
from ldd.disk.hub import is_address
from ldd.disk.locks import writing
from ldd.disk.shipped import with_shipped_settings
from ldd.disk.stores import as_named, sent
from ldd.disk.text import check_expansion
from ldd.errors import LostRankError, UserError
from ldd.runs.ending import Ending, without
from ldd.runs.history import record_command
from ldd.runs.options import instantiate, parse
from ldd.runs.parser import Parser
from ldd.runtime.processes import requeue, signals_interrupt

Main = Callable[[str, Sequence[str]], Ending]
"""What runs a verb: called with its name as typed and its arguments, it returns what is said at the end."""

_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What PyYAML raises for text that it takes for YAML but cannot make a value of (`!!timestamp x`, `2001-99-99`)."""


def run_verb(verb: str, main: Main, arguments: Sequence[str]) -> int:
    """Run one verb in this process and return its exit code: 2 for a user's mistake, 1 for a defect, 128 + a signal."""
    sys.argv = [sys.argv[0], verb, *arguments]  # Lightning reads these, and starts other ranks with them
    guard_yaml()
    received: list[int] = []
    try:
        with signals_interrupt(received):
            with sent():
                ending = main(verb, arguments)
            ending.tell()
    except BrokenPipeError:
        raise
    except UserError as error:
        code, said = 2, f"error: {error}"
    except UnicodeDecodeError as error:
        code, said = 2, f"error: a configuration file is not UTF-8 text ({error})"
    except LostRankError as error:
        code, said = 1, f"error: {error}"
    except KeyboardInterrupt:
        number = received[-1] if received else signal.SIGINT
        if number == signal.SIGUSR1 and verb == "fit":  # too early for the run to do it
            requeue()
        code, said = 128 + number, "interrupted"
    except Exception:
        traceback.print_exc()
        code, said = 1, "a defect of the program; please report it, with the lines above and the command"
    else:
        return 0
    print(f"latentdd {verb}: {said}", file=sys.stderr)
    return code


def run_function(
    function: Callable[..., Ending],
    verb: str,
    arguments: Sequence[str],
    *,
    path: str
    | None = "Folder of a distilled set or of its run, embedded:NAME, hf://user/name, or a URL in a store.",
    data: bool = False,
    typed: Sequence[str] | None = None,
    place: Callable[[str], Path] | None = None,
) -> Ending:
    """Parse `arguments` by the signature of `function`, call it, and record the command in what `--out` names.

    Meanwhile no other process writes there. `path` is the help of the parameter of that name, which is positional, as
    no other is; None without one. With `data` the parameter of that name is a `DistillationData`, given as `--data
    FILE` and `--data.KEY VALUE`; where it may be left out (default None), it is built only when such an option is
    there. `typed` is what is recorded, where the verb has added words to the arguments; `place` gives `out` for the
    path of a set or run, where none is named. Returned is what the function returns, with the data that were named in
    the place of `DATA`.
    """
    parser = Parser(prog=f"latentdd {verb}", description=(function.__doc__ or "").partition("\n")[0])
    skip = set[str | int]()
    if path is not None:
        parser.add_argument("path", type=str, help=path)
        skip.add("path")
    if data:
        skip.add("data")
        needed = signature(function).parameters["data"].default is not None
        if needed or any(word.startswith(("--data", "-h", "--help")) for word in arguments):
            from ldd.data import DistillationData  # here: verbs without data need not wait for its imports

            parser.add_class_arguments(DistillationData, "data")
    parser.add_function_arguments(function, skip=skip, as_positional=False, sub_configs=True)
    options = parse(parser, arguments)
    if place is not None and options.out is None:
        options.out = str(place(options.path))
    out, in_parts = options.get("out"), options.get("part") is not None
    if in_parts:
        refuse_made(out)
    # Processes that do parts of one file know of each other by the parts' own locks.
    with nullcontext() if out is None or in_parts else writing(out):
        ending = function(**vars(instantiate(parser, options)))
        if out is not None and (ending.made or not in_parts):
            named = path is not None and not is_address(
                options.path
            )  # what made a set on a hub is not recorded there
            command = [verb, *(without("--part", arguments) if typed is None else typed)]
            record_command(out, command, source=located(options.path) if named else None)
    return ending.after(arguments)


def refuse_made(out: str) -> None:
    """Raise if the file that is to be made in parts is there already, or lies where parts cannot see each other."""
    if (url := as_named(out)) != out:
        raise UserError(f"out ({url}): parts share a folder; name one on a disk that all machines see")
    if Path(out).exists():
        raise UserError(f"out ({out}) is there already; delete it to make it anew, or name another file")


def guard_yaml() -> None:
    """Let every parser of jsonargparse answer unreadable YAML with exit code 2 in place of a traceback."""
    set_loader("yaml", _load_yaml, _YAML_ERRORS)
    # Defaults of Lightning's classes, Timer's for instance, are members of enumerations.
    yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def _load_yaml(text: str) -> Any:  # noqa: ANN401 - any value
    if text.isascii() and text.isalnum():  # most options: nothing to bound
        return yaml_load(text)  # type: ignore[no-untyped-call]
    check_expansion(text, get_yaml_default_loader())  # type: ignore[no-untyped-call]
    return with_shipped_settings(yaml_load(text))  # type: ignore[no-untyped-call]
