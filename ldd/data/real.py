"""Real images of one split, held as bytes and ordered by class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldd.classes import Labelled, to_unit_range
from ldd.errors import UserError


class RealImages:
    """The images of one split in memory, class-major.

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
        assert bool((labels[1:] >= labels[:-1]).all()), "images are ordered by class"
        self.images = images
        self.labels = labels
        self.keys = list(keys)
        self.num_classes = num_classes
        self.counts: list[int] = torch.bincount(labels, minlength=num_classes).tolist()
        self._starts: list[int] = [0, *torch.tensor(self.counts).cumsum(0).tolist()]

    def __len__(self) -> int:
        """M."""
        return len(self.images)

    def of_class(self, label: int) -> Tensor:
        """View of one class's images, (n, 3, H, W) uint8."""
        return self.images[self._starts[label] : self._starts[label + 1]]

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
        chosen = torch.randperm(self.counts[label], generator=generator)[:n]
        return to_unit_range(self.of_class(label)[chosen])

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
        return Labelled(to_unit_range(self.images[chosen]), self.labels[chosen])

    def select(self, indices: Tensor) -> "RealImages":
        """The images at `indices` (any order, (m,) int64), again ordered by class."""
        indices = indices.sort().values
        keys = [self.keys[i] for i in indices.tolist()]
        return RealImages(self.images[indices], self.labels[indices], keys, self.num_classes)
