"""Losses of objectives as guides of sampling."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from ldd.augmentation.siamese import OPERATIONS
from ldd.errors import UserError, check_not_negative
from ldd.images import DataSpec, Labelled, saturate
from ldd.initializers.base import ClassStart
from ldd.networks import ConvNet, Network, NetworkFactory
from ldd.networks.base import names_of
from ldd.objectives import DistributionMatching, GradientMatching, Objective
from ldd.objectives.base import Embed, StepContext, frozen_network
from ldd.priors import Guide
from ldd.runtime import seeding


class Guidance(ABC):
    """Corrects latents of a class at sampling steps `first_step` down to `last_step`. Subclasses are final.

    Attributes:
        at_once: how many latents are sampled together; None for all of the class.
        encodes: whether it encodes real images.
    """

    at_once: int | None = None
    encodes: bool = False

    def __init__(self, first_step: int | None, last_step: int) -> None:
        if last_step < 0 or (first_step is not None and first_step < last_step):
            raise UserError(
                f"guidance: steps are counted down from first_step ({first_step}) to last_step ({last_step}), which "
                "must be at least 0 and not above it"
            )
        self.first_step = first_step
        self.last_step = last_step

    def takes(self, k: int) -> bool:
        """Return whether step k is guided."""
        return self.last_step <= k and (self.first_step is None or k <= self.first_step)

    def check_steps(self, num_steps: int) -> None:
        """Raise for steps that sampling does not take.

        Raises:
            UserError: with those that it takes.
        """
        first = self.last_step if self.first_step is None else self.first_step
        if first >= num_steps:
            name = "last_step" if self.first_step is None else "first_step"
            raise UserError(
                f"guidance.{name} ({first}) must be one of the sampler's steps, {num_steps - 1} down to 0"
            )

    @abstractmethod
    def guide(self, start: ClassStart) -> Guide:
        """Return what guides a class, for `Prior.sample`."""

    def networks(self, spec: DataSpec) -> set[str]:
        """Return the dotted names of the networks that it asks."""
        return set()


@final
class LossGuidance(Guidance):
    """The gradient of a matching loss corrects the predicted clean latents at chosen steps of sampling.

    At step k from `first_step` down to `last_step` the correction is -rate dL/dx0: L is the loss of DM or DC, as the
    objective of that name computes it, between all latents of the class, decoded, and a fresh batch of real images
    under a new random network. IGD (ICLR 2025) guides with gradients of trained networks in steps 45 to 30 of 50; OT
    and DAP with other losses.

    Args:
        loss: `distribution` (`DistributionMatching`) or `gradient` (`GradientMatching`).
        rate: length of the step against the gradient.
        first_step: the first guided step (the noisiest is num_steps - 1).
        last_step: the last guided one.
        real_batch: real images of the class at each step.
        network: newly drawn at each step; without batch normalisation, since classes are sampled one by one.
        augmentation: differentiable siamese augmentation strategies; empty for none.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        loss: Literal["distribution", "gradient"] = "distribution",
        rate: float = 1.0,
        first_step: int = 45,
        last_step: int = 30,
        real_batch: int = 64,
        network: NetworkFactory = ConvNet,
        augmentation: Sequence[str] = tuple(OPERATIONS),
    ) -> None:
        super().__init__(first_step, last_step)
        check_not_negative("guidance", rate=rate)
        kind: Callable[..., Objective] = DistributionMatching if loss == "distribution" else GradientMatching
        self.objective = kind(real_batch=real_batch, network=network, augmentation=augmentation)
        self.rate = rate

    def networks(self, spec: DataSpec) -> set[str]:
        """Return the one of the loss."""
        return names_of(self.objective.matching_networks(), spec)

    def guide(self, start: ClassStart) -> Guide:
        """Return what corrects all latents of a class, for `Prior.sample`."""

        def correction(x0: Tensor, k: int, rows: Tensor) -> Tensor:
            if not self.takes(k):
                return x0.new_zeros(())
            leaf = x0.detach().requires_grad_()
            with torch.enable_grad():
                (term, *_) = self.objective.terms(_GuidedStep(start, leaf, k))
                (gradient,) = torch.autograd.grad(term.value, leaf)
            return -self.rate * gradient

        return correction


class _GuidedStep(StepContext):
    """The `StepContext` of one class: its predicted clean latents x0, a leaf, are this rank's only codes."""

    stochastic = False

    def __init__(self, start: ClassStart, x0: Tensor, k: int) -> None:
        label, n = start.info.label, len(x0)
        self.step = self.turn = 0  # an objective that trains its network does so between steps
        self.spec = start.spec
        self.core_set = start.real
        self.classes = torch.tensor([label])
        self.rows_on_host = torch.arange(n)
        self.labels_on_host = torch.full((n,), label)
        self.rows, self.labels = self.rows_on_host.to(x0.device), self.labels_on_host.to(x0.device)
        self.num_codes = n * self.spec.num_classes
        self.all_labels, self.all_labels_on_host = self.labels, self.labels_on_host
        self._start, self._x0, self._k = start, x0, k

    def generator(self, purpose: str, label: int | None = None) -> torch.Generator:
        """Return the CPU generator derived from (seed, sampling step, purpose, class)."""
        return seeding.generator(self._start.seed, "guidance", self._k, purpose, label)

    def network(self, factory: NetworkFactory, purpose: str = "network") -> Network:
        """Return a freshly initialised network, frozen and without dropout; the same for every class."""
        key = (self._start.seed, "guidance", self._k, purpose)
        return frozen_network(factory, self.spec, *key).to(self._x0)

    def real_classes(self, n: int, classes: Tensor | None = None) -> Labelled:
        """Return `n` different real images of the class."""
        self._refuse_others(classes)
        label = self._start.info.label
        drawn = self.core_set.draw(label, n, self.generator("real", label), "guidance.real_batch")
        return Labelled(drawn.to(self._x0), torch.full((n,), label, device=self._x0.device))

    def decode_batches(
        self, batches: Sequence[Tensor], then: Embed | None = None, purpose: str = "codes"
    ) -> list[Tensor]:
        """Return images of each batch of latents, or what `then` makes of them, with graph."""
        decoded = []
        for rows in batches:
            images = saturate(self._start.prior.decode(self._x0[rows.to(self._x0.device)]))
            decoded.append(images if then is None else then(images, self.labels_on_host[rows]))
        return decoded

    def gather(self, own: Tensor, at: Tensor | None = None, total: int | None = None) -> Tensor:
        """Raise: classes are sampled one by one."""
        self._refuse_others(torch.arange(self.spec.num_classes))
        return own

    def _refuse_others(self, classes: Tensor | None) -> None:
        if classes is not None and classes.tolist() != self.classes.tolist():
            raise UserError(
                "guidance.network: one with batch normalisation needs the images of all classes at once, but classes "
                "are sampled one by one; choose a network without (ConvNet with norm: instance)"
            )
