"""Parquet files as `datasets.load_dataset` reads them: encoded images and named labels."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ldd.artefact.exporters.base import export_folder, png, shards, unique_names
from ldd.artefact.set import DistilledSet

Column = tuple[Tensor, pa.DataType]
_ROW_GROUP = 100  # images read at once; hubs' viewers read the first group alone


def write_parquet(distilled: DistilledSet, out: Path, overwrite: bool = False) -> Path:
    """Write `<out>/data/train-*.parquet` and `classes.json`; see `Writer` for the arguments.

    `datasets.load_dataset(str(out))` reads them as they are.

    Columns: `image` (PNG, pixel-equal), `label` (its class names travel with it), and where the set has them
    `soft_label` (K probabilities) and `weight`. Rows are in the set's order.
    """
    columns: dict[str, Column] = {"label": (distilled.labels, pa.int64())}
    soft = distilled.soft_labels
    if soft is not None:
        number = pa.float64() if soft.dtype == torch.float64 else pa.float32()
        columns["soft_label"] = (soft, pa.list_(number))
    if distilled.weights is not None:
        columns["weight"] = (distilled.weights, pa.float64())
    with export_folder(distilled, out, overwrite) as beside:
        write_shards(distilled, beside, columns, unique_names(distilled))
    return out


def write_shards(
    distilled: DistilledSet, out: Path, columns: Mapping[str, Column], names: Sequence[str]
) -> None:
    """Write `data/train-*.parquet` in a folder: the images, then these columns.

    Args:
        distilled: whose images.
        out: the folder.
        columns: name -> values of all images, and their type; the first one numbers classes.
        names: of the classes by that number.
    """
    label = next(iter(columns))
    features = {"image": {"_type": "Image"}, label: {"_type": "ClassLabel", "names": [*names]}}
    fields = [
        pa.field("image", pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        *(pa.field(name, kind) for name, (_, kind) in columns.items()),
    ]
    # What the `datasets` library keeps of a column's meaning in addition to its Arrow type.
    schema = pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})
    (out / "data").mkdir()
    for name, rows in shards(distilled, ".parquet"):
        with pq.ParquetWriter(out / name, schema) as writer:
            for start in range(rows.start, rows.stop, _ROW_GROUP):
                part = range(start, min(rows.stop, start + _ROW_GROUP))
                images = [{"bytes": png(distilled.images[row]), "path": f"{row:06d}.png"} for row in part]
                others = {
                    key: values[part.start : part.stop].tolist() for key, (values, _) in columns.items()
                }
                writer.write_table(pa.table({"image": images, **others}, schema))
