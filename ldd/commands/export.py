"""`latentdd export`: a distilled set as files that other programs read."""

from collections.abc import Sequence
from pathlib import Path

from ldd.commands.plain import run_function
from ldd.distilled import DistilledSet
from ldd.formats import WRITERS, FormatName


def export(path: str, format: FormatName, out: str, overwrite: bool = False) -> None:
    """Convert a distilled set; its hashes are checked first.

    Args:
        path: folder of the set, or of the run that made it.
        format: imagefolder (a folder of PNG files per class and classes.json) or pt (for torch.load).
        out: folder to write, or for pt a file whose name ends in .pt.
        overwrite: replace an earlier export there.
    """
    distilled = DistilledSet.load(path)
    written = WRITERS[format](distilled, Path(out), overwrite)
    print(f"exported {len(distilled.images)} images of {distilled.num_classes} classes to {written}")


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb."""
    run_function(export, verb, arguments)
