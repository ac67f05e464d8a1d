"""What an objective is given in each step, and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldd.classes import DataSpec, Labelled
from ldd.codes import Codes
from ldd.data.real import RealImages
from ldd.networks import Network, NetworkFactory
from ldd.priors import Prior

Embed = Callable[[Tensor, Tensor], Tensor]
"""Maps images (n, C, H, W) in [-1, 1] and their labels, (n,) on the CPU, to something per image, (n, ...)."""


@dataclass(frozen=True)
class Term:
    """One loss of a step: it is back-propagated, its gradients are summed over ranks, its optimizers step.

    Attributes:
        name: log key, `train/<name>` beside `train/loss`.
        value: scalar with graph (constant-memory forms return a surrogate whose gradient is the right one).
        optimizers: names of the optimizers that step.
        report: the number to log where `value` is a surrogate.
    """

    name: str
    value: Tensor
    optimizers: tuple[str, ...]
    report: Tensor | None = None


class StepContext(Protocol):
    """One step as an objective sees it. All classes are dealt over ranks; every rank makes the same draws.

    What is known beforehand is there on the host too: asking the device for it would wait for all its work.

    Attributes:
        step: training step, from 0.
        spec: classes, image size and normalisation.
        classes: labels of this rank's shard, (K',) int64 on the CPU.
        rows: this rank's codes, (N',) int64, class-major.
        labels: their labels, (N',).
        labels_on_host: the same on the CPU.
        num_codes: N, over all ranks.
        all_labels: labels of all codes, (N,).
        all_labels_on_host: the same on the CPU.
        core_set: the real images that are matched.
    """

    step: int
    spec: DataSpec
    classes: Tensor
    rows: Tensor
    labels: Tensor
    labels_on_host: Tensor
    num_codes: int
    all_labels: Tensor
    all_labels_on_host: Tensor
    core_set: RealImages

    def generator(self, purpose: str, label: int | None = None) -> torch.Generator:
        """CPU generator derived from (seed, step, purpose, label)."""

    def network(self, factory: NetworkFactory, purpose: str = "network") -> Network:
        """A freshly initialised network on the run's device and dtype, the same on every rank."""

    def real(self, label: int, n: int) -> Tensor:
        """N different real images of a class, (n, C, H, W) in [-1, 1]."""

    def real_classes(self, n: int, classes: Tensor | None = None) -> Labelled:
        """N different real images of each class of the shard (or of `classes`, on the CPU), class-major."""

    def decode(self, rows: Tensor, then: Embed | None = None) -> Tensor:
        """Synthetic images (n, C, H, W) in [-1, 1] of code `rows`, with graph and in chunks.

        `then` is applied to each chunk inside its activation checkpoint, so that memory stays flat in n.
        """

    def gather(self, own: Tensor) -> Tensor:
        """Values of all codes (N, ...), without graph, from those of this rank's `rows` (N', ...)."""

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as networks see them."""


class Objective(nn.Module, ABC):
    """A way to measure how far the synthetic images are from the real ones. Subclasses are final.

    Learning rates, real batch, matching network and loop counts belong to the objective's component file, so that
    swapping the file swaps them all.
    """

    @abstractmethod
    def terms(self, context: StepContext) -> Iterator[Term]:
        """Losses of one step, each back-propagated and stepped before the next is computed."""

    @abstractmethod
    def optimizers(self, codes: Codes, prior: Prior) -> dict[str, Optimizer]:
        """Optimizers by the names that terms use."""

    @abstractmethod
    def matching_networks(self) -> tuple[NetworkFactory, ...]:
        """Networks used for matching: the evaluation marks all others as unseen."""
