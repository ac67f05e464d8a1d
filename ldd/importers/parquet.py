"""Parquet files with a picture a row: our own export, RethinkDC's sets, and others with the same columns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ldd.artefact.exporters.rethinkdc import PLACE
from ldd.data.pictures import read_bytes
from ldd.data.sources import UnreadableImage
from ldd.errors import UserError
from ldd.importers.classes import RawSet, renumbering

_LABELS = {"label": "label", PLACE: PLACE}
"""Column of class numbers -> what it is called in our class table."""

_ROWS = 100  # read at once


def parquet_files(place: Path) -> list[Path]:
    """Return the Parquet files that a path names: itself, or those in the folder or in its `data`, in order of name."""
    if place.is_file():
        return [place] if place.suffix == ".parquet" else []
    return sorted(place.glob("*.parquet")) or sorted(place.glob("data/*.parquet"))


def read_parquet(place: Path) -> RawSet:
    """Return the set in Parquet files.

    Columns: `image` (the bytes of an encoded picture, as the `datasets` library stores them), `label` or RethinkDC's
    `class_id` (numbers), and where they are there `soft_label` (K probabilities) and `weight`; others are not read.

    Args:
        place: a file, or a folder with `*.parquet` or `data/*.parquet`; what its numbers mean is in `classes.json` of
            the folder, if that is there.

    Raises:
        UserError: no such columns, or a damaged file or picture.
    """
    files = parquet_files(place)
    wanted = ["image", *_LABELS, "soft_label", "weight"]
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    for file in files:
        for name, values in _rows(file, wanted):
            columns[name] += values
    column = next(name for name in _LABELS if columns[name])
    labels = torch.tensor(columns[column])
    inside = renumbering(place if place.is_dir() else place.parent, _LABELS[column])
    classes = None
    if inside is not None:
        classes, moved = inside
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(moved):
            raise UserError(
                f"{place}: column {column} has numbers beyond the {len(moved)} classes of its classes.json"
            )
        labels = moved[labels]
    soft = _tensor(place, "soft_label", columns["soft_label"])
    if soft is not None and inside is not None:
        soft = soft[:, inside[1].argsort()] if soft.ndim == 2 and soft.shape[1] == len(inside[1]) else soft
    return RawSet(
        images=torch.stack(columns["image"]),
        labels=labels,
        form=f"Parquet files with the columns image and {column}",
        soft_labels=soft,
        weights=_tensor(place, "weight", columns["weight"]),
        classes=classes,
    )


def _rows(file: Path, wanted: list[str]) -> Iterator[tuple[str, list[Any]]]:
    """Yield name and values of the columns that a file has, some rows at a time."""
    try:
        with pq.ParquetFile(file) as opened:
            there = [name for name in wanted if name in opened.schema_arrow.names]
            if "image" not in there or not {*_LABELS} & {*there}:
                raise UserError(
                    f"{file} has the columns {', '.join(opened.schema_arrow.names)}; needed are image and one of "
                    f"{', '.join(_LABELS)}"
                )
            for batch in opened.iter_batches(_ROWS, columns=there):
                for name in there:
                    values = batch.column(name).to_pylist()
                    yield name, _pictures(file, values) if name == "image" else _numbers(file, name, values)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} is damaged or no Parquet file ({error}); copy it again") from error


def _pictures(file: Path, values: list[Any]) -> list[Tensor]:
    pictures: list[Tensor] = []
    for value in values:
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise UserError(
                f"{file} holds no bytes of a picture in a row of image; store the pictures themselves"
            )
        try:
            picture = read_bytes(content, f"in {file}")
        except UnreadableImage as error:
            raise UserError(f"{error}; copy the file again") from error
        first = pictures[0] if pictures else picture
        if picture.shape != first.shape or picture.shape[1] != picture.shape[2]:
            raise UserError(
                f"{file} has a picture of {picture.shape[2]} x {picture.shape[1]} px; all must be squares of one size "
                f"(the first: {first.shape[2]} x {first.shape[1]}); crop or resize them"
            )
        pictures.append(picture)
    return pictures


def _numbers(file: Path, name: str, values: list[Any]) -> list[Any]:
    if name in _LABELS and not all(isinstance(value, int) and 0 <= value < 2**31 for value in values):
        raise UserError(f"{file}: column {name} must hold whole numbers from 0; it holds other values")
    return values


def _tensor(place: Path, name: str, values: list[Any]) -> Tensor | None:
    if not values:
        return None
    try:
        return torch.tensor(values, dtype=torch.float32 if name == "soft_label" else torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{place}: column {name} must hold numbers, as many in each row ({error})") from error
