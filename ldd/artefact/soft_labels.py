"""Soft labels as stored: all probabilities of an image, or its largest, in 32, 16 or 8 bits."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ldd.artefact.size import Amount
from ldd.errors import UserError

Precision = Literal["int8", "float16", "float32"]
"""How each probability is stored; `int8`: in 255ths."""

LEVELS = 255
"""Eight bits hold a probability in parts of 1 / 255."""

DENSE, VALUES, INDICES = "soft_labels", "soft_label_values", "soft_label_indices"
NAMES = (DENSE, VALUES, INDICES)
"""Tensors of an artefact that hold soft labels: either the first, or the other two."""


def quantise(probabilities: Tensor, top_k: int | None = None, precision: Precision = "float16") -> Tensor:
    """Return probabilities (N, K) as they come back from storage, float32, or float16 where all are kept so.

    Of each row the `top_k` largest are kept (None: all) in `precision`; the rest of 1 is spread evenly over the others.
    """
    return _unpacked(packed(probabilities, top_k, precision), probabilities.shape[1])


def packed(
    probabilities: Tensor, top_k: int | None = None, precision: Precision = "float16"
) -> dict[str, Tensor]:
    """Return tensors that hold what `quantise` returns for the same arguments; `restored` reads them."""
    count = probabilities.shape[1]
    if top_k is not None and not 1 <= top_k <= count:
        raise UserError(
            f"labels.top_k ({top_k}) must lie in 1..{count}, the number of classes, or be null for all"
        )
    eight = precision == "int8"
    values = probabilities if eight else probabilities.to(getattr(torch, precision))
    if top_k is None:
        return {DENSE: _in_levels(values) if eight else values}
    values, indices = values.topk(top_k)
    return {VALUES: _in_levels(values) if eight else values, INDICES: indices.to(_index_type(count))}


def _in_levels(probabilities: Tensor) -> Tensor:
    """Return rows in 255ths, uint8: rounded down, then up where most was lost, until the sum is nearest."""
    exact = probabilities.double() * LEVELS
    codes = exact.floor()
    missing = exact.sum(1, keepdim=True).round() - codes.sum(1, keepdim=True)
    places = (exact - codes).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (codes + (places < missing)).byte()


def _codes(values: Tensor) -> Tensor | None:
    """Return values as 255ths (uint8), or None if they are not whole 255ths."""
    codes = (values.float() * LEVELS).round()
    return codes.byte() if torch.equal(codes / LEVELS, values.float()) else None


def amount_of_one(count: int, top_k: int | None, precision: Precision) -> Amount:
    """Return what one soft label of `count` classes takes."""
    size = {"int8": 1, "float16": 2, "float32": 4}[precision]
    if top_k is None:
        return Amount(count, count * size)
    return Amount(top_k, top_k * (size + _index_type(count).itemsize))


def _index_type(count: int) -> torch.dtype:
    return torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32


def stored(soft_labels: Tensor, top_k: int | None = None) -> dict[str, Tensor]:
    """Return tensors to store for a result of `quantise` with the same `top_k`, in the fewest bits that lose nothing.

    Whole 255ths take eight bits; others keep their precision, or take 16 bits where only the largest are kept.
    """
    count = soft_labels.shape[1]
    if top_k is None:
        codes = _codes(soft_labels) if soft_labels.dtype == torch.float32 else None
        return {DENSE: soft_labels if codes is None else codes}
    values, indices = soft_labels.topk(min(top_k, count))
    half, codes = values.half(), _codes(values)
    exact = torch.equal(half.to(values.dtype), values)
    kept = codes if codes is not None else half if exact else values.float()
    tensors = {VALUES: kept, INDICES: indices.to(_index_type(count))}
    if not torch.equal(_spread(_as_floats(kept), indices, count), soft_labels.float()):
        raise UserError(
            f"soft_labels hold more than the largest {top_k} probabilities of each row (label_top_k); let "
            "ldd.artefact.soft_labels.quantise cut them, or set label_top_k to None"
        )
    return tensors


def top_k_of(tensors: Mapping[str, Tensor]) -> int | None:
    """Return how many probabilities of each row are stored; None for all, or without soft labels."""
    return tensors[VALUES].shape[-1] if VALUES in tensors else None


def restored(tensors: Mapping[str, Tensor], num_classes: int) -> Tensor | None:
    """Return the soft labels (N, K) of stored tensors, or None without any; other names are ignored."""
    found = [name for name in NAMES if name in tensors]
    if found == []:
        return None
    if found == [DENSE]:
        return _unpacked(tensors, num_classes)
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
    return _unpacked(tensors, num_classes)


def _unpacked(tensors: Mapping[str, Tensor], count: int) -> Tensor:
    """Return soft labels of tensors that fit. Their values are not looked at, which would wait for a GPU."""
    if DENSE not in tensors:
        return _spread(_as_floats(tensors[VALUES]), tensors[INDICES].long(), count)
    return _as_floats(tensors[DENSE]) if tensors[DENSE].dtype == torch.uint8 else tensors[DENSE]


def _as_floats(stored_values: Tensor) -> Tensor:
    values = stored_values.float()
    return values / LEVELS if stored_values.dtype == torch.uint8 else values


def _spread(values: Tensor, indices: Tensor, count: int) -> Tensor:
    values = values.float()
    rest = (1 - values.sum(1, keepdim=True)).clamp(min=0) / max(1, count - values.shape[1])
    # Rounded values may leave the others more than any kept one has: then those would not be the largest.
    rest = torch.minimum(rest, values.amin(1, keepdim=True))
    return rest.expand(-1, count).scatter(1, indices, values)
