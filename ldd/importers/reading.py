"""Files of another program as a distilled set: read, verified, and turned into pixels and our class order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol as Interface

import torch
from torch import Tensor

from ldd.artefact.checks import as_labels
from ldd.artefact.exporters.base import CLASSES
from ldd.artefact.set import DistilledSet
from ldd.disk.files import read_json, sha256
from ldd.disk.hub import fetch, is_address
from ldd.errors import UserError
from ldd.images import ClassInfo, DataSpec
from ldd.importers.classes import RawSet, agreed_classes, shown, stated_classes
from ldd.importers.ddranking import is_ddranking, read_ddranking
from ldd.importers.folder import classes_by_name, read_folder, table_inside
from ldd.importers.normalisation import PLAIN, undo_normalisation
from ldd.importers.parquet import parquet_files, read_parquet
from ldd.importers.pt import read_pt


class RealData(Interface):
    """What is asked of a `DistillationData`, whose import would take seconds.

    Attributes:
        classes: in the order of their labels.
        spec: with the normalisation.
    """

    classes: list[ClassInfo]
    spec: DataSpec


def read_set(
    path: Path | str,
    *,
    classes: str | None = None,
    data: RealData | None = None,
    labels: Path | str | None = None,
    experiment: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    clamp: bool = False,
    reorder: bool = False,
    licence: str = "unknown",
) -> DistilledSet:
    """Return the set in files of another program; its manifest says under `imported` what was read and how.

    Args:
        path: a `.pt` file or a folder that holds one (see `read_pt`), a folder of pictures (see `read_folder`),
            Parquet files (see `read_parquet`), an export for DD-Ranking, or `hf://user/name[@revision]`, a repository
            with Parquet files.
        classes: what the labels of the files mean, see `stated_classes`.
        data: real images that the set is to be used with, whose classes it must have.
        labels: file of the labels of a `.pt` file, see `read_pt`.
        experiment: which one of a `.pt` file, see `read_pt`.
        mean: of the normalisation of floats, see `undo_normalisation`; of pictures, what networks subtract.
        std: the same for what they divide by.
        clamp: see `undo_normalisation`.
        reorder: renumber the labels where the classes of `data` come in another order.
        licence: terms of the set.

    Raises:
        UserError: files of another form, an order of classes or a range of values that does not fit.
    """
    place = _local(path)
    stated = None if classes is None else stated_classes(classes, _classes_of(data) or ())
    found = parquet_files(place)
    raw = _read_file(place, found, labels, experiment, clamp)
    if raw is None:
        raw, table, moved = _read_pictures(place, stated, _classes_of(data), reorder)
    else:
        table, moved = agreed_classes(raw.classes, stated, _classes_of(data), reorder=reorder)
    _check_labels(raw, table)
    images, statistics, treatment = _images(raw, data, mean, std, clamp=clamp)
    made = DistilledSet.from_images(
        images,
        moved[as_labels(raw.labels)],
        table,
        mean=statistics[0],
        std=statistics[1],
        soft_labels=None if raw.soft_labels is None else raw.soft_labels[:, moved.argsort()],
        weights=raw.weights,
        licences={"data": licence},
    )
    files = {file.name: sha256(file) for file in found or [place] if file.is_file()}
    packing = _packing_in(place) if place.is_dir() and raw.packing is None else raw.packing
    facts = {"form": raw.form, "normalisation": treatment, "sha256": files}
    return made.with_facts(imported=facts, packing=packing)


def _packing_in(folder: Path) -> int | None:
    """Return the grid of small images in each picture, where the class table of an export of ours says so."""
    table = folder / CLASSES
    rows = read_json(table, "export the set again") if table.is_file() else []
    return rows[0].get("packing") if isinstance(rows, list) and rows and isinstance(rows[0], dict) else None


def _local(path: Path | str) -> Path:
    """Return what a path names; of a repository on a hub its Parquet files are fetched."""
    if is_address(path):
        return fetch(str(path), "dataset", ["*.parquet", CLASSES], "path")
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{path} does not exist; name a .pt or .parquet file, a folder, or hf://user/name")
    return place


def _read_file(
    place: Path, parquet: Sequence[Path], labels: Path | str | None, experiment: int | None, clamp: bool
) -> RawSet | None:
    """Return the set of any form but a folder of pictures, which is None; only `.pt` files have the options."""
    for what, here in (
        ("these are Parquet files", bool(parquet)),
        ("this export says all of itself", is_ddranking(place)),
        ("this is a folder of pictures", place.is_dir() and not any(place.glob("images*.pt"))),
    ):
        for name, value in {"labels": labels, "experiment": experiment, "clamp": clamp or None}.items():
            if here and value is not None:
                raise UserError(f"{name} ({value}) is about .pt files, and {what}; leave it out")
    if parquet:
        return read_parquet(place)
    if is_ddranking(place):
        return read_ddranking(place)
    if place.is_dir() and not any(place.glob("images*.pt")):
        return None
    return read_pt(place, None if labels is None else Path(labels), experiment)


def _classes_of(data: RealData | None) -> list[ClassInfo] | None:
    return None if data is None else data.classes


def _read_pictures(
    folder: Path, stated: Sequence[ClassInfo] | None, wanted: Sequence[ClassInfo] | None, reorder: bool
) -> tuple[RawSet, list[ClassInfo], Tensor]:
    """Return the pictures, the class table, and the new label of each old one."""
    inside = table_inside(folder)
    reading = inside or stated or wanted or classes_by_name(folder)
    if reading is None:
        agreed_classes(None, None, None)  # raises: nothing says what the numbers mean
        raise AssertionError
    raw = read_folder(folder, reading)
    if raw.numbered:
        return raw, *agreed_classes(inside, stated, wanted, reorder=reorder)
    # Each folder names its class, so there is no order among them that could be wrong.
    return raw, *agreed_classes(reading, None, wanted or stated or reading, reorder=True)


def _check_labels(raw: RawSet, table: Sequence[ClassInfo]) -> None:
    found = as_labels(raw.labels).unique().tolist()
    if found != list(range(len(table))):
        raise UserError(
            f"the labels are not those of the {len(table)} classes: labels: {found[:10]}{' ...' * (len(found) > 10)} "
            f"({len(found)} in all); classes: {shown(table)}; give the --data or the --classes of the set"
        )
    expected = (len(raw.labels), len(table))
    if raw.soft_labels is not None and raw.soft_labels.shape != expected:
        raise UserError(f"soft labels must be {expected}, got {tuple(raw.soft_labels.shape)}")


def _images(
    raw: RawSet,
    data: RealData | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    clamp: bool,
) -> tuple[Tensor, tuple[Sequence[float], Sequence[float]], str]:
    """Return the images, mean and std for networks, and in words what was done to the values."""
    mean, std = (raw.mean if mean is None else mean), (raw.std if std is None else std)
    default = ((0.5,) * 3, (0.5,) * 3) if data is None else (data.spec.mean, data.spec.std)
    if raw.images.dtype == torch.uint8:
        grey = raw.images.ndim == 4 and raw.images.shape[1] == 1
        images = raw.images.expand(-1, 3, -1, -1) if grey else raw.images
        return images, default if mean is None or std is None else (mean, std), "pixels as stored"
    undone = undo_normalisation(raw.images, mean, std, clamp=clamp)
    treatment = f"normalisation {undone.name}, {100 * undone.clamped:.2f} % of the values clamped"
    return undone.images, default if undone.name in PLAIN else (undone.mean, undone.std), treatment
