"""Tar files as the `webdataset` library streams them: the files of one sample lie side by side."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldd.artefact.exporters.base import export_folder, png, shards
from ldd.artefact.set import DistilledSet


def write_webdataset(distilled: DistilledSet, out: Path, overwrite: bool = False) -> Path:
    """Write `<out>/data/train-*.tar` and `classes.json`; see `Writer` for the arguments.

    A sample is `000000.png` (pixel-equal), `000000.cls` (the label as text), `000000.json` (label, id, wnid and name,
    and `weight` where the set has them) and, where the set has soft labels, `000000.soft.npy` (K probabilities)::

        for image, label in webdataset.WebDataset(file).decode("pil").to_tuple("png", "cls"): ...

    Samples are in the set's order; the same set gives the same bytes.
    """
    with export_folder(distilled, out, overwrite) as beside:
        (beside / "data").mkdir()
        for name, rows in shards(distilled, ".tar"):
            with tarfile.open(beside / name, "w", format=tarfile.USTAR_FORMAT) as archive:
                for row in rows:
                    for ending, content in _sample(distilled, row).items():
                        member = tarfile.TarInfo(f"{row:06d}.{ending}")
                        member.size = len(content)
                        archive.addfile(member, BytesIO(content))
    return out


def _sample(distilled: DistilledSet, row: int) -> dict[str, bytes]:
    label = int(distilled.labels[row])
    facts = distilled.classes[label].to_dict()
    if distilled.weights is not None:
        facts["weight"] = float(distilled.weights[row])
    files = {
        "png": png(distilled.images[row]),
        "cls": str(label).encode(),
        "json": json.dumps(facts).encode(),
    }
    if distilled.soft_labels is not None:
        files["soft.npy"] = _npy(distilled.soft_labels[row])
    return files


def _npy(values: Tensor) -> bytes:
    buffer = BytesIO()
    np.save(buffer, (values.float() if values.dtype == torch.bfloat16 else values).numpy())
    return buffer.getvalue()
