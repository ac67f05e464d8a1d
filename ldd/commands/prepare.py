"""`latentdd prepare`: decode the images of all splits once, alone or in parts on many machines."""

from collections.abc import Sequence

from ldd.data import DistillationData
from ldd.disk.parts import parse_part
from ldd.runs.ending import Ending, fit_on
from ldd.runs.options import instantiate, parse
from ldd.runs.parser import Parser


def prepare(data: DistillationData, part: str | None = None) -> Ending:
    """Decode the images of all splits into data.cache_dir and hash their files, so that runs start at once.

    Args:
        data: real images, with a cache_dir; the pruner is not asked (`latentdd prune` scores).
        part: K/N does the K-th of N parts, on any machine that sees cache_dir, and the last of them joins all; join
            joins what is there, or names what is missing. Null does everything that is missing.

    Raises:
        UserError: no cache_dir, images that cannot be used, or parts that do not fit together.
    """
    return Ending(data.prepare(None if part is None else parse_part(part)))


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    parser = Parser(prog=f"latentdd {verb}", description=(prepare.__doc__ or "").partition("\n")[0])
    parser.add_class_arguments(DistillationData, "data", sub_configs=True)
    parser.add_function_arguments(prepare, skip={"data"}, as_positional=False)
    options = parse(parser, arguments)
    ending = prepare(**vars(instantiate(parser, options)))
    cached = ("--data.cache_dir", options.data.cache_dir)
    return ending._replace(next=(*fit_on(options.data), *cached)) if ending.made else ending
