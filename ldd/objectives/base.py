"""The interface of objectives: what one is given in each step, and the terms that it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from ldd.codes import Codes
from ldd.data.real import RealImages
from ldd.experts.trajectories import ExpertNeed
from ldd.images import DataSpec, Labelled
from ldd.networks import Network, NetworkFactory
from ldd.networks.base import seeded_network
from ldd.priors import Prior

CODES, DECODER = "codes", "decoder"
"""Names of optimizers. A term that names `CODES` steps `DECODER` as well, where the prior has trainable weights."""

Embed = Callable[[Tensor, Tensor], Tensor]
"""Maps images (n, C, H, W) in [-1, 1] and their labels, (n,) on the CPU, to something per image, (n, ...)."""


@dataclass(frozen=True)
class Term:
    """One loss of a step: it is back-propagated, its gradients are summed over ranks, its optimizers step.

    Attributes:
        name: log key, `train/<name>`.
        value: scalar with graph (constant-memory forms return a surrogate whose gradient is the right one).
        optimizers: names of the optimizers that step, see also `CODES`.
        report: the number to log where `value` is a surrogate.
        metrics: further numbers to log, `train/<name>`; like the value they are summed over ranks.
        holds: 0-d truth on the device without which the step is undone and the run ends, as with a value that is not
            finite; None for nothing else.
        otherwise: what to say then.
    """

    name: str
    value: Tensor
    optimizers: tuple[str, ...]
    report: Tensor | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    holds: Tensor | None = None
    otherwise: Callable[[], str] = str


class StepContext(Protocol):
    """One step as an objective sees it. All classes are dealt over ranks; every rank makes the same draws.

    What is known beforehand is on the host as well: asking the device for it would wait for all of its work.

    Attributes:
        step: training step, from 0.
        turn: how many steps the objective has taken part in before this one; `step` unless it alternates with others.
        spec: classes, image size and normalisation.
        classes: labels of this rank's shard, (K',) int64 on the CPU.
        rows: this rank's codes, (N',) int64, class-major.
        rows_on_host: the same on the CPU.
        labels: their labels, (N',).
        labels_on_host: the same on the CPU.
        num_codes: N, over all ranks.
        all_labels: labels of all codes, (N,).
        all_labels_on_host: the same on the CPU.
        core_set: the real images that are matched.
        stochastic: whether draws of one code differ.
    """

    step: int
    turn: int
    spec: DataSpec
    classes: Tensor
    rows: Tensor
    rows_on_host: Tensor
    labels: Tensor
    labels_on_host: Tensor
    num_codes: int
    all_labels: Tensor
    all_labels_on_host: Tensor
    core_set: RealImages
    stochastic: bool

    def generator(self, purpose: str, label: int | None = None) -> torch.Generator:
        """Return the CPU generator derived from (seed, step, purpose, label)."""

    def network(self, factory: NetworkFactory, purpose: str = "network") -> Network:
        """Return a freshly initialised network on the run's device and dtype, the same on every rank."""

    def real_classes(self, n: int, classes: Tensor | None = None) -> Labelled:
        """Return `n` different real images of each class of the shard (or of `classes`, on the CPU), class-major."""

    def real_parts(self, n: int, classes: Tensor, chunk: int) -> Iterator[Tensor]:
        """Yield the images of `real_classes`, up to `chunk` at a time: of many classes they would fill the memory."""
        yield from self.real_classes(n, classes).images.split(chunk)

    def decode_batches(
        self, batches: Sequence[Tensor], then: Embed | None = None, purpose: str = "codes"
    ) -> list[Tensor]:
        """Return synthetic images (n, C, H, W) in [-1, 1] of each batch of code rows (n,) on the CPU, with graph.

        They are made in chunks; `then` is applied to each chunk inside its activation checkpoint, so that memory stays
        flat in n. Every batch and every purpose draws anew from the codes.
        """

    def gather(self, own: Tensor, at: Tensor | None = None, total: int | None = None) -> Tensor:
        """Return values of all codes (N, ...), without graph, from those of this rank's `rows` (N', ...).

        With `at` (n',) and `total`: values (total, ...) of anything else of which this rank has those at `at`.
        """

    def real(self, label: int, n: int) -> Tensor:
        """Return `n` different real images of a class, (n, C, H, W) in [-1, 1]."""
        return self.real_classes(n, torch.tensor([label])).images

    def decode(self, rows: Tensor, then: Embed | None = None) -> Tensor:
        """Return synthetic images of code `rows`, or what `then` makes of them, see `decode_batches`."""
        return self.decode_batches([self.rows_on_host if rows is self.rows else rows.cpu()], then)[0]

    def normalise(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1] as networks see them."""
        return self.spec.normalise(images)


class Objective(nn.Module, ABC):
    """A way to measure how far the synthetic images are from the real ones. Subclasses are final.

    Learning rates, real batch, matching network and loop counts belong to the objective's component file, so that
    swapping the file swaps them all.
    """

    @abstractmethod
    def terms(self, context: StepContext) -> Iterator[Term]:
        """Yield the losses of one step, each back-propagated and stepped before the next is computed."""

    @abstractmethod
    def optimizers(self, codes: Codes, prior: Prior) -> dict[str, Optimizer]:
        """Return optimizers by the names that terms use, also the ones of the prior's trainable weights."""

    @abstractmethod
    def matching_networks(self) -> tuple[NetworkFactory, ...]:
        """Return the networks used for matching: the evaluation marks all others as unseen."""

    def check_networks(self, spec: DataSpec) -> None:
        """Raise UserError for a network that the objective cannot match; most take any."""

    def experts(self) -> tuple[ExpertNeed, ...]:
        """Return expert trajectories that must be recorded before the first step; most objectives need none."""
        return ()

    def real_images(self) -> int:
        """Return how many different real images of a class a step needs: `real_batch`, 0 where there is none."""
        return getattr(self, "real_batch", None) or 0


def frozen_network(factory: NetworkFactory, spec: DataSpec, seed: int, *key: object) -> Network:
    """Return a network initialised from (seed, key), without gradients and without dropout."""
    network = seeded_network(factory, spec, seed, *key)
    for module in network.modules():
        if isinstance(module, _DropoutNd):  # noise that neither a rank nor a recomputation could repeat
            module.eval()
    return network.requires_grad_(False)
