"""Distribution matching (DM): equal mean features under random networks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ldd.augmentation.siamese import OPERATIONS
from ldd.errors import check_at_least
from ldd.networks import ConvNet
from ldd.objectives.base import CODES, Embed, StepContext, Term
from ldd.objectives.matching import (
    MatchingObjective,
    Networks,
    Rates,
    has_batch_norm,
    purpose_of,
    real_features,
    with_all,
)


class DistributionMatching(MatchingObjective):
    """DM (Zhao and Bilen, WACV 2023) on generated images, as LD3M uses it (arXiv 2403.03881).

    Each step draws a new random network and, per class, one augmentation shared by real and synthetic images;
    the loss is the sum over classes of the squared distance between mean features.

    A list of networks is a pool (Zhou et al., arXiv 2402.13007), from which each step draws one.

    A network with batch normalisation sees all classes in one batch, the real images in one and the synthetic ones
    in another, so that the statistics of each are joint (as published): neither `real_chunk` nor the run's
    `chunk_size` applies to its passes, and memory grows with both batches.

    Args:
        lr_latents: SGD learning rate of Z (published: 1).
        lr_conditioning: SGD learning rate of c (published: 1).
        lr_spread: SGD learning rate of the spread of `GaussianCodes`; None takes a tenth of lr_latents.
        momentum: of all of these.
        lr_decoder: Adam learning rate of a decoder that is trained with the codes (published by D3: 3e-4).
        weight_decay_decoder: of that Adam (published: 1e-5).
        real_batch: real images per class and step; a class with fewer is an error.
        network: the matching network, newly initialised each step and never trained; or a list of them.
        augmentation: differentiable siamese augmentation strategies; empty for none.
        real_chunk: real images per forward pass (memory only; the result is the same up to rounding).
        budgets: nested budgets, such as [1, 5]: the first image, and the first 5, of each class are matched on their
            own too, so that they are a set of that budget. The loss is the mean over these and all images.
        lr_noise: SGD learning rate of n, where the codes learn it; None takes lr_latents.

    Raises:
        UserError: real_batch, real_chunk or a budget below 1; when the run starts, a budget above the images per class.
    """

    def __init__(
        self,
        lr_latents: float = 1.0,
        lr_conditioning: float = 1.0,
        lr_spread: float | None = None,
        momentum: float = 0.5,
        lr_decoder: float = 3e-4,
        weight_decay_decoder: float = 1e-5,
        real_batch: int = 256,
        network: Networks = ConvNet,
        augmentation: Sequence[str] = tuple(OPERATIONS),
        real_chunk: int = 512,
        budgets: Sequence[int] = (),
        lr_noise: float | None = None,
    ) -> None:
        rates = Rates(
            lr_latents, lr_conditioning, lr_spread, momentum, lr_decoder, weight_decay_decoder, lr_noise
        )
        super().__init__(network, augmentation, rates, budgets)
        check_at_least(1, "objective", real_batch=real_batch, real_chunk=real_chunk)
        self.real_batch = real_batch
        self.real_chunk = real_chunk

    def terms(self, context: StepContext) -> Iterator[Term]:
        """Yield one term over all classes of the shard."""
        drawn = self.draw_network(context)
        network, metrics = context.network(self.networks[drawn]), self.record(context, drawn)
        embed = self.siamese_features(context, network, "augmentation")
        if has_batch_norm(network):
            yield replace(self._joint_term(context, embed), metrics=metrics)
            return
        real = real_features(context, embed, self.real_batch, context.classes, self.real_chunk)
        images_per_class = context.num_codes // context.spec.num_classes
        # Decoded, augmented and embedded in chunks, whose size is planned for each network.
        (synthetic,) = context.decode_batches([context.rows_on_host], embed, purpose_of(drawn))
        synthetic = synthetic.unflatten(0, (len(context.classes), images_per_class))
        yield Term("distribution", nested_distance(real, synthetic, self.budgets), (CODES,), metrics=metrics)

    def _joint_term(self, context: StepContext, embed: Embed) -> Term:
        """Compute the whole loss on every rank, which sends its own images their part of the gradient."""
        num_classes = context.spec.num_classes
        own = context.decode(context.rows)
        leaf = context.gather(own).requires_grad_()
        real = real_features(context, embed, self.real_batch, torch.arange(num_classes))
        labels, order = context.all_labels_on_host.sort(stable=True)
        synthetic = embed(leaf[order.to(leaf.device, non_blocking=True)], labels)
        loss = nested_distance(real, synthetic.unflatten(0, (num_classes, -1)), self.budgets)
        (gradient,) = torch.autograd.grad(loss, leaf)
        surrogate = (own * gradient[context.rows]).sum()
        share = len(context.rows) / context.num_codes
        return Term("distribution", surrogate, (CODES,), report=share * loss.detach())


def mean_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return the sum over classes of the squared distance between the means of features (K, n, F) and (K, m, F).

    In at least single precision: a mean of half precision keeps no digits of a small difference.
    """
    real, synthetic = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (real, synthetic))
    return (real.mean(1) - synthetic.mean(1)).square().sum()


def nested_distance(real: Tensor, synthetic: Tensor, budgets: Sequence[int]) -> Tensor:
    """Return the mean of `mean_distance` over the first images of each class for every budget, and over all."""
    sizes = with_all(budgets, synthetic.shape[1])
    return torch.stack([mean_distance(real, synthetic[:, :size]) for size in sizes]).mean()
