"""A folder of PNG files per class, as `torchvision.datasets.ImageFolder` reads it."""

import warnings
from pathlib import Path

from ldd.artefact.exporters.base import CLASSES, alphabet_places, export_folder
from ldd.artefact.picture import to_picture
from ldd.artefact.set import DistilledSet
from ldd.errors import UserError


def write_imagefolder(distilled: DistilledSet, out: Path, overwrite: bool = False) -> Path:
    """Write `<out>/<wnid>/<index>.png`, pixel-equal, and `classes.json`; see `Writer` for the arguments.

    ImageFolder numbers classes by the alphabet of their folders, which need not be our order. So each entry of
    classes.json has `label` (ours) and `imagefolder_label`. To train with ours::

        table = sorted(json.load(open("classes.json")), key=lambda info: info["imagefolder_label"])
        ImageFolder(out, target_transform=[info["label"] for info in table].__getitem__)

    Raises:
        UserError: `out` must not be replaced or cannot be written, or a wnid cannot be the name of a folder.
    """
    _check_wnids(distilled)
    if distilled.soft_labels is not None or distilled.weights is not None:
        warnings.warn("an ImageFolder has no soft labels or weights; --format pt keeps them", stacklevel=2)
    facts = [{"imagefolder_label": place} for place in alphabet_places(distilled)]
    digits = max(5, len(str(max(distilled.counts) - 1)))
    with export_folder(distilled, out, overwrite, facts) as beside:
        for info in distilled.classes:
            folder = beside / info.wnid
            folder.mkdir()
            # Zero-padded, so that the order of names, which ImageFolder takes, is the order of images.
            for index, image in enumerate(distilled.images[distilled.labels == info.label]):
                to_picture(image).save(folder / f"{index:0{digits}d}.png")
    return out


def _check_wnids(distilled: DistilledSet) -> None:
    for info in distilled.classes:
        if info.wnid in ("", ".", "..", CLASSES) or set(info.wnid) & set("/\\\0"):
            raise UserError(
                f"class {info.label} ({info.name}) has wnid {info.wnid!r}, which cannot name a folder; give it "
                "a plain one, or export to --format pt"
            )
