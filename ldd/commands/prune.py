"""`latentdd prune`: score the training images once, see what a share of them looks like, and keep the table."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rich
from jsonargparse import ArgumentParser
from rich.table import Table

from ldd.data import DistillationData, Item, Pruner, ScoreTable, Source, UnreadableImage
from ldd.data.pruning import RankedPruner, write_lists
from ldd.data.pruning.picture import draw_scores
from ldd.disk.files import atomic_file
from ldd.errors import UserError
from ldd.runs.history import record_command

_LISTED = 50  # classes in the printed table


def prune(
    data: DistillationData,
    pruner: Pruner,
    out: str,
    picture: str | None = None,
    lists: str | None = None,
    lists_prefix: str = "",
) -> None:
    """Score the training images, select some, and write the table; a run with the same pruner reuses the scores.

    Args:
        data: real images; only the files of the training split are read (its own pruner, if any, is not asked).
        pruner: the criterion and what it keeps.
        out: Parquet file for the table.
        picture: PNG file for the histogram and the two ends of each class; null puts it beside the table.
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
    items = data.source.items("train")
    if data.on_error == "skip":
        items = readable(data.source, items)
    table = pruner.score(data.source, items, data.spec, data.seed)
    table = table.with_kept(pruner.keep(table))
    table.save(out)
    with atomic_file(drawn) as beside:
        draw_scores(table, data.source, data.classes).save(beside, format="PNG")
    written = [out, str(drawn)]
    if lists is not None and isinstance(pruner, RankedPruner):
        files = write_lists(Path(lists), table, data.classes, pruner.selection, lists_prefix)
        written.append(f"{len(files)} lists in {lists}")
    rich.print(summary(table))
    print(f"written: {', '.join(written)}; data fingerprint {table.fingerprint}")


def summary(table: ScoreTable) -> Table:
    """Images and kept ones of each class, with the criterion's range; the last line is all together."""
    assert table.kept is not None
    kept = np.zeros(len(table), dtype=np.bool_)
    kept[table.kept.numpy()] = True
    shown = Table(title=f"kept by {table.facts.criterion}")
    for name in ("label", "class", "images", "kept", f"{table.facts.criterion} kept", "of all"):
        shown.add_column(name, justify="left" if name == "class" else "right")
    labels = np.unique(table.labels)
    for label in labels[:_LISTED].tolist():
        mine = table.labels == label
        shown.add_row(str(label), table.wnid(label), *_counts(table, mine, kept))
    if len(labels) > _LISTED:
        shown.add_row("", f"{len(labels) - _LISTED} more", "", "", "", "")
    shown.add_section()
    shown.add_row("", "all", *_counts(table, np.ones_like(kept), kept))
    return shown


def _counts(table: ScoreTable, mine: np.ndarray, kept: np.ndarray) -> tuple[str, ...]:
    spans = [
        f"{part.min():.3g} to {part.max():.3g}" for part in (table.values[mine & kept], table.values[mine])
    ]
    return (str(int(mine.sum())), str(int((mine & kept).sum())), *spans)


def readable(source: Source, items: Sequence[Item]) -> list[Item]:
    """The items that can be decoded; the others are named.

    Raises:
        UserError: a class has none.
    """

    def try_to_read(item: Item) -> str | None:
        try:
            source.read(item)
        except UnreadableImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(try_to_read, items))
    for reason in filter(None, reasons):
        print(f"left out: {reason}")
    good = [item for item, reason in zip(items, reasons, strict=True) if reason is None]
    for label in sorted({item.label for item in items} - {item.label for item in good}):
        raise UserError(
            f"class {source.classes[label].wnid!r}: none of its images can be read; repair or remove it"
        )
    return good


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb."""
    parser = ArgumentParser(prog=f"latentdd {verb}", description=(prune.__doc__ or "").partition("\n")[0])
    parser.add_class_arguments(DistillationData, "data", sub_configs=True)
    parser.add_function_arguments(prune, skip={"data"}, as_positional=False, sub_configs=True)
    options = parser.instantiate(parser.parse_args(list(arguments)))
    prune(**vars(options))
    record_command(options.out, [verb, *arguments])
