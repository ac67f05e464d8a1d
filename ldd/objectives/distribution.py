"""Distribution matching (DM): equal mean features under random networks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from ldd.augment import OPERATIONS, SiameseAugmentation
from ldd.codes import Codes
from ldd.networks import ConvNet, NetworkFactory
from ldd.objectives.base import Objective, StepContext, Term
from ldd.objectives.optimizers import sgd_on_codes
from ldd.priors import Prior


class DistributionMatching(Objective):
    """DM (Zhao and Bilen, WACV 2023) on generated images, as LD3M uses it (arXiv 2403.03881).

    Each step draws a new random network and, per class, one augmentation shared by real and synthetic images;
    the loss is the sum over classes of the squared distance between mean features.

    Args:
        lr_latents: SGD learning rate of Z (published: 1).
        lr_conditioning: SGD learning rate of c (published: 1).
        momentum: of both.
        real_batch: real images per class and step; a class with fewer is an error.
        network: the matching network, newly initialised each step and never trained.
        augmentation: differentiable siamese augmentation strategies; empty for none.
        real_chunk: real images per forward pass (memory only; the result is the same up to rounding).
    """

    def __init__(
        self,
        lr_latents: float = 1.0,
        lr_conditioning: float = 1.0,
        momentum: float = 0.5,
        real_batch: int = 256,
        network: NetworkFactory = ConvNet,
        augmentation: Sequence[str] = tuple(OPERATIONS),
        real_chunk: int = 512,
    ) -> None:
        super().__init__()
        self.rates = {"latents": lr_latents, "conditioning": lr_conditioning}
        self.momentum = momentum
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

        real = context.real_classes(self.real_batch)
        with torch.no_grad():
            parts = zip(real.images.split(self.real_chunk), real.labels.split(self.real_chunk), strict=True)
            real_features = torch.cat([embed(*part) for part in parts])
        synthetic_features = context.decode(context.rows, then=embed)
        num_classes = len(context.classes)
        loss = mean_distance(
            real_features.unflatten(0, (num_classes, -1)), synthetic_features.unflatten(0, (num_classes, -1))
        )
        yield Term("distribution", loss, ("codes",))

    def optimizers(self, codes: Codes, prior: Prior) -> dict[str, Optimizer]:
        """SGD over the codes, one learning rate for each group."""
        return {"codes": sgd_on_codes(codes, self.rates, self.momentum)}

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
