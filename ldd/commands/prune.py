"""`latentdd prune`: score the training images once, see what a share of them looks like, and keep the table."""

from collections.abc import Sequence
from pathlib import Path

import rich

from ldd.data import DistillationData, Pruner
from ldd.data.pruning import RankedPruner, write_lists
from ldd.data.pruning.picture import draw_scores
from ldd.data.splits import readable
from ldd.disk.files import atomic_file, check_writable
from ldd.disk.locks import writing, writing_in
from ldd.errors import UserError
from ldd.runs.ending import Ending, fit_on, given
from ldd.runs.history import record_command
from ldd.runs.options import instantiate, parse
from ldd.runs.parser import Parser


def prune(
    data: DistillationData,
    pruner: Pruner,
    out: str,
    picture: str | None = None,
    lists: str | None = None,
    lists_prefix: str = "",
) -> Ending:
    """Score the training images, select some, and write the table; a run with the same pruner reuses the scores.

    Args:
        data: real images; only the files of the training split are read (its own pruner, if any, is not asked).
        pruner: the criterion and what it keeps.
        out: Parquet file for the table.
        picture: PNG file for the histogram and the two ends of each class; null puts it next to the table.
        lists: folder for JSON lists of the kept images, in the released code's format; null writes none.
        lists_prefix: put before each path of the lists, which are relative to the data's root, e.g. "/data/imagenet/".

    Raises:
        UserError: settings, images or files that cannot be used.
    """
    drawn = Path(picture) if picture is not None else Path(out).with_suffix(".png")
    if drawn == Path(out):
        raise UserError(f"out ({out}) and picture ({drawn}) are one file; name the table *.parquet")
    if lists is not None and not isinstance(pruner, RankedPruner):
        raise UserError(f"lists={lists!r}: {type(pruner).__name__} does not order images; leave --lists out")
    if not lists and lists_prefix:
        raise UserError(f"lists_prefix={lists_prefix!r} needs --lists DIR")
    for folder in (Path(out).parent, drawn.parent, *([] if lists is None else [Path(lists)])):
        check_writable(folder)
    items = data.source.items("train")
    if data.on_error == "skip":
        items = readable(data.source, items)
    table = pruner.prune(data.source, items, data.spec, data.seed)
    table.save(out)
    with writing(drawn), atomic_file(drawn) as beside:
        draw_scores(table, data.source, data.classes).save(beside, format="PNG")
    made = [out, str(drawn)]
    if lists is not None and isinstance(pruner, RankedPruner):
        with writing_in(lists, "lists"):
            write_lists(Path(lists), table, data.classes, pruner.selection, lists_prefix)
        made.append(lists)
    rich.print(table.tabulate())
    print(f"data fingerprint {table.fingerprint}")
    return Ending(made)


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    parser = Parser(prog=f"latentdd {verb}", description=(prune.__doc__ or "").partition("\n")[0])
    parser.add_class_arguments(DistillationData, "data", sub_configs=True)
    parser.add_function_arguments(prune, skip={"data"}, as_positional=False, sub_configs=True)
    options = parse(parser, arguments)
    with writing(options.out):
        ending = prune(**vars(instantiate(parser, options)))
        record_command(options.out, [verb, *arguments])
    pruner = [word.replace("--pruner", "--data.pruner", 1) for word in given("--pruner", arguments)]
    return ending._replace(next=(*fit_on(options.data), *pruner))
