"""`latentdd federate`: a task in sub-tasks of some classes each, distilled independently and merged into one set."""

from collections.abc import Sequence

from ldd.federation.jobs import Machines
from ldd.federation.running import federate
from ldd.runs.ending import Ending
from ldd.runs.options import parse
from ldd.runs.parser import Parser


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb; options that are not its own go to the recipe."""
    parser = Parser(
        prog=f"latentdd {verb}", description=(federate.__doc__ or "").partition("\n\n    Args")[0]
    )
    own_names = parser.add_function_arguments(
        federate, skip={"machines", "settings", "typed"}, as_positional=False
    )
    of_machines = parser.add_class_arguments(Machines, as_positional=False)
    known = {option for action in parser._actions for option in action.option_strings}
    own, settings = split(arguments, known)
    options = parse(parser, own)
    machines = Machines(**{name: options[name] for name in of_machines})
    return federate(
        machines, **{name: options[name] for name in own_names}, settings=settings, typed=[verb, *arguments]
    )


def split(arguments: Sequence[str], known: set[str]) -> tuple[list[str], list[str]]:
    """Return the command's own words and the recipe's: every option with the values that follow it."""
    own: list[str] = []
    others: list[str] = []
    part = own
    for word in arguments:
        if word == "--":
            continue
        if word.startswith("--") or word == "-h":
            part = own if word.partition("=")[0] in known else others
        part.append(word)
    return own, others
