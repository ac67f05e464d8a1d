"""Some classes of a distilled set."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ldd.artefact.set import DistilledSet
from ldd.errors import UserError, listed


def of_classes(distilled: DistilledSet, wnids: Sequence[str]) -> DistilledSet:
    """Return what a set has of some classes; of all of them in their own order it is the set itself.

    Costs and a trained decoder stay: the classes that are left out had their share in both.

    Args:
        distilled: the set.
        wnids: of the classes, in the order of their new labels.

    Raises:
        UserError: a class that the set lacks, soft labels, which are over all of its classes, or a decoder of each
            sub-task.
    """
    label_of = {info.wnid: info.label for info in distilled.classes}
    if missing := [wnid for wnid in wnids if wnid not in label_of]:
        raise UserError(f"the set has no images of {listed(missing)}; choose among its classes")
    if list(label_of) == list(wnids):
        return distilled
    if distilled.soft_labels is not None:
        raise UserError(
            "the set has soft labels over classes that would be left out; use one with hard labels"
        )
    if len(distilled.manifest.decoders(distilled.decoder)) > 1:
        raise UserError("the set has a decoder of each sub-task; take the classes from a sub-task's own set")
    kept = torch.tensor([label_of[wnid] for wnid in wnids])
    rows = torch.cat([(distilled.labels == label).nonzero().flatten() for label in kept])
    codes, of_codes = distilled.codes, kept if distilled.is_product else rows
    classes = [replace(distilled.classes[old], label=new) for new, old in enumerate(kept.tolist())]
    return replace(
        distilled,
        images=distilled.images[rows],
        labels=torch.arange(len(wnids)).repeat_interleave(distilled.labels.bincount()[kept]),
        weights=None if distilled.weights is None else distilled.weights[rows],
        codes=None if codes is None else {name: tensor[of_codes] for name, tensor in codes.items()},
        manifest=distilled.manifest.replaced(classes=classes, subtasks=None),
    )
