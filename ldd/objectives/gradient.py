"""Gradient matching (DC): equal classifier gradients on real and synthetic images, class by class."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

from ldd.augmentation.siamese import OPERATIONS
from ldd.errors import check_at_least, check_not_negative
from ldd.networks import ConvNet, Network
from ldd.networks.training import train_classifier
from ldd.objectives.base import CODES, StepContext, Term
from ldd.objectives.matching import MatchingObjective, Networks, Rates, check_sgd, has_batch_norm, with_all
from ldd.runtime.precision import without_autocast

_STATISTICS = 16  # real images of each class from which batch normalisation takes its statistics

_DRAWN = "place in the pool"

Distance = Callable[[Sequence[Tensor], Sequence[Tensor], float], Tensor]


class GradientMatching(MatchingObjective):
    """DC (Zhao et al., ICLR 2021) with siamese augmentation, on generated images (LD3M, arXiv 2403.03881).

    One step is one update of the codes. The network is drawn anew every `outer_loop` steps; between them it is
    trained for `inner_loop` epochs on the synthetic images of before the update (as LD3M's code does, which spares
    making them anew), and carried across steps and checkpoints.

    Batch normalisation takes its statistics from 16 real images of every class at the start of a step, and keeps them
    in it (as published).

    Args:
        lr_latents: SGD learning rate of Z (published: 0.1).
        lr_conditioning: SGD learning rate of c (published: 0.1).
        lr_spread: SGD learning rate of the spread of `GaussianCodes`; None takes a tenth of lr_latents.
        momentum: of all of these.
        lr_decoder: Adam learning rate of a decoder that is trained with the codes (published by D3: 3e-4).
        weight_decay_decoder: of that Adam (published: 1e-5).
        real_batch: real images per class and step; a class with fewer is an error.
        network: the matching network; of a list, one is drawn whenever it is drawn anew.
        outer_loop: steps per network (published by LD3M: 1, so that it is never trained).
        inner_loop: epochs on the synthetic images between two steps.
        lr_network: SGD learning rate of that training.
        batch_network: its batch size.
        distance: "rows" (published), "mse" or "cosine", see the functions of this file.
        epsilon: added to products of norms in the cosines (published: 1e-6).
        augmentation: differentiable siamese augmentation strategies; empty for none.
        real_chunk: real images per backward pass (memory only; the result is the same up to rounding).
        budgets: nested budgets, such as [1, 5]: the first image, and the first 5, of each class are matched on their
            own too, so that they are a set of that budget. The loss is the mean over these and all images.
        lr_noise: SGD learning rate of n, where the codes learn it; None takes lr_latents.

    Raises:
        UserError: a number out of range; when the run starts, a budget above the images per class.
    """

    def __init__(
        self,
        lr_latents: float = 0.1,
        lr_conditioning: float = 0.1,
        lr_spread: float | None = None,
        momentum: float = 0.5,
        lr_decoder: float = 3e-4,
        weight_decay_decoder: float = 1e-5,
        real_batch: int = 256,
        network: Networks = ConvNet,
        outer_loop: int = 1,
        inner_loop: int = 1,
        lr_network: float = 0.01,
        batch_network: int = 256,
        distance: Literal["rows", "mse", "cosine"] = "rows",
        epsilon: float = 1e-6,
        augmentation: Sequence[str] = tuple(OPERATIONS),
        real_chunk: int = 256,
        budgets: Sequence[int] = (),
        lr_noise: float | None = None,
    ) -> None:
        rates = Rates(
            lr_latents, lr_conditioning, lr_spread, momentum, lr_decoder, weight_decay_decoder, lr_noise
        )
        super().__init__(network, augmentation, rates, budgets)
        check_at_least(
            1, "objective", outer_loop=outer_loop, inner_loop=inner_loop, batch_network=batch_network
        )
        check_at_least(1, "objective", real_batch=real_batch, real_chunk=real_chunk)
        check_sgd({"network": lr_network}, 0.0)
        check_not_negative("objective", epsilon=epsilon)
        self.real_batch = real_batch
        self.outer_loop = outer_loop
        self.inner_loop = inner_loop
        self.lr_network = lr_network
        self.batch_network = batch_network
        self.distance: Distance = {"rows": row_cosine, "mse": squared_error, "cosine": whole_cosine}[distance]
        self.epsilon = epsilon
        self.real_chunk = real_chunk
        self._trained: dict[str, Tensor] = {}  # the network between two steps, where outer_loop > 1
        self._drawn = 0  # which of the pool it is

    def terms(self, context: StepContext) -> Iterator[Term]:
        """Yield one term: the images' gradient is gathered class by class, then sent to the codes."""
        network = self._current_network(context)
        draws = self.augmentation.draw(
            context.spec.num_classes, context.generator("augmentation"), one_strategy=False
        )

        def view(images: Tensor, label: int) -> Tensor:
            shared = draws[torch.full((len(images),), label)]
            return self.augmentation(context.normalise(images), shared)

        images = context.decode(context.rows)
        leaf = images.detach().requires_grad_()
        total = images.new_zeros(())
        for label in context.classes.tolist():
            real = self._real_gradient(network, view(context.real(label, self.real_batch), label), label)
            own = (context.labels_on_host == label).nonzero().flatten().to(leaf.device, non_blocking=True)
            sizes = with_all(self.budgets, len(own))
            for size in sizes:
                synthetic = loss_gradient(network, view(leaf[own[:size]], label), label, create_graph=True)
                with without_autocast():
                    loss = self.distance(real, synthetic, self.epsilon) / len(sizes)
                    # Freed one by one: memory holds the second-order graph of one class and budget only.
                    loss.backward(inputs=[leaf])  # and not to the network's weights, which nobody reads
                total += loss.detach()
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad  # a rank without classes
        metrics = self.record(context, self._drawn)
        yield Term("gradient", (images * gradient).sum(), (CODES,), report=total, metrics=metrics)
        if (context.turn + 1) % self.outer_loop:
            self._train(network, context, images.detach())

    def _real_gradient(self, network: Network, images: Tensor, label: int) -> list[Tensor]:
        total: list[Tensor] = []
        for chunk in images.split(self.real_chunk):
            share = len(chunk) / len(images)
            gradient = [share * g for g in loss_gradient(network, chunk, label, create_graph=False)]
            total = [a + b for a, b in zip(total, gradient, strict=True)] if total else gradient
        return total

    def _current_network(self, context: StepContext) -> Network:
        goes_on = context.turn % self.outer_loop
        if not goes_on:
            self._drawn = self.draw_network(context)
        network = context.network(self.networks[self._drawn]).requires_grad_(True)
        if goes_on:
            network.load_state_dict(self._trained)
        if has_batch_norm(network):
            _freeze_statistics(network, context)
        return network

    def _train(self, network: Network, context: StepContext, images: Tensor) -> None:
        train_classifier(
            network,
            context.gather(images),
            context.all_labels,
            epochs=self.inner_loop,
            batch_size=self.batch_network,
            optimizer=partial(SGD, lr=self.lr_network),
            augmentation=self.augmentation,
            normalise=context.normalise,
            seed=context.generator("inner training").initial_seed(),
        )
        self._trained = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the network between two steps, so that a resumed run goes on with it."""
        which = {_DRAWN: torch.tensor(self._drawn)} if len(self.networks) > 1 else {}
        return {**self._trained, **which}

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401 - torch's own signature
        """Take what `get_extra_state` returned."""
        self._trained = dict(state)
        self._drawn = int(self._trained.pop(_DRAWN, 0))


@torch.no_grad()
def _freeze_statistics(network: Network, context: StepContext) -> None:
    """Let batch normalisation see 16 real images of every class once, and keep its running statistics from then on."""
    classes = torch.arange(context.spec.num_classes)
    n = min(_STATISTICS, *context.core_set.counts)
    network(context.normalise(context.real_classes(n, classes).images))
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def loss_gradient(network: Network, images: Tensor, label: int, *, create_graph: bool) -> list[Tensor]:
    """Return the gradient of the mean cross-entropy of one class's images with respect to all parameters."""
    labels = torch.full((len(images),), label, device=images.device)
    loss = F.cross_entropy(network(images), labels)
    return list(torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph))


def row_cosine(real: Sequence[Tensor], synthetic: Sequence[Tensor], epsilon: float) -> Tensor:
    """Return the sum of 1 - cos over the output rows of convolution and linear weights, without biases and norms."""
    distances = []
    for a, b in zip(real, synthetic, strict=True):
        if a.ndim in (2, 4):
            a, b = a.flatten(1), b.flatten(1)
            distances.append((1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + epsilon)).sum())
    return torch.stack(distances).sum()


def squared_error(real: Sequence[Tensor], synthetic: Sequence[Tensor], epsilon: float) -> Tensor:
    """Return the squared distance over all parameters."""
    return torch.stack(
        [F.mse_loss(a, b, reduction="sum") for a, b in zip(real, synthetic, strict=True)]
    ).sum()


def whole_cosine(real: Sequence[Tensor], synthetic: Sequence[Tensor], epsilon: float) -> Tensor:
    """Return 1 - cos between the gradients of all parameters laid end to end."""
    a = torch.cat([g.flatten() for g in real])
    b = torch.cat([g.flatten() for g in synthetic])
    cosine: Tensor = (a * b).sum() / (a.norm() * b.norm() + epsilon)
    return 1 - cosine
