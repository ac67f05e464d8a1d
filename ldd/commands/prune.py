"""`latentdd prune`: score the training images once, see what a share of them looks like, and keep the table."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import rich

from ldd.data import DistillationData, Pruner
from ldd.data.pruning import RankedPruner, write_lists
from ldd.data.pruning.picture import draw_scores
from ldd.data.sources import Item
from ldd.data.splits import pixels_key, readable
from ldd.disk.files import atomic_file, check_writable
from ldd.disk.locks import writing, writing_in
from ldd.disk.parts import Work, make_part, parse_part
from ldd.disk.shards import Shards
from ldd.errors import UserError
from ldd.runs.ending import Ending, fit_on, given, without
from ldd.runs.history import record_command
from ldd.runs.options import instantiate, parse
from ldd.runs.parser import Parser
from ldd.runs.verb import refuse_made


def prune(
    data: DistillationData,
    pruner: Pruner,
    out: str,
    picture: str | None = None,
    lists: str | None = None,
    lists_prefix: str = "",
    part: str | None = None,
    settings: str = "",
) -> Ending:
    """Score the training images, select some, and write the table; a run with the same pruner reuses the scores.

    Args:
        data: real images; only the files of the training split are read (its own pruner, if any, is not asked).
        pruner: the criterion and what it keeps.
        out: Parquet file for the table.
        picture: PNG file for the histogram and the two ends of each class; null puts it next to the table.
        lists: folder for JSON lists of the kept images, in the released code's format; null writes none.
        lists_prefix: put before each path of the lists, which are relative to the data's root, e.g. "/data/imagenet/".
        part: K/N scores the K-th of N parts, on any machine that sees the pruner's cache_dir and the folder of `out`,
            and the last of them writes the table; join writes it, or names what is missing. Null scores all.
        settings: what the processes that share the work have to agree on, as text.

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

    def write(items: Sequence[Item]) -> Ending:
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

    if part is not None:
        asked, listed = parse_part(part), data.readable("train")
        return make_part(_work(data, pruner, Path(out), listed, settings, write), asked) or Ending()
    items = data.source.items("train")
    return write(readable(data.source, items) if data.on_error == "skip" else items)


def _work(
    data: DistillationData,
    pruner: Pruner,
    out: Path,
    items: Sequence[Item],
    settings: str,
    write: Callable[[Sequence[Item]], Ending],
) -> Work[Ending]:
    """Return the scoring as work for the table: the scores themselves are kept by the pruner."""
    made: list[Ending] = []

    def add(shards: Shards, units: range) -> None:
        if units:
            pruner.share(data.source, items, data.spec, data.seed, units)
            shards.add([], len(units))

    def find() -> Ending | None:
        if made:
            return made[0]
        return Ending((str(out),)) if out.is_file() else None

    return Work(
        out,
        f"{settings}\n{pixels_key(data.source, items, data.spec.image_size)}",
        pruner.units(items),
        done=sum,
        add=add,
        finish=lambda shards: made.append(write(items)),
        find=find,
        contents="scores",
        argument="out",
        hidden=True,
    )


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    parser = Parser(prog=f"latentdd {verb}", description=(prune.__doc__ or "").partition("\n")[0])
    parser.add_class_arguments(DistillationData, "data", sub_configs=True)
    parser.add_function_arguments(prune, skip={"data", "settings"}, as_positional=False, sub_configs=True)
    options = parse(parser, arguments)
    if options.part is not None:
        refuse_made(options.out)
    with writing(options.out) if options.part is None else nullcontext():
        agreed = options.clone()
        agreed.part = None
        ending = prune(**vars(instantiate(parser, options)), settings=parser.dump(agreed))
        if ending.made:
            record_command(options.out, [verb, *without("--part", arguments)])
    if not ending.made:
        return ending
    pruner = [word.replace("--pruner", "--data.pruner", 1) for word in given("--pruner", arguments)]
    return ending._replace(next=(*fit_on(options.data), *pruner))
