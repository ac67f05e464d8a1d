"""Sets that exist already: given images, and artefacts."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, final

from torch import Tensor

from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount, Storage
from ldd.evaluation.baselines.base import Baseline, Setting
from ldd.images import Labelled
from ldd.students.training_set import Draws, Size, TrainingSet

if TYPE_CHECKING:
    from ldd.labels.crops import CropLabels


@final
class FixedSet(Baseline):
    """Images that exist already.

    Args:
        name: of the set in results.
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, or (N, K) probabilities.
    """

    def __init__(self, name: str, images: Tensor, labels: Tensor) -> None:
        self.name = name
        self._set = Labelled(images, labels)

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """Return the same images for every repeat."""
        return self._set


@final
class StoredSet(Baseline):
    """An artefact: the distilled set itself, or the codes before their first step.

    Args:
        name: of the set in results.
        distilled: the set.
        soft: train on its soft labels, where it has them; else on its hard ones.
        samples: draws of its codes, as a tensor (P, N, 3, H, W) uint8 or made later; or None.
        crops: stored labels of its crops, which take the place of its own; or None.
    """

    def __init__(
        self,
        name: str,
        distilled: DistilledSet,
        *,
        soft: bool = True,
        samples: Tensor | Draws | None = None,
        crops: "CropLabels | None" = None,
    ) -> None:
        self.name = name
        self._crops = crops
        self._distilled = distilled if soft else replace(distilled, soft_labels=None, label_top_k=None)
        self._samples = samples

    @cached_property
    def training(self) -> TrainingSet:
        """The set that its students learn."""
        seen = self._distilled.unpacked()
        images, probabilities = seen.images, seen.soft_labels
        labels = seen.labels if probabilities is None else probabilities.float()
        samples = self._samples
        if isinstance(samples, Draws) and samples.held:
            samples = samples.images
        training = TrainingSet(images, labels, samples)
        return training if self._crops is None else training.with_crops(self._crops.seed, self._crops.tensors)

    def set_for(self, repeat: int, setting: Setting) -> TrainingSet:
        """Return the same set for every repeat."""
        return self.training

    def size(self, repeat: int, setting: Setting) -> Size:
        """Count images and draws; none is drawn."""
        draws = 0 if self._samples is None else len(self._samples)
        soft = self._distilled.soft_labels is not None
        images = len(self._distilled.images) * self._distilled.packing**2
        return Size(images, draws, soft, crops=self._crops is not None)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """Return the set's own figures; stored labels of crops are charged as well as the hard ones."""
        own = self._distilled.storage
        if self._crops is None:
            return own
        labels = Amount.of([self._distilled.labels, *self._crops.tensors.values()])
        return replace(own, labels=labels)
