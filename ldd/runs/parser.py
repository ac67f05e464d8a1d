"""The parser of every verb, whose errors take one line and name what was probably meant."""

import argparse
import re
import sys
from importlib import import_module
from inspect import isclass, signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from ldd.disk.shipped import near

_HELP = {
    "ckpt_path": "checkpoint to go on with: a file, `last` for the newest of the run's folder, or `auto` for that if "
    "there is one and a new run if not.",
    "seed_everything": "seed of everything random; a number, since a run must be repeatable.",
}
"""Help on options that mean less, or more, here than in Lightning."""


_ABOUT = {
    "latentdd fit": "Distil a data set, for instance: latentdd fit --config quickstart --trainer.max_steps 20. "
    "--trainer.limit_val_batches 0 leaves the evaluation out. ",
    "latentdd validate": "Evaluate the codes of a checkpoint, for instance: latentdd validate --config quickstart "
    "--ckpt_path last. Give the options that the run had. ",
    "latentdd prior train": "Train a prior on your own images, for instance: latentdd prior train "
    "--config prior_training/digits. ",
}

_RECIPES = (
    "Recipes are named as `latentdd configs` lists them, or by a path; options go over them. --print_config shows the "
    "result."
)


class Parser(ArgumentParser):
    """`ArgumentParser` whose errors are short."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say how to see the options and what is wrong, and end with code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        sys.stderr.write(f"{parser.prog.replace(' [options]', '')} --help lists the options\n")
        typed = {one.dest: one.option_strings[-1] for one in parser._actions if one.option_strings}
        said = re.sub(r'Parser key "([\w.]+)"', lambda key: typed.get(key[1], key[0]), message.rstrip())
        sys.stderr.write(f"error: {said}{_meant(message, parser)}\n")
        self.exit(2)

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - jsonargparse's own signature
        """Add a class's arguments; a network that is the default can be given arguments, also where a list could be."""
        added = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if isclass(default := action.default):
                action.default = {"class_path": f"{default.__module__}.{default.__qualname__}"}
        return added


def recording_parser() -> tuple[Parser, list[str]]:
    """Return the parser of `latentdd experts`, and the names of its options that are arguments of `record_experts`."""
    from ldd.data import DistillationData  # here: most verbs need not wait for their imports
    from ldd.experts.recording import record_experts

    parser = Parser(
        prog="latentdd experts",
        description="Train networks on the core-set and keep their weights after every epoch. The same command "
        "continues a recording that was stopped.",
    )
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_class_arguments(DistillationData, "data")
    return parser, parser.add_function_arguments(record_experts, skip={"data", "wait"}, as_positional=False)


def arrange(parser: ArgumentParser, program: str, verb: str) -> None:
    """Give the parser of a run a usage of one line, and let its help show our sections before Lightning's."""
    parser.usage = f"{program} --config RECIPE [options]"
    parser.description = _ABOUT.get(program, "") + _RECIPES
    trainer = (parser.groups or {})["trainer"]
    trainer.title = "Lightning's trainer"
    groups: list[Any] = [group for group in parser._action_groups if group is not trainer]
    if verb:
        groups[-1].title = f"How to {verb}"
    parser._action_groups = [*groups, trainer]
    for action in parser._actions:
        action.help = _HELP.get(action.dest, action.help)


def _found_where(module: str) -> str:
    """Return how a module is found that Python has not found."""
    there = Path(f"{module}.py").is_file() or Path(module).is_dir()
    which = f"the {module} in this folder" if there else "a module of your own"
    where = "PYTHONPATH=. stands before the command" if there else "PYTHONPATH names its folder"
    return f"; {which} is found where {where}, or where it is installed"


def _meant(message: str, parser: argparse.ArgumentParser) -> str:
    """Return words on what was meant: an option, an argument of a class, a class, one of few values, a recipe."""
    if module := re.search(r"No module named '(\w+)'", message):
        return _found_where(module[1])
    if numbers := re.search(
        r"Expected a <class '(?:list|tuple)'>.*value: ([-\d., e]+)$", message.strip(), re.DOTALL
    ):
        return f"; a list is written in brackets: [{','.join(re.findall('[-.0-9e]+', numbers[1]))}]"
    if option := re.search(r"unrecognized arguments: .*?(--[\w.-]+)", message, re.IGNORECASE):
        return near(option[1], (name for action in parser._actions for name in action.option_strings))
    if choice := re.search(r"Literal\[(.*?)\].*Got value: (.*)", message, re.DOTALL):
        return near(choice[2].strip(), re.findall(r"'(.*?)'", choice[1]))
    if argument := re.search(r"class_path '([\w.]+)':\s+.*?'(\w+)' is not accepted", message, re.DOTALL):
        return near(argument[2], signature(resolve_name(argument[1])).parameters)
    if name := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return near(name[2], (known for known in dir(import_module(name[1])) if known[0] != "_"))
    if "required: " in message and "--config" in parser._option_string_actions:
        return "; name a recipe, for instance --config quickstart (latentdd configs lists them)"
    return ""
