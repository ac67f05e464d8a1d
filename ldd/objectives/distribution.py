"""Distribution matching (DM): equal mean features under random networks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ldd.augmentation.siamese import OPERATIONS, SiameseAugmentation
from ldd.codes import Codes
from ldd.errors import UserError
from ldd.networks import ConvNet, NetworkFactory
from ldd.objectives.base import CODES, Embed, Objective, StepContext, Term
from ldd.objectives.budgets import as_budgets, check_budgets, with_all
from ldd.objectives.optimizers import check_sgd, code_rates, synthesis_optimizers
from ldd.priors import Prior


class DistributionMatching(Objective):
    """DM (Zhao and Bilen, WACV 2023) on generated images, as LD3M uses it (arXiv 2403.03881).

    Each step draws a new random network and, per class, one augmentation shared by real and synthetic images;
    the loss is the sum over classes of the squared distance between mean features.

    A network with batch normalisation sees all classes in one batch, the real images in one and the synthetic ones
    in another, so that the statistics of each are joint (as published): neither `real_chunk` nor the run's
    `chunk_size` applies to its passes, and memory grows with both batches.

    Args:
        lr_latents: SGD learning rate of Z (published: 1).
        lr_conditioning: SGD learning rate of c (published: 1).
        lr_spread: SGD learning rate of the log-variances and factors of `GaussianCodes`; None takes a tenth of
            lr_latents.
        momentum: of all of these.
        lr_decoder: Adam learning rate of a decoder that is trained with the codes (published for D3's small one:
            3e-4); without effect on a frozen prior.
        weight_decay_decoder: of that Adam (published: 1e-5).
        real_batch: real images per class and step; a class with fewer is an error.
        network: the matching network, newly initialised each step and never trained.
        augmentation: differentiable siamese augmentation strategies; empty for none.
        real_chunk: real images per forward pass (memory only; the result is the same up to rounding).
        budgets: nested budgets: the first so many images of each class are matched on their own too, so that they are
            the set of that budget. The loss is the mean over these and all images; none by default.

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
        network: NetworkFactory = ConvNet,
        augmentation: Sequence[str] = tuple(OPERATIONS),
        real_chunk: int = 512,
        budgets: Sequence[int] = (),
    ) -> None:
        super().__init__()
        for name, value in (("real_batch", real_batch), ("real_chunk", real_chunk)):
            if value < 1:
                raise UserError(f"objective.{name} ({value}) must be at least 1")
        self.budgets = as_budgets(budgets)
        self.rates = code_rates(lr_latents, lr_conditioning, lr_spread)
        self.momentum = momentum
        check_sgd(self.rates, momentum)
        self.decoder_rates = (lr_decoder, weight_decay_decoder)
        self.real_batch = real_batch
        self.network = network
        self.augmentation = SiameseAugmentation(augmentation)
        self.real_chunk = real_chunk

    def terms(self, context: StepContext) -> Iterator[Term]:
        """One term over all classes of the shard."""
        network = context.network(self.network)
        draws = self.augmentation.draw(
            context.spec.num_classes, context.generator("augmentation"), one_strategy=False
        )

        def embed(images: Tensor, labels: Tensor) -> Tensor:
            return network.embed(self.augmentation(context.normalise(images), draws[labels]))

        if any(isinstance(module, _BatchNorm) for module in network.modules()):
            yield self._joint_term(context, embed)
            return
        images = context.real_classes(self.real_batch).images
        labels = context.classes.repeat_interleave(self.real_batch)
        with torch.no_grad():
            parts = zip(images.split(self.real_chunk), labels.split(self.real_chunk), strict=True)
            real_features = torch.cat([embed(*part) for part in parts])
        synthetic_features = context.decode(context.rows, then=embed)
        num_classes, images_per_class = len(context.classes), context.num_codes // context.spec.num_classes
        loss = nested_distance(
            real_features.unflatten(0, (num_classes, self.real_batch)),
            synthetic_features.unflatten(0, (num_classes, images_per_class)),
            self.budgets,
        )
        yield Term("distribution", loss, (CODES,))

    def _joint_term(self, context: StepContext, embed: Embed) -> Term:
        """Every rank computes the whole loss and sends its own images their part of the gradient."""
        num_classes = context.spec.num_classes
        own = context.decode(context.rows)
        leaf = context.gather(own).requires_grad_()
        with torch.no_grad():
            classes = torch.arange(num_classes)
            images = context.real_classes(self.real_batch, classes).images
            real = embed(images, classes.repeat_interleave(self.real_batch))
        labels, order = context.all_labels_on_host.sort(stable=True)
        synthetic = embed(leaf[order.to(leaf.device, non_blocking=True)], labels)
        parts = (real.unflatten(0, (num_classes, -1)), synthetic.unflatten(0, (num_classes, -1)))
        loss = nested_distance(*parts, self.budgets)
        (gradient,) = torch.autograd.grad(loss, leaf)
        share = len(context.rows) / context.num_codes
        return Term(
            "distribution",
            (own * gradient[context.rows]).sum(),
            (CODES,),
            report=share * loss.detach(),
        )

    def optimizers(self, codes: Codes, prior: Prior) -> dict[str, Optimizer]:
        """SGD over the codes, one learning rate for each group, and Adam over a trained decoder.

        Raises:
            UserError: a budget above the images per class, or as of `synthesis_optimizers`.
        """
        check_budgets(self.budgets, codes)
        return synthesis_optimizers(codes, prior, self.rates, self.momentum, *self.decoder_rates)

    def matching_networks(self) -> tuple[NetworkFactory, ...]:
        """The one matching network."""
        return (self.network,)


def mean_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Sum over classes of the squared distance between class means of features.

    Args:
        real: (K, n, F).
        synthetic: (K, m, F).
    """
    return (real.mean(1) - synthetic.mean(1)).square().sum()


def nested_distance(real: Tensor, synthetic: Tensor, budgets: Sequence[int]) -> Tensor:
    """Mean of `mean_distance` over the first so many images of each class and all of them.

    Args:
        real: (K, n, F).
        synthetic: (K, m, F).
        budgets: each at most m; m itself counts once, whether it is among them or not.
    """
    sizes = with_all(budgets, synthetic.shape[1])
    return torch.stack([mean_distance(real, synthetic[:, :size]) for size in sizes]).mean()
