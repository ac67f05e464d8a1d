"""Codes without images: in which precisions they are sent, how a folder of them is told from others, what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ldd.artefact.size import Amount, Storage
from ldd.errors import UserError

Precision = Literal["float32", "bfloat16", "uint8"]
"""How numbers are sent: as they are, as bfloat16, or in 256 levels between the least and the largest of each row.

A row is what one code has of a tensor, or the first axis of a tensor of the decoder.
"""

LEVELS = 255
"""The highest of the 256 levels."""

_RANGE = ".range"

NOISE = "noise"
"""A code that is not sent where it follows from the seed of the run."""

FACTS = "codes.json"
"""What else the codes need: classes, normalisation, the prior by its name and hash; a manifest of few fields."""


def is_upload(folder: Path) -> bool:
    """Tell whether a folder holds what `ldd.distiller.uploads.write_upload` writes."""
    return (folder / FACTS).is_file()


@dataclass(frozen=True)
class Sent:
    """What the files of an upload hold (`ldd.distiller.uploads`), from which the images of a set were decoded.

    Attributes:
        images: how many that was.
        codes: as rounded, with all that the files need around them.
        decoder: likewise.
        labels: hard labels and weights.
    """

    images: int
    codes: Amount
    decoder: Amount
    labels: Amount

    def __add__(self, other: "Sent") -> "Sent":
        parts = (self.codes + other.codes, self.decoder + other.decoder, self.labels + other.labels)
        return Sent(self.images + other.images, *parts)

    def charged(
        self, own: Storage, images: int, codes: Mapping[str, Tensor] | None, *, soft: bool
    ) -> Storage:
        """Return the cost of a set by the files that were sent.

        A set that is no longer the one that was sent (some of its images, or images that its codes do not give) is
        charged what it holds.

        Args:
            own: what the set holds.
            images: of the set.
            codes: of the set.
            soft: it has soft labels, which no upload has: labels are charged as they are stored.

        Raises:
            UserError: fewer bytes than the set has numbers, of which none is sent in less than one.
        """
        if codes is None or images != self.images:
            return own
        numbers = sum(tensor.numel() for name, tensor in codes.items() if name != NOISE)
        for what, sent, least in (
            ("codes", self.codes, numbers),
            ("decoder", self.decoder, own.decoder.floats),
            ("labels", self.labels, images),
        ):
            if sent.bytes < least:
                raise UserError(
                    f"sent.{what}: {sent.bytes} bytes cannot hold {least} numbers; import the upload again"
                )
        labels = own.labels if soft else self.labels
        return replace(own, codes=self.codes, decoder=self.decoder, labels=labels, form="codes")


def rounded(name: str, tensor: Tensor, precision: Precision) -> dict[str, Tensor]:
    """Return a tensor as it is sent, with what reads it back; whole numbers as they are."""
    if not tensor.is_floating_point() or not tensor.numel():
        return {name: tensor}
    if precision == "bfloat16":
        return {name: tensor.bfloat16()}
    if precision == "float32":
        return {name: tensor}
    rows = tensor.float().flatten(1) if tensor.ndim > 1 else tensor.float()[None]
    low, high = rows.aminmax(dim=1)
    step = (high - low).clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
    levels = ((rows - low[:, None]) / step[:, None]).round().clamp(0, LEVELS).byte()
    return {name: levels.view(tensor.shape), f"{name}{_RANGE}": torch.stack([low, high], 1)}


def numbers_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that were sent as float32, but for whole numbers that are no levels.

    Raises:
        UserError: levels without an end for each row.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_RANGE):
            continue
        ends = tensors.get(f"{name}{_RANGE}")
        if ends is None:
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
            continue
        rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[None]
        if ends.shape != (len(rows), 2) or tensor.dtype != torch.uint8:
            raise UserError(
                f"{name}: {tuple(tensor.shape)} levels have ends {tuple(ends.shape)}; copy the upload again"
            )
        low, high = ends.float().unbind(1)
        found[name] = (low[:, None] + rows.float() * ((high - low) / LEVELS)[:, None]).view(tensor.shape)
    return found
