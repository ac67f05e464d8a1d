"""The parser of a command line, taken out before anything runs; commands that are parsed and not run."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from ldd import cli
from ldd.commands.federate import split
from ldd.disk.shipped import with_shipped_files
from ldd.sweeps.file import Sweep

FILES = {
    "RECIPE.yaml": "configs/quickstart.yaml",
    "PRIOR.yaml": "configs/prior/digits.yaml",
    "FILE.yaml": "configs/prior/digits.yaml",
    "DATA.yaml": "configs/data/digits.yaml",
    "LABELS.yaml": "configs/labels/expert.yaml",
    "recipes/mine/prior.yaml": "configs/prior_training/folder.yaml",
    "recipes/mine/fit.yaml": "configs/folder.yaml",
    "SEED": "0",
    "IPC": "1",
    "N": "1",
}
"""Placeholders -> what a reader could put there."""

OWN = (
    *("--subtasks", "--workers", "--out", "--engine", "--only", "--address", "--partition", "--retries"),
    *("--overlap", "--joint_steps"),
)


class Parsed(BaseException):  # past all that a verb answers for
    """Ends a command when its options have been understood."""


class _Parser(Exception):
    """Carries the parser of a command line out of Lightning, which would run what it parses."""


def parser_of(command_line, *arguments, **options):
    class Stopped(command_line):
        def parse_arguments(self, parser, args):
            raise _Parser(parser)

    with pytest.raises(_Parser) as stopped:
        Stopped(*arguments, **options)
    return stopped.value.args[0]


@contextmanager
def parsing_only(parser=ArgumentParser):
    """A parser that ends with `Parsed` in place of going on."""
    with pytest.MonkeyPatch.context() as patch:
        original = parser.parse_args

        def parse(self, *arguments, **options):
            patch.setattr(parser, "parse_args", original)
            original(self, *arguments, **options)
            raise Parsed

        patch.setattr(parser, "parse_args", parse)
        with pytest.raises(Parsed):
            yield patch


def understood(words):
    """Have a verb parse its options; that the runs which a page names are not there is no matter."""
    with parsing_only() as patch:
        patch.setattr(cli, "_missing_file", lambda *_: None)
        cli.main(list(words))


def parse(words, fit_parser):
    """Parse one command of this project as far as its own parser does."""
    verb, rest = words[0], with_shipped_files(words[1:])
    if verb == "federate":
        own, settings = split(rest, {*OWN, "--cpus_per_job", "--memory_per_job", "--overwrite"})
        understood(["federate", *own])
        if any(word == "--config" for word in settings):
            fit_parser.parse_args(["fit", *settings])
    elif verb == "sweep":
        understood(words)
        if "--" in rest:
            cell = Sweep.load(rest[rest.index("--config") + 1]).cells(Path(), rest[rest.index("--") + 1 :])[0]
            fit_parser.parse_args(cell.command()[:-2])
    elif verb in ("fit", "validate", "plan"):
        # These two print what was parsed, or take it apart, before they run.
        settings = [word for word in rest if word not in ("--print_config", "--json")]
        fit_parser.parse_args(["validate" if verb == "validate" else "fit", *settings])
    else:
        understood(words)
