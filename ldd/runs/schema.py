"""JSON schemas of recipes and components, by which an editor completes and checks a YAML file as it is typed."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from ldd.codes import Codes
from ldd.data import DistillationData, Pruner
from ldd.distiller.module import Distiller
from ldd.distiller.rediffusion import Rediffusion
from ldd.errors import UserError
from ldd.evaluation import Labels
from ldd.initializers import Initializer
from ldd.objectives import Objective
from ldd.prior_training.module import PriorTraining
from ldd.priors import Prior
from ldd.runs.command_line import DistillationCLI, RunCLI
from ldd.runs.parser import Parser, recording_parser
from ldd.runs.prior import PriorTrainingCLI

RECIPE = "recipe"
"""What the schema of recipes of `latentdd fit` is called; the others are called like the folders of `configs`."""

_COMPONENTS: dict[str, type] = {
    "codes": Codes,
    "initializer": Initializer,
    "labels": Labels,
    "objective": Objective,
    "prior": Prior,
    "pruner": Pruner,
}

_FLAT: dict[str, type] = {"data": DistillationData, "rediffusion": Rediffusion}
"""Kinds of files that hold the arguments of one class, without its name."""

Schema = dict[str, Any]


def kinds() -> list[str]:
    """Return the kinds of files that there are schemas of."""
    return [RECIPE, "experts", "prior_training", *_FLAT, *_COMPONENTS]


def schema_of(kind: str) -> Schema:
    """Return the JSON schema (draft 2020-12) of one kind of YAML file.

    It comes from the parser that reads such files, so that options, types, choices, defaults and descriptions are
    those of `--help`. A class of this package has its arguments under each of its dotted names; other classes may have
    any.

    Raises:
        UserError: an unknown kind, or a jsonargparse without schemas.
    """
    for package in [content for name, content in sys.modules.items() if name.startswith("ldd.")]:
        for name in getattr(package, "__all__", ()):
            getattr(package, name)  # some are imported when they are asked for
    if kind == RECIPE:
        found = _of_parser(_parser_of(DistillationCLI, Distiller, "runs/default", []))
    elif kind == "prior_training":
        found = _of_parser(_parser_of(PriorTrainingCLI, PriorTraining, "runs/prior", []))
    elif kind == "experts":
        found = _of_parser(recording_parser()[0])
    elif kind in _FLAT:
        parser = Parser()
        parser.add_class_arguments(_FLAT[kind])
        found = _of_parser(parser)
    elif kind in _COMPONENTS:
        parser = Parser()
        parser.add_argument("--one", type=_COMPONENTS[kind])
        whole = _of_parser(parser)
        found = {**whole, **whole.pop("properties")["one"]}
        for key in ("type", "additionalProperties"):
            found.pop(key, None)
    else:
        raise UserError(f"schema ({kind}) is unknown; choose from {', '.join(kinds())}")
    return {"title": f"{kind} of latentdd", **found}


def _parser_of(command_line: type[RunCLI], model: type, folder: str, arguments: list[str]) -> ArgumentParser:
    """The parser of a command line that is built and not used."""

    class Built(Exception):
        """Carries it past all that would follow."""

    class Stopped(command_line):  # type: ignore[misc,valid-type]
        def parse_arguments(self, parser: ArgumentParser, args: object) -> NoReturn:
            raise Built(parser)

    try:
        Stopped(model, folder, arguments)
    except Built as built:
        parser: ArgumentParser = built.args[0]
        return parser
    raise AssertionError("every command line parses its arguments")


def _of_parser(parser: ArgumentParser) -> Schema:
    with _our_classes_alone():
        found: Schema = json.loads(parser.get_completion_script("jsonschema"))
    _walk(found, _without_required)
    _walk(found, _named_as_ours)
    for section in found.get("properties", {}).values():
        _walk(section, _file_or_settings)
    for one in found.get("$defs", {}).values():
        _class_or_settings(one)
    return found


@contextmanager
def _our_classes_alone() -> Iterator[None]:
    """Describe the arguments of no other package's classes: those of all of Lightning's and torch's fill megabytes.

    Raises:
        UserError: a jsonargparse without schemas.
    """
    try:
        library: Any = import_module("jsonargparse._completions_jsonschema")  # there is no public name
    except ImportError as error:
        raise UserError(
            "--schema needs jsonargparse 4.53 or newer; pip install --upgrade jsonargparse"
        ) from error
    every = library.get_all_subclass_paths

    def ours(kind: type) -> list[str]:
        mine = kind.__module__.partition(".")[0] == "ldd"
        return [path for path in every(kind) if path.startswith("ldd.")] if mine else []

    library.get_all_subclass_paths = ours
    try:
        yield
    finally:
        library.get_all_subclass_paths = every


def _walk(node: Any, change: Callable[[Schema], None]) -> None:  # noqa: ANN401 - any part of a schema
    """Change all objects of a schema, the inner ones first."""
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _walk(part, change)
    if isinstance(node, dict):
        change(node)


def _without_required(node: Schema) -> None:
    """What a file leaves out may come from another one, from an option, or from whoever builds a network."""
    if isinstance(node.get("required"), list):
        node["required"] = [name for name in node["required"] if name == "class_path"]


def _named_as_ours(node: Schema) -> None:
    """Let a class be named by every module that exports it, and classes of others have any arguments."""
    options = node.get("anyOf")
    if not isinstance(options, list):
        return
    named = [
        one["properties"]["class_path"]
        for one in options
        if isinstance(one, dict) and "class_path" in one.get("properties", {})
    ]
    ours = [path for path in named if "const" in path]
    if not ours:
        return
    for path in ours:
        path["enum"] = _names_of(path.pop("const"))
    name = {"type": "string", "not": {"pattern": r"^ldd\."}}
    foreign = {"class_path": name, "init_args": {"type": "object"}}
    options.append({"type": "object", "required": ["class_path"], "properties": foreign})


def _names_of(class_path: str) -> list[str]:
    """All dotted names of a class: of its own module, and of the packages that export it."""
    module, _, name = class_path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    exporting = [
        f"{other}.{name}"
        for other, content in list(sys.modules.items())
        if other.partition(".")[0] == "ldd"
        and (name in getattr(content, "__all__", ()) or name in vars(content))
        and found is not None
        and getattr(content, name) is found
    ]
    return list(dict.fromkeys([class_path, *sorted(exporting, key=len)]))


def _file_or_settings(node: Schema) -> None:
    """Let a section be the path of a file that holds it."""
    if node.get("type") == "object" and "properties" in node and "class_path" not in node["properties"]:
        settings = dict(node)
        node.clear()
        node["anyOf"] = [{"type": "string", "description": "path of a file with these settings"}, settings]


def _class_or_settings(node: Schema) -> None:
    """Let the one class that a setting can be stand with its name, too."""
    settings = dict(node)
    _file_or_settings(node)
    if node != settings:
        named = {"class_path": {"type": "string"}, "init_args": settings}
        node["anyOf"].append(
            {"type": "object", "required": ["class_path"], "properties": named, "additionalProperties": False}
        )
