"""Verbs that are plain functions: their signature is their command line."""

from collections.abc import Callable, Sequence
from inspect import signature

from jsonargparse import ArgumentParser

from ldd.data import DistillationData
from ldd.runs.command_line import refuse_nulls


def run_function(
    function: Callable[..., None],
    verb: str,
    arguments: Sequence[str],
    *,
    path: bool = True,
    data: bool = False,
) -> None:
    """Parse `arguments` by the signature of `function` and call it.

    Args:
        function: its docstring is the help.
        verb: as typed.
        arguments: of the verb.
        path: the parameter `path` is positional; all others are options.
        data: the parameter `data` is a `DistillationData`, given as `--data FILE` and `--data.KEY VALUE`; one that
            may be left out (default None) is built only when such an option is there.
    """
    optional = data and signature(function).parameters["data"].default is None
    given = any(argument.startswith("--data") for argument in arguments)
    parser = ArgumentParser(prog=f"latentdd {verb}", description=(function.__doc__ or "").partition("\n")[0])
    skip = set[str | int]()
    if path:
        parser.add_argument("path", type=str, help="Folder of a distilled set, or of the run that made it.")
        skip.add("path")
    if data:
        skip.add("data")
        if given or not optional or {"-h", "--help"} & set(arguments):
            parser.add_class_arguments(DistillationData, "data")
    parser.add_function_arguments(function, skip=skip, as_positional=False, sub_configs=True)
    options = parser.parse_args(list(arguments))
    refuse_nulls(parser, options)
    function(**vars(parser.instantiate_classes(options)))
