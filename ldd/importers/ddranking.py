"""Our own export for DD-Ranking, read back; `read_pt` reads tensors of others, which say less of themselves."""

from dataclasses import replace
from pathlib import Path

import torch

from ldd.artefact.exporters.ddranking import FACTS, IMAGES, LABELS, PLACE
from ldd.disk.files import read_json
from ldd.errors import UserError
from ldd.importers.classes import RawSet, renumbering
from ldd.importers.pt import load_tensor


def is_ddranking(folder: Path) -> bool:
    """Tell whether a folder is such an export."""
    return (folder / FACTS).is_file()


def read_ddranking(folder: Path) -> RawSet:
    """Return the set in a folder that `latentdd export --format ddranking` has written, in the set's own order.

    Raises:
        UserError: a file is missing, damaged or of another form.
    """
    cure = "export the set again"
    facts = read_json(folder / FACTS, cure)
    inside = renumbering(folder, PLACE)
    try:
        mean, std = ([float(x) for x in facts["normalisation"][name]] for name in ("mean", "std"))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{folder / FACTS} lacks the normalisation ({error!r}); {cure}") from error
    if inside is None:
        raise UserError(f"{folder} lacks classes.json; {cure}")
    classes, moved = inside
    images, labels = load_tensor(folder / IMAGES), load_tensor(folder / LABELS)
    soft = None
    if labels.ndim == 2 and labels.is_floating_point() and labels.shape[1] == len(moved):
        soft = labels.float().softmax(1)
        labels = torch.arange(len(moved)).repeat_interleave(
            len(labels) // len(moved)
        )  # they are sorted by class
    fits = labels.ndim == 1 and len(labels) == len(images) and not labels.is_floating_point()
    if not fits or not 0 <= int(labels.min()) <= int(labels.max()) < len(moved):
        raise UserError(
            f"{folder / LABELS} does not fit {len(images)} images of {len(moved)} classes; {cure}"
        )
    labels = moved[labels]
    rows = labels.argsort(stable=True)
    raw = RawSet(images[rows], labels[rows], "export for DD-Ranking", classes=classes, mean=mean, std=std)
    return raw if soft is None else replace(raw, soft_labels=soft[rows][:, moved.argsort()])
