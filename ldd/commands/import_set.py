"""`latentdd import`: a set that another program made, as an artefact of ours, ready to be evaluated and exported."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldd.artefact.checks import as_labels
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.disk.files import holds_files, sha256
from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.importers import (
    RawSet,
    agreed_classes,
    classes_by_name,
    read_folder,
    read_pt,
    stated_classes,
    table_inside,
    undo_normalisation,
)
from ldd.importers.classes import shown
from ldd.importers.normalisation import PLAIN
from ldd.runs.verb import run_function


def import_set(
    path: str,
    out: str,
    classes: str | None = None,
    data: DistillationData | None = None,
    labels: str | None = None,
    experiment: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    clamp: bool = False,
    reorder: bool = False,
    licence: str = "unknown",
    overwrite: bool = False,
) -> None:
    """Read a set from a .pt file (DC, MTT, GLaD, LD3M, ours) or a folder of pictures, verify it and save it.

    Args:
        path: a .pt file, a folder with images_best.pt and labels_best.pt, or one with a folder a class, named by wnid,
            by number or by name.
        out: folder of the set that is written.
        classes: which classes the labels 0, 1, ... of the files are: a table (.json, .csv), a text file with one wnid a
            line, or the name of a published ImageNet subset; null where the files say so themselves, or where --data
            has the same order.
        data: real images that the set is to be used with; classes in another order are refused.
        labels: file of the labels, where it is not beside the images under its usual name.
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
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{path} does not exist; name a .pt file or a folder")
    if holds_files(out) and not overwrite:
        raise UserError(f"--out ({out}) is not empty; name a new folder, or replace it with --overwrite true")
    stated = None if classes is None else stated_classes(classes)
    if place.is_dir() and not any(place.glob("images*.pt")):
        _refuse_options(labels=labels, experiment=experiment, clamp=clamp or None)
        raw, table, moved = _read_folder(place, stated, data, reorder)
    else:
        raw = read_pt(place, None if labels is None else Path(labels), experiment)
        table, moved = agreed_classes(raw.classes, stated, _classes_of(data), reorder=reorder)
    distilled, normalisation = _build(raw, table, moved, data, mean, std, clamp)
    files = {place.name: sha256(place)} if place.is_file() else {}
    imported = {"form": raw.form, "normalisation": normalisation, "sha256": files}
    distilled = distilled.with_facts(
        imported=imported, licences={**distilled.manifest.licences, "data": licence}
    )
    distilled.save(out)
    print(
        f"imported {len(distilled.images)} images of {distilled.num_classes} classes to {out}: {raw.form}; "
        f"{normalisation}; classes {shown(distilled.classes)}"
    )


def _classes_of(data: DistillationData | None) -> list[ClassInfo] | None:
    return None if data is None else data.classes


def _read_folder(
    folder: Path, stated: Sequence[ClassInfo] | None, data: DistillationData | None, reorder: bool
) -> tuple[RawSet, list[ClassInfo], Tensor]:
    """The pictures, the class table, and the new label of each old one."""
    inside, wanted = table_inside(folder), _classes_of(data)
    reading = inside or stated or wanted or classes_by_name(folder)
    if reading is None:
        agreed_classes(None, None, None)  # refuses
        raise AssertionError
    raw = read_folder(folder, reading)
    if raw.numbered:
        return raw, *agreed_classes(inside, stated, wanted, reorder=reorder)
    # Each folder names its class: there is no order in them that could be wrong.
    return raw, *agreed_classes(reading, None, wanted or stated or reading, reorder=True)


def _build(
    raw: RawSet,
    table: Sequence[ClassInfo],
    moved: Tensor,
    data: DistillationData | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    clamp: bool,
) -> tuple[DistilledSet, str]:
    """The set, and in words what was done to its values."""
    labels = as_labels(raw.labels)
    found = labels.unique().tolist()
    if found != list(range(len(table))):
        raise UserError(
            f"the labels are not those of the {len(table)} classes: labels: {found[:10]}{' ...' * (len(found) > 10)} "
            f"({len(found)} in all); classes: {shown(table)}; give the --data or the --classes of the set"
        )
    soft = raw.soft_labels
    if soft is not None:
        if soft.shape != (len(labels), len(table)):
            raise UserError(f"soft labels must be ({len(labels)}, {len(table)}), got {tuple(soft.shape)}")
        soft = soft[:, moved.argsort()]
    mean, std = (raw.mean if mean is None else mean), (raw.std if std is None else std)
    default = ((0.5,) * 3, (0.5,) * 3) if data is None else (data.spec.mean, data.spec.std)
    if raw.images.dtype == torch.uint8:
        images, said = raw.images, "pixels as stored"
        images = images.expand(-1, 3, -1, -1) if images.ndim == 4 and images.shape[1] == 1 else images
        statistics = default if mean is None or std is None else (tuple(mean), tuple(std))
    else:
        undone = undo_normalisation(raw.images, mean, std, clamp=clamp)
        images, statistics = undone.images, (undone.mean, undone.std)
        if undone.name in PLAIN:
            statistics = default
        said = f"normalisation {undone.name}, {100 * undone.clamped:.2f} % of the values clamped"
    distilled = DistilledSet.from_images(
        images,
        moved[labels],
        table,
        mean=statistics[0],
        std=statistics[1],
        soft_labels=soft,
        weights=raw.weights,
    )
    return distilled, said


def _refuse_options(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"{name} ({value}) is about .pt files, and this is a folder of pictures; leave it out"
            )


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb."""
    run_function(import_set, verb, arguments, data=True)
