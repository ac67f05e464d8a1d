"""Real images of one split, held as bytes and ordered by class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldd.classes import Labelled, to_unit_range
from ldd.errors import UserError


class RealImages:
    """The images of one split, class-major, in memory or in a mapped file.

    Draws and selections gather only what they return, so a mapped file larger than memory will do.

    Args:
        images: (M, 3, H, W) uint8.
        labels: (M,) int64 in 0..K-1, ascending.
        keys: M names (relative path or id of each image), which never depend on where the data lie.
        num_classes: K; a class may be without images.

    Attributes:
        counts: K numbers of images per class.
    """

    def __init__(self, images: Tensor, labels: Tensor, keys: Sequence[str], num_classes: int) -> None:
        assert images.dtype == torch.uint8, "images are held as bytes"
        assert len(images) == len(labels) == len(keys)
        self._store = images
        self._index(torch.arange(len(images)), labels, list(keys), num_classes)

    def _index(self, rows: Tensor, labels: Tensor, keys: list[str], num_classes: int) -> None:
        assert bool((labels[1:] >= labels[:-1]).all()), "images are ordered by class"
        self._rows = rows  # where each image lies in the store
        self.labels = labels
        self.keys = keys
        self.num_classes = num_classes
        self.counts: list[int] = torch.bincount(labels, minlength=num_classes).tolist()
        self._starts: list[int] = [0, *torch.tensor(self.counts).cumsum(0).tolist()]

    def __len__(self) -> int:
        """M."""
        return len(self._rows)

    @property
    def images(self) -> Tensor:
        """All of them, (M, 3, H, W) uint8: the store itself, or a copy of what was selected from it."""
        return self._part(0, len(self))

    def take(self, places: Tensor) -> Tensor:
        """The images at `places` ((n,) int64, any order), (n, 3, H, W) uint8, in memory of their own."""
        return self._store[self._rows[places]]

    def of_class(self, label: int) -> Tensor:
        """One class's images, (n, 3, H, W) uint8: a view where they lie side by side, else a copy."""
        return self._part(self._starts[label], self._starts[label + 1])

    def _part(self, start: int, end: int) -> Tensor:
        rows = self._rows[start:end]
        if start < end and int(rows[-1]) - int(rows[0]) == end - start - 1:  # ascending: no gap between them
            return self._store[int(rows[0]) : int(rows[-1]) + 1]
        return self._store[rows]

    def draw(self, label: int, n: int, generator: torch.Generator) -> Tensor:
        """`n` different images of a class, (n, 3, H, W) float32 in [-1, 1].

        Raises:
            UserError: the class has fewer than `n` images.
        """
        if n > self.counts[label]:
            raise UserError(
                f"class {label} has {self.counts[label]} real images but {n} different ones are needed; "
                "ask for fewer (real batch, images per class) or keep more in pruning"
            )
        chosen = self._starts[label] + torch.randperm(self.counts[label], generator=generator)[:n]
        return to_unit_range(self._store[self._rows[chosen]])

    def batch(self, n: int, generator: torch.Generator) -> Labelled:
        """`n` different images from all classes together, float32 in [-1, 1], with labels (n,).

        Raises:
            UserError: there are fewer than `n` images.
        """
        if n > len(self):
            raise UserError(
                f"a batch of {n} is more than the {len(self)} images there are; use a smaller batch"
            )
        chosen = torch.randperm(len(self), generator=generator)[:n]
        return Labelled(to_unit_range(self._store[self._rows[chosen]]), self.labels[chosen])

    def select(self, indices: Tensor) -> "RealImages":
        """The images at `indices` ((m,) int64, all different, any order), again ordered by class; copies none."""
        indices = indices.sort().values
        assert bool((indices[1:] > indices[:-1]).all()), "each image at most once"
        part = RealImages.__new__(RealImages)
        part._store = self._store
        keys = [self.keys[i] for i in indices.tolist()]
        part._index(self._rows[indices], self.labels[indices], keys, self.num_classes)
        return part
