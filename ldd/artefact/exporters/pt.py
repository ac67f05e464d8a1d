"""One file for `torch.load(..., weights_only=True)`: plain tensors and plain Python values."""

from pathlib import Path

import torch

from ldd.artefact.exporters.base import export_folder
from ldd.artefact.set import DistilledSet
from ldd.disk.files import atomic_file
from ldd.errors import UserError

FILE = "distilled.pt"


def write_pt(distilled: DistilledSet, out: Path, overwrite: bool = False) -> Path:
    """Write `<out>/distilled.pt` and `<out>/classes.json`, or only the file `out` where that ends in `.pt`.

    See `Writer` for the arguments; a file is replaced where `overwrite` says so. It holds a dictionary: `images`
    (N, 3, H, H) uint8, `labels` (N,) int64, `classes` (list of {label, id, wnid, name}), `mean` and `std` (for images
    in [0, 1]), and `soft_labels` and `weights` where the set has them, and `packing` where
    each image is a grid of that many columns and rows of small ones. It is a pickle, which is what its readers
    expect; our own artefacts never are.
    """
    if out.suffix == ".pt" and not out.is_dir():
        if out.exists() and not overwrite:
            raise UserError(f"--out ({out}) exists; name a new file, or replace it with --overwrite true")
        _save(distilled, out)
        return out
    with export_folder(distilled, out, overwrite) as beside:
        _save(distilled, beside / FILE)
    return out / FILE


def _save(distilled: DistilledSet, path: Path) -> None:
    optional = {"soft_labels": distilled.soft_labels, "weights": distilled.weights}
    content = {
        "images": distilled.images.clone(),  # a view would be stored with all of the tensor it looks into
        "labels": distilled.labels.clone(),
        "classes": [info.to_dict() for info in distilled.classes],
        **distilled.manifest["normalisation"],
        **({"packing": distilled.packing} if distilled.packing > 1 else {}),
        **{name: tensor.clone() for name, tensor in optional.items() if tensor is not None},
    }
    with atomic_file(path) as beside:
        torch.save(content, beside)
