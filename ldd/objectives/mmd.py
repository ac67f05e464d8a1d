"""Maximum mean discrepancy (MMD): samples of the codes should be distributed as the real images are."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from ldd.errors import check_at_least, check_not_negative
from ldd.networks import ConvNet, Network, NetworkFactory
from ldd.objectives.base import CODES, Embed, StepContext, Term
from ldd.objectives.discrepancy import Discrepancy, Measured, RBFMixture, scaled
from ldd.objectives.matching import (
    ExpertSearch,
    MatchingObjective,
    Rates,
    expert_need,
    expert_network,
    real_features,
    refuse_batch_norm,
)

KERNEL = "mmd_kernel"
"""Metric: the mean kernel value between the two samples."""

LOW_SIMILARITY = 1e-3
"""Mean kernel value below which gradients vanish."""


class MaximumMeanDiscrepancy(MatchingObjective):
    """The second loss of D3 (arXiv 2403.00999, as in the released code).

    Per class, `samples` fresh draws of its codes are compared with as many real images, in the features of an expert
    (the input of its last linear layer). The loss is the sum of the classes' discrepancies.

    Args:
        discrepancy: `RBFMixture` or `Sinkhorn`, see there. As released: bandwidths 1, 2, 4, 8, 16, unit absolute,
            scale none; the default measures bandwidths by the median distance of normalised features, since small
            absolute bandwidths leave most kernels at zero.
        trajectories: folder of expert trajectories, as for `TrajectoryMatching`; each step takes one expert. None
            takes a new random network each step.
        expert_epoch: weights of the experts' `last` epoch (as released), of a `random` one from 1 on, or of a fixed
            epoch.
        num_experts: use this number of experts, from the first on; None uses all that were to be recorded.
        network: the network of the features, without batch normalisation.
        samples: draws per class and step, in equal parts from its codes: at least one each, the rest rounded down.
            Codes without a spread are drawn once.
        real_batch: real images per class and step; None takes as many as draws (published).
        num_classes: classes per step, drawn anew each step; None takes all.
        weight: factor of the loss (published: 1).
        reduce: `sum` over classes (published) or their `mean`; a step with fewer classes estimates the same.
        lr_latents: SGD learning rate of Z (published for D3's small decoder: 3e-4).
        lr_conditioning: SGD learning rate of c.
        lr_spread: SGD learning rate of the spread of `GaussianCodes`; None takes a tenth of lr_latents (published: the
            same).
        momentum: of all of these.
        lr_decoder: Adam learning rate of a decoder that is trained with the codes (published by D3: 3e-4).
        weight_decay_decoder: of that Adam (published: 1e-5).
        augmentation: differentiable siamese augmentation strategies, one draw per class (published: none).
        real_chunk: real images per forward pass (memory only; the result is the same up to rounding).
        lr_noise: SGD learning rate of n, where the codes learn it; None takes lr_latents.

    Raises:
        UserError: a number out of range; in the first step, a network with batch normalisation, trajectories that are
            missing or do not fit, a class with too few samples for the discrepancy.
    """

    takes_batch_norm = False

    def __init__(
        self,
        discrepancy: Discrepancy | None = None,
        trajectories: str | None = None,
        expert_epoch: Literal["last", "random"] | int = "last",
        num_experts: int | None = None,
        network: NetworkFactory = ConvNet,
        samples: int = 30,
        real_batch: int | None = None,
        num_classes: int | None = None,
        weight: float = 1.0,
        reduce: Literal["sum", "mean"] = "sum",
        lr_latents: float = 3e-4,
        lr_conditioning: float = 3e-4,
        lr_spread: float | None = None,
        momentum: float = 0.5,
        lr_decoder: float = 3e-4,
        weight_decay_decoder: float = 1e-5,
        augmentation: Sequence[str] = (),
        real_chunk: int = 512,
        lr_noise: float | None = None,
    ) -> None:
        check_at_least(1, "objective", samples=samples, real_batch=real_batch, num_classes=num_classes)
        check_at_least(1, "objective", real_chunk=real_chunk)
        check_not_negative("objective", weight=weight)
        need = expert_need(trajectories, network, num_experts, expert_epoch)
        search = None if need is None else ExpertSearch(need)
        rates = Rates(
            lr_latents, lr_conditioning, lr_spread, momentum, lr_decoder, weight_decay_decoder, lr_noise
        )
        super().__init__(network, augmentation, rates, search=search)
        self.discrepancy = RBFMixture() if discrepancy is None else discrepancy
        self.expert_epoch = expert_epoch
        self.samples = samples
        self.real_batch = real_batch
        self.num_classes = num_classes
        self.weight = weight
        self.reduce = reduce
        self.real_chunk = real_chunk

    def terms(self, context: StepContext) -> Iterator[Term]:
        """Yield one term over the chosen classes of the shard."""
        chosen = self._draw_classes(context)
        classes = context.classes[torch.isin(context.classes, chosen)]
        rows = context.rows_on_host[torch.isin(context.labels_on_host, classes)]
        per_code = max(1, self.samples * context.spec.num_classes // context.num_codes)
        draws = per_code if context.stochastic else 1
        embed = self._features(context)
        features = torch.stack(context.decode_batches([rows] * draws, then=embed, purpose="mmd"), 1)
        if not len(classes):
            # Zero; the other ranks have classes, and what is logged is summed over all.
            nothing = scaled(features, "none").sum()
            known = {KERNEL: nothing.detach()} if self.discrepancy.has_kernel else {}
            yield Term("mmd", nothing, (CODES,), metrics=known)
            return
        synthetic = features.flatten(0, 1).unflatten(0, (len(classes), -1))
        n = synthetic.shape[1] if self.real_batch is None else self.real_batch
        real = real_features(context, embed, n, classes, self.real_chunk)
        measured = self.discrepancy(synthetic, real)
        factor = self.weight * (context.spec.num_classes if self.reduce == "sum" else 1) / len(chosen)
        metrics = self._watch(context, measured, len(chosen))
        yield Term("mmd", factor * measured.distance.sum(), (CODES,), metrics=metrics)

    def _draw_classes(self, context: StepContext) -> Tensor:
        total = context.spec.num_classes
        if self.num_classes is None:
            return torch.arange(total)
        return torch.randperm(total, generator=context.generator("mmd classes"))[: self.num_classes]

    def _features(self, context: StepContext) -> Embed:
        network = self._draw_network(context)
        refuse_batch_norm(network)
        return self.siamese_features(context, network, "mmd augmentation")

    def _draw_network(self, context: StepContext) -> Network:
        if self._search is None:
            return context.network(self.networks[0], "mmd network")
        return expert_network(context, self._search, self.expert_epoch, "mmd expert")

    def _watch(self, context: StepContext, measured: Measured, num_classes: int) -> dict[str, Tensor]:
        if measured.similarity is None:
            return {}
        if context.step % 100 == 0 and float(measured.similarity.mean()) < LOW_SIMILARITY:
            warnings.warn(
                "the kernels between synthetic and real features are nearly zero, and so are their gradients; raise "
                "objective.discrepancy's bandwidths, or set its unit to median",
                stacklevel=2,
            )
        return {KERNEL: measured.similarity.sum() / num_classes}
