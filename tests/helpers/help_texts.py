"""Store what the parser of each verb prints for `--help`: `python tests/helpers/help_texts.py [FOLDER]`."""

import importlib
import io
import json
import os
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

from ldd import cli
from ldd.commands.prior import ACTIONS
from ldd.runs.verb import guard_yaml

COMMANDS = [(verb,) for verb in cli.VERBS if verb != "prior"] + [("prior", action) for action in ACTIONS]


def printed_help(command):
    """In a process of its own: the classes that a parser lists are those that have been imported."""
    out, into = os.pipe()
    if (child := os.fork()) == 0:
        os.environ["COLUMNS"] = "100"
        text = io.StringIO()
        verb, *rest = command
        with redirect_stdout(text), suppress(SystemExit):
            sys.argv = ["latentdd", *command, "--help"]  # LightningCLI reads them
            guard_yaml()
            importlib.import_module(cli.VERBS[verb][0]).main(verb, [*rest, "--help"])
        with os.fdopen(into, "w") as pipe:
            pipe.write(text.getvalue())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else cli.HELP)
    for library in ("lightning.pytorch.cli", "diffusers", "torchvision"):
        importlib.import_module(library)  # once for all the forked processes
    folder.mkdir(exist_ok=True)
    for command in COMMANDS:
        (folder / f"{'-'.join(command)}.txt").write_text(printed_help(command), encoding="utf-8")
    (folder / "made_with.json").write_text(json.dumps(cli.help_versions()) + "\n", encoding="utf-8")
