"""Soft labels: what an early expert of the whole task says of each image, as it is stored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldd.artefact import soft_labels
from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount
from ldd.artefact.soft_labels import Precision
from ldd.errors import UserError
from ldd.experts.trajectories import ExpertNeed
from ldd.images import DataSpec
from ldd.networks.base import dotted_name
from ldd.students.workers import NumWorkers

if TYPE_CHECKING:  # worker processes import this file, and need no data
    from ldd.data.real import EvaluationData

MAX_CANDIDATES = 8
"""Epochs that are tried where nobody names them."""

_CHUNK = 256  # images per forward pass


@dataclass(frozen=True)
class Labeller:
    """Gives images the soft labels of one network.

    Attributes:
        network: in evaluation mode, on the device to work on.
        spec: classes, image size and normalisation.
        temperature: T of softmax(logits / T).
        top_k: probabilities kept of each label; None keeps all.
        precision: of the stored probabilities.
        facts: where the labels come from, for the manifest.
    """

    network: nn.Module
    spec: DataSpec
    temperature: float = 1.0
    top_k: int | None = None
    precision: Precision = "float16"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities (N, K) of images (N, 3, H, W) uint8, on the CPU, as they come back from storage."""
        return soft_labels.quantise(self.probabilities(images), self.top_k, self.precision)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (N, K) float32 of images (N, 3, H, W) uint8, on the CPU, as the network gives them."""
        device = next(self.network.parameters()).device
        logits = [self.network(self.spec.as_input(part.to(device))) for part in images.split(_CHUNK)]
        return (torch.cat(logits).float() / self.temperature).softmax(1).cpu()

    def label(self, distilled: DistilledSet) -> DistilledSet:
        """The set with these labels in the place of any others; the network counts as one it has seen."""
        seen = {*distilled.manifest.seen_networks, dotted_name(type(self.network))}
        return replace(
            distilled,
            soft_labels=self(distilled.images),
            label_top_k=self.top_k,
            manifest=distilled.manifest.replaced(seen_networks=sorted(seen), labels=dict(self.facts)),
        )

    @property
    def bytes_per_label(self) -> int:
        """As stored."""
        return self._one_label().bytes

    @property
    def floats_per_label(self) -> int:
        """Numbers stored; which classes they belong to is no number."""
        return self._one_label().floats

    def _one_label(self) -> Amount:
        return soft_labels.amount_of_one(self.spec.num_classes, self.top_k, self.precision)


class Labels(ABC):
    """A way to label images. Subclasses are final."""

    @abstractmethod
    def choose(
        self,
        data: "EvaluationData",
        counts: Sequence[int],
        seed: int,
        device: torch.device,
        num_workers: NumWorkers = "auto",
    ) -> Labeller:
        """The labeller of a run; under DDP every rank calls this and gets the same.

        Args:
            data: real images, set up; its test split is not touched.
            counts: K numbers of images per class of the set to be labelled.
            seed: of everything random.
            device: where networks run.
            num_workers: worker processes on a CPU.

        Raises:
            UserError: what it needs is missing.
        """

    def experts(self) -> tuple[ExpertNeed, ...]:
        """Expert trajectories that `choose` reads; a run may record them (`experts.num_experts`)."""
        return ()

    @abstractmethod
    def check(self, data: "EvaluationData") -> None:
        """Refuse now what `choose` would refuse later; `data` is set up.

        Raises:
            UserError: what it needs is missing.
        """


def check_form(temperature: float, top_k: int | None) -> None:
    """Refuse a temperature or a number of stored probabilities that no label can have.

    Raises:
        UserError: names the argument.
    """
    if not 0 < temperature < float("inf"):
        raise UserError(f"labels.temperature ({temperature}) must be a number above 0")
    if top_k is not None and top_k < 1:
        raise UserError(f"labels.top_k ({top_k}) must be at least 1")


def check_top_k(top_k: int | None, spec: DataSpec) -> None:
    """Refuse to store more probabilities than there are classes.

    Raises:
        UserError: both numbers.
    """
    if top_k is not None and top_k > spec.num_classes:
        raise UserError(f"labels.top_k ({top_k}) is more than the {spec.num_classes} classes; lower it")
