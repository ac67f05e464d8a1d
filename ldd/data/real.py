"""Real images of one split, held as bytes and ordered by class."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Protocol as Interface

import torch
from torch import Tensor

from ldd.errors import UserError
from ldd.images import DataSpec, ImageRows, Images, Labelled, to_bytes, to_unit_range
from ldd.runtime.devices import send
from ldd.runtime.seeding import generator

_WANTED = "the number of different images"


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
        spec: classes, image size and normalisation; None where they are unknown.
        certain: False where some may still be left out, unreadable ones or by a pruner.
        explain: given a label and a number that its class cannot give, returns the class's name and the cure, for
            messages; None where only the label is known.
        fingerprint: returns their `ldd.data.fingerprints.fingerprint`; None where the files are not known.
    """

    spec: DataSpec | None = None
    certain: bool = True
    explain: Callable[[int, int], str] | None = None
    fingerprint: Callable[[], str] | None = None

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
        """Return M."""
        return len(self._rows)

    @property
    def images(self) -> Tensor:
        """All of them, (M, 3, H, W) uint8: the store itself, or a copy of what was selected from it."""
        return self._part(0, len(self))

    @property
    def at_hand(self) -> Images:
        """All of them, without copying any: the store itself, or the rows of it that were selected."""
        return self._run(self._rows) if self._is_run(self._rows) else ImageRows(self._store, self._rows)

    def take(self, places: Tensor) -> Tensor:
        """Return a copy of the images at `places` ((n,) int64, any order), (n, 3, H, W) uint8."""
        return self._store[self._rows[places]]

    def of_class(self, label: int) -> Tensor:
        """Return one class's images, (n, 3, H, W) uint8: a view where they lie side by side, else a copy."""
        return self._part(self._starts[label], self._starts[label + 1])

    def _part(self, start: int, end: int) -> Tensor:
        rows = self._rows[start:end]
        return self._run(rows) if self._is_run(rows) else self._store[rows]

    @staticmethod
    def _is_run(rows: Tensor) -> bool:
        """Whether rows, which ascend, leave no gap between them."""
        return len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1

    def _run(self, rows: Tensor) -> Tensor:
        return self._store[int(rows[0]) : int(rows[-1]) + 1]

    def require(self, label: int, n: int, wanted: str) -> None:
        """Raise if a class has fewer than `n` images; `wanted` is the setting that asks for them.

        Raises:
            UserError: the setting with its value, the class and, after pruning, the smallest share that works.
        """
        if n > self.counts[label]:
            reason = f"class {label}; lower it" if self.explain is None else self.explain(label, n)
            raise UserError(f"{wanted} ({n}) is more than the {self.counts[label]} real images of {reason}")

    def draw(self, label: int, n: int, generator: torch.Generator, wanted: str = _WANTED) -> Tensor:
        """Draw `n` different images of a class, (n, 3, H, W) float32 in [-1, 1].

        Raises:
            UserError: as `require`.
        """
        return self.gathered(self.draw_places([label], n, [generator], wanted))

    def draw_places(
        self, labels: Sequence[int], n: int, generators: Sequence[torch.Generator], wanted: str = _WANTED
    ) -> Tensor:
        """Draw the places of `n` different images of each of K' classes, (K' n,) int64, class-major.

        Args:
            labels: the K' classes.
            n: images of each.
            generators: CPU generator of each class.
            wanted: the setting that asks for them, for the message.

        Raises:
            UserError: as `require`.
        """
        chosen = [self._rows.new_empty(0)]
        for label, draws in zip(labels, generators, strict=True):
            self.require(label, n, wanted)
            chosen.append(self._starts[label] + torch.randperm(self.counts[label], generator=draws)[:n])
        return torch.cat(chosen)

    def gathered(self, places: Tensor, device: torch.device | None = None) -> Tensor:
        """Return the images at `places`, (n, 3, H, W) float32 in [-1, 1], on `device` (None: where they are held)."""
        found = self._store[send(self._rows[places], self._store.device)]
        # Sent as bytes: a quarter of what floats take.
        return to_unit_range(found if device is None else send(found, device))

    def draw_set(self, counts: Sequence[int], wanted: str, seed: int, *key: object) -> Labelled:
        """Draw `counts[label]` different images of each class as uint8, class-major.

        Args:
            counts: K numbers of images.
            wanted: the setting that asks for them, for the message.
            seed: of the draws; a class's draws follow from (seed, key, label).
            *key: what else they depend on.

        Raises:
            UserError: as `require`.
        """
        drawn = [
            to_bytes(self.draw(label, n, generator(seed, *key, label), wanted=wanted))
            for label, n in enumerate(counts)
            if n
        ]
        return Labelled(torch.cat(drawn), torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))

    def batch(self, n: int, generator: torch.Generator) -> Labelled:
        """Draw `n` different images from all classes together, float32 in [-1, 1], with labels (n,).

        Raises:
            UserError: there are fewer than `n` images.
        """
        if n > len(self):
            raise UserError(
                f"a batch of {n} is more than the {len(self)} images there are; use a smaller batch"
            )
        chosen = torch.randperm(len(self), generator=generator)[:n]
        return Labelled(self.gathered(chosen), self.labels[chosen])

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return len(self) * self._store[:1].nbytes if len(self) else 0

    def to(self, device: torch.device) -> "RealImages":
        """Return the same with the images on `device` (this object if they are there); labels stay on the CPU."""
        if device == self._store.device:
            return self
        moved = copy(self)
        moved._store, moved._rows = self.images.to(device), torch.arange(len(self))
        return moved

    def select(self, indices: Tensor) -> "RealImages":
        """Return the images at `indices` ((m,) int64, all different), ordered by class, without copying any."""
        indices = indices.sort().values
        assert bool((indices[1:] > indices[:-1]).all()), "each image at most once"
        part = RealImages.__new__(RealImages)
        part._store = self._store
        keys = [self.keys[i] for i in indices.tolist()]
        part._index(self._rows[indices], self.labels[indices], keys, self.num_classes)
        return part


class EvaluationData(Interface):
    """Real images that an evaluation or a labeller works with, there after `setup`; `DistillationData` has them."""

    spec: DataSpec
    train_images: RealImages
    core_set: RealImages
    selection_images: RealImages
    test_images: RealImages

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Which images these are."""

    def setup(self, stage: str | None = None) -> None:
        """Load the splits; a second call does nothing."""
