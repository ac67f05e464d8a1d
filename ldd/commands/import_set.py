"""`latentdd import`: a set that another program made, as an artefact of ours, ready to be evaluated and exported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldd.artefact.uploads import is_upload
from ldd.disk.files import holds_files
from ldd.errors import UserError
from ldd.importers import RealData, read_set, shown
from ldd.runs.ending import Ending, ending_of_set
from ldd.runs.verb import run_function


def import_set(
    path: str,
    out: str,
    classes: str | None = None,
    data: RealData | None = None,
    labels: str | None = None,
    experiment: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    clamp: bool = False,
    reorder: bool = False,
    licence: str = "unknown",
    overwrite: bool = False,
) -> Ending:
    """Read a set from a .pt file (DC, MTT, GLaD, LD3M, ours), Parquet files or a folder of pictures, and save it.

    Args:
        path: a .pt file, a folder with images_best.pt and labels_best.pt, one with a folder a class, named by wnid,
            by number or by name, Parquet files (ours, RethinkDC's) or a folder of them, an export for DD-Ranking,
            codes (latentdd export --format codes), or hf://user/name, a repository with Parquet files.
        out: folder of the set that is written.
        classes: what the labels 0, 1, ... of the files mean: names separated by commas (cat,ship), a table (.json,
            .csv), a text file with one wnid a line, or the name of a published ImageNet subset; null where the files
            say so themselves, or where --data has the same order.
        data: real images that the set is to be used with; classes in another order are refused.
        labels: file of the labels, where it is not next to the images under its usual name.
        experiment: which one of a DC file, from 0.
        mean: per channel, of the normalisation of stored floats; null recognises it. For pictures, what networks
            subtract.
        std: the same for the standard deviation.
        clamp: move pixels that lie outside [0, 1] without their normalisation to its ends, instead of refusing them.
        reorder: renumber the labels where the classes of --data are the same in another order.
        licence: terms of the set, for its manifest.
        overwrite: replace the distilled set that is there.

    Raises:
        UserError: files of another form, an order of classes or a range of values that does not fit.
    """
    if holds_files(out) and not overwrite:
        raise UserError(f"--out ({out}) is not empty; name a new folder, or replace it with --overwrite true")
    of_others: dict[str, Any] = {"classes": classes, "data": data, "labels": labels, "experiment": experiment}
    of_others |= {"mean": mean, "std": std, "clamp": clamp, "reorder": reorder}
    if is_upload(Path(path)):
        return _decode(path, out, of_others)
    imported = read_set(path, licence=licence, **of_others)
    imported.save(out)
    facts = imported.manifest["imported"]
    print(
        f"imported {len(imported.images)} images of {imported.num_classes} classes: {facts['form']}; "
        f"{facts['normalisation']}; classes {shown(imported.classes)}"
    )
    return ending_of_set(out)


def _decode(path: str, out: str, of_others: Mapping[str, object]) -> Ending:
    if given := [name for name, value in of_others.items() if value]:
        raise UserError(
            f"{given[0]} is about files of other programs, and codes say all of themselves; leave it out"
        )
    from ldd.distiller.uploads import read_upload  # diffusers, which no other form needs

    decoded = read_upload(Path(path))
    decoded.save(out)
    print(f"decoded {len(decoded.images)} images of {decoded.num_classes} classes; {shown(decoded.classes)}")
    return ending_of_set(out)


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    about = (
        "A .pt or .parquet file, a folder of such files or of pictures, or hf://user/name with Parquet files."
    )
    return run_function(import_set, verb, arguments, path=about, data=True)
