"""Parquet files as `datasets.load_dataset` reads them: encoded images and named labels."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ldd.artefact.exporters.base import export_folder, png, shards, unique_names
from ldd.artefact.set import DistilledSet

_ROW_GROUP = 100  # images read at once; hubs' viewers read the first group alone


def write_parquet(distilled: DistilledSet, out: Path, overwrite: bool = False) -> Path:
    """Write `<out>/data/train-*.parquet` and `classes.json`; arguments are those of `Writer`.

    `datasets.load_dataset(str(out))` reads them as they are.

    Columns: `image` (PNG, pixel-equal), `label` (its class names travel with it), and where the set has them
    `soft_label` (K probabilities) and `weight`. Rows are in the set's order.
    """
    schema = _schema(distilled)
    with export_folder(distilled, out, overwrite) as beside:
        (beside / "data").mkdir()
        for name, rows in shards(distilled, ".parquet"):
            with pq.ParquetWriter(beside / name, schema) as writer:
                for start in range(rows.start, rows.stop, _ROW_GROUP):
                    part = range(start, min(rows.stop, start + _ROW_GROUP))
                    writer.write_table(_table(distilled, part, schema))
    return out


def _schema(distilled: DistilledSet) -> pa.Schema:
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": unique_names(distilled)},
    }
    fields = [
        pa.field("image", pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        pa.field("label", pa.int64()),
    ]
    soft = distilled.soft_labels
    if soft is not None:
        number = pa.float64() if soft.dtype == torch.float64 else pa.float32()
        fields.append(pa.field("soft_label", pa.list_(number)))
    if distilled.weights is not None:
        fields.append(pa.field("weight", pa.float64()))
    # What the `datasets` library keeps of a column's meaning beside its Arrow type.
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def _table(distilled: DistilledSet, rows: range, schema: pa.Schema) -> pa.Table:
    part = slice(rows.start, rows.stop)
    columns: dict[str, Any] = {
        "image": [{"bytes": png(distilled.images[row]), "path": f"{row:06d}.png"} for row in rows],
        "label": distilled.labels[part].tolist(),
    }
    if distilled.soft_labels is not None:
        columns["soft_label"] = distilled.soft_labels[part].tolist()
    if distilled.weights is not None:
        columns["weight"] = distilled.weights[part].tolist()
    return pa.table(columns, schema)
