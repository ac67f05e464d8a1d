"""Soft labels as they are stored: all probabilities, or the largest of each image, in single or half precision."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ldd.errors import UserError

Precision = Literal["float16", "float32"]
"""Of each stored probability."""

DENSE, VALUES, INDICES = "soft_labels", "soft_label_values", "soft_label_indices"
NAMES = (DENSE, VALUES, INDICES)
"""Tensors of an artefact that hold soft labels: the first alone, or the other two."""


def quantise(probabilities: Tensor, top_k: int | None = None, precision: Precision = "float16") -> Tensor:
    """Probabilities as they come back from storage, so that students see in memory what they will see from disk.

    Args:
        probabilities: (N, K), rows that sum to 1.
        top_k: keep the largest so many of each row; what is left of 1 is spread evenly over the others. None keeps
            all.
        precision: of what is kept.

    Returns:
        (N, K): of the type `precision` names where all are kept, else float32.

    Raises:
        UserError: `top_k` is not in 1..K.
    """
    kept = probabilities.to(getattr(torch, precision))
    if top_k is None:
        return kept
    count = probabilities.shape[1]
    if not 1 <= top_k <= count:
        raise UserError(
            f"labels.top_k ({top_k}) must lie in 1..{count}, the number of classes, or be null for all"
        )
    values, indices = kept.topk(top_k)
    return _spread(values, indices, count)


def stored(soft_labels: Tensor, top_k: int | None = None) -> dict[str, Tensor]:
    """The tensors to store for what `quantise` gave with the same `top_k`; half precision where it loses nothing.

    Raises:
        UserError: `soft_labels` are not of that form.
    """
    count = soft_labels.shape[1]
    if top_k is None:
        return {DENSE: soft_labels}
    values, indices = soft_labels.topk(min(top_k, count))
    small = torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32
    half = values.half()
    exact = torch.equal(half.to(values.dtype), values)
    tensors = {VALUES: half if exact else values.float(), INDICES: indices.to(small)}
    if not torch.equal(_spread(values.to(tensors[VALUES]), indices, count), soft_labels.float()):
        raise UserError(
            f"soft_labels hold more than the largest {top_k} probabilities of each row (label_top_k); let "
            "ldd.soft_labels.quantise cut them, or set label_top_k to None"
        )
    return tensors


def top_k_of(tensors: Mapping[str, Tensor]) -> int | None:
    """How many probabilities of each row are stored; None for all, or where there are no soft labels."""
    return tensors[VALUES].shape[-1] if VALUES in tensors else None


def restored(tensors: Mapping[str, Tensor], num_classes: int) -> Tensor | None:
    """Soft labels (N, K) of stored tensors, None where there are none; other names are passed over.

    Raises:
        UserError: tensors that do not fit each other or the number of classes.
    """
    found = [name for name in NAMES if name in tensors]
    if found in ([], [DENSE]):
        return tensors.get(DENSE)
    if found != [VALUES, INDICES]:
        raise UserError(
            f"{' and '.join(found)} do not make soft labels; give {DENSE}, or {VALUES} with {INDICES}"
        )
    values, indices = tensors[VALUES], tensors[INDICES].long()
    fits = values.ndim == 2 and values.shape == indices.shape and 1 <= values.shape[1] <= num_classes
    if not fits or int(indices.min()) < 0 or int(indices.max()) >= num_classes:
        raise UserError(
            f"{VALUES} {tuple(values.shape)} and {INDICES} {tuple(indices.shape)} do not fit {num_classes} classes"
        )
    return _spread(values, indices, num_classes)


def _spread(values: Tensor, indices: Tensor, count: int) -> Tensor:
    values = values.float()
    rest = (1 - values.sum(1, keepdim=True)).clamp(min=0) / max(1, count - values.shape[1])
    # Rounded values may leave the others more than any kept one has: then those would not be the largest.
    rest = torch.minimum(rest, values.amin(1, keepdim=True))
    return rest.expand(-1, count).scatter(1, indices, values)
