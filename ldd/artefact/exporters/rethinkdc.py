"""Parquet files with the columns that RethinkDC (arXiv 2502.06434) reads: `image` and `class_id`."""

import warnings
from pathlib import Path

import pyarrow as pa
import torch

from ldd.artefact.exporters.base import alphabet_places, export_folder, unique_names
from ldd.artefact.exporters.parquet import write_shards
from ldd.artefact.set import DistilledSet

PLACE = "class_id"
"""The column, and in the class table the number that stands for a class in it."""


def write_rethinkdc(distilled: DistilledSet, out: Path, overwrite: bool = False) -> Path:
    """Write `<out>/data/train-*.parquet` and `classes.json`; see `Writer` for the arguments.

    Columns: `image` (PNG, pixel-equal) and `class_id`: the place of the class among the sorted wnids, since RethinkDC
    tests on an `ImageFolder` of real images, which numbers its folders so. Rows are in the set's order.

    RethinkDC takes a folder or a repository for Parquet files only where its name holds `he-y`; others are folders of
    pictures to it.
    """
    distilled.refuse_packed("RethinkDC")
    if distilled.soft_labels is not None or distilled.weights is not None:
        warnings.warn(
            "RethinkDC's layout has no soft labels or weights; --format parquet keeps them", stacklevel=2
        )
    places = torch.tensor(alphabet_places(distilled))
    facts = [{PLACE: place} for place in places.tolist()]
    names = [unique_names(distilled)[label] for label in places.argsort().tolist()]
    with export_folder(distilled, out, overwrite, facts) as beside:
        write_shards(distilled, beside, {PLACE: (places[distilled.labels], pa.int64())}, names)
    return out
