"""What an importer finds in another program's files, before it is a distilled set."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ldd.classes import ClassInfo


@dataclass(frozen=True)
class RawSet:
    """Tensors as they were stored.

    Attributes:
        images: (N, C, H, H), C 1 or 3; uint8, or floats of any range.
        labels: (N,) whole numbers.
        form: which program's form it is, in words.
        numbered: labels were stored as numbers, which mean something only by the order of a class table.
        soft_labels: (N, K) probabilities, or None.
        weights: (N,), or None.
        classes: the order in which the labels count, where the files say it.
        mean: of the normalisation, where the files say it.
        std: the same.
    """

    images: Tensor
    labels: Tensor
    form: str
    numbered: bool = True
    soft_labels: Tensor | None = None
    weights: Tensor | None = None
    classes: Sequence[ClassInfo] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
