"""Sets that exist already: images that somebody gives, and artefacts."""

from dataclasses import replace
from typing import TYPE_CHECKING, final

from torch import Tensor

from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount, Storage
from ldd.evaluation.baselines.base import Baseline, Setting
from ldd.images import Labelled
from ldd.students.training_set import TrainingSet

if TYPE_CHECKING:
    from ldd.labels.crops import CropLabels


@final
class FixedSet(Baseline):
    """Images that exist already.

    Args:
        name: what results call them.
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, or (N, K) probabilities.
    """

    def __init__(self, name: str, images: Tensor, labels: Tensor) -> None:
        self.name = name
        self._set = Labelled(images, labels)

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """The same images for every repeat."""
        return self._set


@final
class StoredSet(Baseline):
    """An artefact: the distilled set itself, or the codes before their first step.

    Args:
        name: what results call it.
        distilled: the set.
        soft: train on its soft labels, where it has them; else on its hard ones.
        samples: (P, N, 3, H, W) uint8, draws of its codes, or None.
        crops: labels of its crops in store, which then take the place of its own, or None.
    """

    def __init__(
        self,
        name: str,
        distilled: DistilledSet,
        *,
        soft: bool = True,
        samples: Tensor | None = None,
        crops: "CropLabels | None" = None,
    ) -> None:
        self.name = name
        self._crops = crops
        self._distilled = distilled if soft else replace(distilled, soft_labels=None, label_top_k=None)
        probabilities = self._distilled.soft_labels
        labels = distilled.labels if probabilities is None else probabilities.float()
        self._set = TrainingSet(distilled.images, labels, samples)
        if crops is not None:
            self._set = self._set.with_crops(crops.seed, crops.tensors)

    def set_for(self, repeat: int, setting: Setting) -> TrainingSet:
        """The same for every repeat."""
        return self._set

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """As the set itself tells it; with labels of crops those and the hard ones."""
        own = self._distilled.storage
        if self._crops is None:
            return own
        labels = Amount.of([self._distilled.labels, *self._crops.tensors.values()])
        return replace(own, labels=labels)
