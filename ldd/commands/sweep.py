"""`latentdd sweep`: one run for each combination of named settings and each seed, then a table and a plot."""

from collections.abc import Sequence

from ldd.runs.ending import Ending
from ldd.runs.options import parse
from ldd.runs.parser import Parser
from ldd.sweeps.running import sweep


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb; what follows `--` goes to every cell."""
    own, extra = list(arguments), list[str]()
    if "--" in own:
        split = own.index("--")
        own, extra = own[:split], own[split + 1 :]
    parser = Parser(
        prog=f"latentdd {verb}",
        description=(sweep.__doc__ or "").partition("\n\n    Args")[0],
        usage="latentdd sweep --config SWEEP.yaml --out DIR [--jobs N] [--dry_run true] [-- options of latentdd fit]",
    )
    parser.add_function_arguments(sweep, skip={"extra", "typed"}, as_positional=False)
    return sweep(**vars(parse(parser, own)), extra=extra, typed=[verb, *arguments])
