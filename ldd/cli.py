"""The command line: `latentdd VERB ...`, the same as `python -m ldd VERB ...`.

`fit` and `validate` run through LightningCLI; the other verbs are plain functions through jsonargparse.
A user's mistake ends with exit code 2 and one message, Ctrl-C with 130.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise, zip_longest
from pathlib import Path

import ldd
from ldd.artefact.location import located
from ldd.disk.hub import is_address
from ldd.disk.shipped import near, near_files, with_shipped_files
from ldd.disk.stores import is_url
from ldd.errors import UserError
from ldd.runs.ending import Ending
from ldd.runs.verb import run_verb
from ldd.runtime.allocation import keep_freed_blocks

HELP = Path(__file__).parent / "commands" / "help"
"""Help of each verb as its parser prints it, 100 columns wide."""

_OF_A_RECIPE = ("fit", "validate", "plan", "federate")

_OF_A_SET = ("rediffuse", "label", "label-crops", "evaluate", "check", "train", "export", "inspect", "report")

VERBS = {
    "fit": ("ldd.commands.fit", "distil a data set: codes, checkpoints, artefact, evaluation"),
    "init": ("ldd.commands.init", "write recipes that suit your own folder of images, and say the minutes"),
    "validate": ("ldd.commands.fit", "evaluate the codes of a checkpoint"),
    "plan": ("ldd.commands.plan", "predict a run's time, memory and disk from a few of its own steps"),
    "prepare": ("ldd.commands.prepare", "decode the images into a cache, alone or in parts on many machines"),
    "prune": ("ldd.commands.prune", "score the real images and show what a pruner keeps"),
    "experts": ("ldd.commands.experts", "record expert trajectories for trajectory matching"),
    "prior": (
        "ldd.commands.prior",
        "train a prior, convert a checkpoint, draw samples, compare priors on your data",
    ),
    "sweep": ("ldd.commands.sweep", "run a recipe over named variants and seeds: one table, one plot"),
    "federate": ("ldd.commands.federate", "distil classes in sub-tasks, in parallel, and merge the sets"),
    "rediffuse": (
        "ldd.commands.rediffuse",
        "send a finished set through a frozen diffusion model once more",
    ),
    "label": ("ldd.commands.label", "give a distilled set soft labels by an expert or another teacher"),
    "label-crops": (
        "ldd.commands.label_crops",
        "store a teacher's label of every crop that students will see",
    ),
    "evaluate": ("ldd.commands.evaluate", "train unseen networks on a distilled set and test them"),
    "check": (
        "ldd.commands.check",
        "check a set's images: copies, coverage, distance of features, confusion",
    ),
    "train": ("ldd.commands.train", "use a distilled set: train one network on it and save its weights"),
    "export": ("ldd.commands.export", "convert a distilled set to files that other programs read"),
    "import": ("ldd.commands.import_set", "make a distilled set of another program's files"),
    "report": ("ldd.commands.report", "one self-contained HTML page on one or several runs"),
    "status": ("ldd.commands.status", "show where runs, sweeps and federations stand, and what to type next"),
    "inspect": ("ldd.commands.inspect", "show what a distilled set holds and check its hashes"),
    "configs": ("ldd.commands.configs", "list the shipped recipes and components, or copy them"),
    "doctor": ("ldd.commands.doctor", "show versions, devices, memory and caches, and what is missing"),
    "completion": ("ldd.commands.completion", "print a script by which bash or zsh completes commands"),
}
"""Verb -> (module with a function `main(verb, arguments)`, help)."""


FLAGS = ("--json", "--overwrite", "--dry_run", "--private")
"""Options that may stand without a value (the parser itself wants `--json true`)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: without the program's name; None takes the process's.

    Returns:
        Exit code.
    """
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough (`latentdd configs | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"latentdd {ldd.__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        meant = near(verb, VERBS, 0.6) or f"; choose from {', '.join(VERBS)}"
        print(f"latentdd: error: unknown command {verb!r}{meant}", file=sys.stderr)
        return 2
    if (known := stored_help(arguments)) is not None:
        print(known, end="")
        return 0
    if verb in _OF_A_RECIPE and not rest:
        print(
            f"latentdd {verb}: error: name a recipe, for instance latentdd {verb} --config quickstart; "
            f"latentdd configs lists them, latentdd {verb} --help the options",
            file=sys.stderr,
        )
        return 2
    try:
        rest = with_shipped_files(_with_values(rest))
        missing = _missing_file(verb, rest)
    except UserError as error:  # a recipe at a URL that cannot be had, or a set that is not in the package
        missing = str(error)
    if missing:
        print(f"latentdd {verb}: error: {missing}", file=sys.stderr)
        return 2
    keep_freed_blocks()
    return run_verb(verb, _load_and_run, rest)


def _load_and_run(verb: str, arguments: Sequence[str]) -> Ending:
    """Import the verb where `run_verb` answers signals: that takes seconds, in which a job may be told to stop."""
    ending: Ending = importlib.import_module(VERBS[verb][0]).main(verb, arguments)
    return ending


def stored_help(arguments: Sequence[str]) -> str | None:
    """Return the help that `VERB --help` prints, as it was stored; None where it must come from the parser.

    A parser of `fit` needs seconds of imports to name its options. `tests/helpers/help_texts.py` stores what all
    parsers print, and a test compares it with them.
    """
    *words, last = arguments
    file = HELP / f"{'-'.join(words)}.txt"
    if last not in ("-h", "--help") or not file.is_file():
        return None
    made_with = json.loads((HELP / "made_with.json").read_text(encoding="utf-8"))
    return file.read_text(encoding="utf-8") if made_with == help_versions() else None


def help_versions() -> dict[str, str]:
    """Return the versions of other packages on which the text of the help depends."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python, **{name: version(name) for name in ("jsonargparse", "lightning")}}


def _missing_file(verb: str, arguments: Sequence[str]) -> str | None:
    """Say which configuration or set is not there before seconds of imports; their readers check the rest."""
    for before, word in pairwise(["", *arguments]):
        option, value = before if before.startswith("-") and "=" not in before else "", word
        if word.startswith("-"):
            option, _, value = word.partition("=")
        named = option in ("--config", "-c") or (
            option not in ("", "--out") and value.endswith((".yaml", ".yml"))
        )
        if named and value and not os.path.isfile(os.path.expanduser(value)):
            proposed = near_files(value) or "; check the path, or take a name that latentdd configs lists"
            return f"{option} ({value}) does not exist{proposed}"
        if option or verb not in _OF_A_SET or is_address(value) or is_url(value):
            continue
        if not os.path.exists(os.path.expanduser(located(value))):
            return f"{value} does not exist; name a distilled set or the folder of a finished run"
    return None


def _with_values(arguments: list[str]) -> list[str]:
    given = []
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        given += [word, "true"] if word in FLAGS and following not in ("true", "false") else [word]
    return given


def _help() -> str:
    verbs = "\n".join(f"  {verb:<13}{text}" for verb, (_, text) in VERBS.items())
    return (
        f"usage: latentdd COMMAND [options]\n\nlatentdd {ldd.__version__}: dataset distillation through frozen "
        f"latent diffusion models\n\ncommands:\n{verbs}\n\n"
        "latentdd COMMAND --help shows the options of one; latentdd --version the version.\n"
        "first run: latentdd fit --config quickstart"
    )


if __name__ == "__main__":
    sys.exit(main())
