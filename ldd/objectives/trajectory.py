"""Trajectory matching (MTT): training on the synthetic images should move a network as the real ones do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from ldd.augmentation.siamese import OPERATIONS, Draws
from ldd.codes import Codes
from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.experts.trajectories import ExpertNeed, Trajectories
from ldd.networks import ConvNet, Network, NetworkFactory
from ldd.objectives.base import CODES, StepContext, Term
from ldd.objectives.matching import ExpertSearch, MatchingObjective, Rates, check_sgd
from ldd.priors import Prior
from ldd.runtime.devices import send

InnerLoss = Callable[[Tensor, Tensor, int], Tensor]
"""`loss(theta, images, i)`: the student's scalar loss at weights theta (P,) in inner step i; repeatable."""


class TrajectoryMatching(MatchingObjective):
    """MTT (Cazenavette et al., CVPR 2022, arXiv 2203.11932) on generated images, as LD3M uses it (2403.03881).

    Each step takes one expert and a start epoch. A student starts at the expert's weights theta_0 and takes
    `syn_steps` gradient steps on the synthetic images, theta_{i+1} = theta_i - alpha g_i with
    g_i = d CE(augmented batch i; theta_i) / d theta. With theta* the expert's weights `expert_epochs` later,

        L = |theta_0 - alpha sum_i g_i - theta*|^2 / |theta_0 - theta*|^2.

    Both forms of `unroll` give the same L, and differ in its gradients:

    - "constant_memory" (what GLaD and LD3M published; the approximation of TESLA, arXiv 2211.10586): in each g_i
      the weights theta_i are constants. The images get 2/D [alpha (theta* - theta_0) + alpha^2 sum g]^T d g_i/d x,
      with D the denominator, and alpha gets -2/D (theta_0 - alpha sum g - theta*)^T sum g. A first pass sums the
      g_i without second-order graphs, a second one holds the graph of a single inner step at a time.
    - "full" (the original MTT): the exact total derivatives, also through the dependence of theta_i on the images
      and on alpha in earlier steps. Memory grows with `syn_steps`.

    The expert and its start epoch are drawn anew each step (published: the expert files in turn, shuffled), so that
    a step depends on no earlier one. The evaluation does not use the learned step size.

    Args:
        trajectories: folder that `latentdd experts` recorded, or that holds several of them, of which the one that
            fits the run's data and network is taken.
        lr_latents: SGD learning rate of Z (published: 1000).
        lr_conditioning: SGD learning rate of c (published: 1000).
        lr_spread: SGD learning rate of the spread of `GaussianCodes`; None takes a tenth of lr_latents.
        momentum: of all of these.
        lr_decoder: Adam learning rate of a decoder that is trained with the codes (published by D3: 3e-4).
        weight_decay_decoder: of that Adam (published: 1e-5).
        expert_epochs: epochs from start to target.
        max_start_epoch: start epochs are 0..max_start_epoch - 1.
        syn_steps: the student's steps.
        batch_syn: synthetic images per student step, from random permutations of all; None takes all of them.
        step_size: initial alpha; it is learned.
        lr_step_size: its SGD learning rate; 0 keeps it.
        momentum_step_size: of that SGD.
        num_experts: use this number of experts, from the first on; None uses all that were to be recorded.
        network: the matching network, the one of the experts.
        augmentation: differentiable augmentation strategies, one per student step; empty for none.
        draws: codes that are distributions are drawn anew in every `inner_step` (as D3 does), or once per `step`,
            which needs that many times fewer decodings.
        unroll: form of the gradient, see above.
        halved_gradient: the released LD3M code's quirk: half of the gradient with respect to the images.
        lr_noise: SGD learning rate of n, where the codes learn it; None takes lr_latents.
        step_size_offset: the released D3 code's 1e-4: the student steps with LeakyReLU(alpha) + offset; 0 for alpha.

    Raises:
        UserError: a number out of range; in the first step, trajectories that are missing or do not fit.
    """

    _search: ExpertSearch

    def __init__(
        self,
        trajectories: str,
        lr_latents: float = 1000.0,
        lr_conditioning: float = 1000.0,
        lr_spread: float | None = None,
        momentum: float = 0.5,
        lr_decoder: float = 3e-4,
        weight_decay_decoder: float = 1e-5,
        expert_epochs: int = 2,
        max_start_epoch: int = 2,
        syn_steps: int = 10,
        batch_syn: int | None = None,
        step_size: float = 0.01,
        lr_step_size: float = 1e-6,
        momentum_step_size: float = 0.5,
        num_experts: int | None = None,
        network: NetworkFactory = ConvNet,
        augmentation: Sequence[str] = tuple(OPERATIONS),
        draws: Literal["inner_step", "step"] = "inner_step",
        unroll: Literal["constant_memory", "full"] = "constant_memory",
        halved_gradient: bool = False,
        lr_noise: float | None = None,
        step_size_offset: float = 0.0,
    ) -> None:
        check_at_least(1, "objective", expert_epochs=expert_epochs, max_start_epoch=max_start_epoch)
        check_at_least(1, "objective", syn_steps=syn_steps, batch_syn=batch_syn, num_experts=num_experts)
        if not 0 < step_size < float("inf"):
            raise UserError(f"objective.step_size ({step_size}) must be a number above 0")
        check_sgd({"step_size": lr_step_size}, momentum_step_size, "momentum_step_size")
        reason = f"max_start_epoch ({max_start_epoch}) and expert_epochs ({expert_epochs}) reach"
        last = max_start_epoch - 1 + expert_epochs
        need = ExpertNeed(trajectories, network, num_experts, last, reason)
        rates = Rates(
            lr_latents, lr_conditioning, lr_spread, momentum, lr_decoder, weight_decay_decoder, lr_noise
        )
        super().__init__(network, augmentation, rates, search=ExpertSearch(need))
        self.expert_epochs = expert_epochs
        self.max_start_epoch = max_start_epoch
        self.draws = draws
        self.syn_steps = syn_steps
        self.batch_syn = batch_syn
        self.step_size = nn.Parameter(torch.tensor(float(step_size)))
        self.lr_step_size = lr_step_size
        self.momentum_step_size = momentum_step_size
        self.match = {"constant_memory": match_in_constant_memory, "full": match_through_all_steps}[unroll]
        check_not_negative("objective", step_size_offset=step_size_offset)
        self.step_size_offset = step_size_offset
        self.image_factor = 0.5 if halved_gradient else 1.0

    def terms(self, context: StepContext) -> Iterator[Term]:
        """Yield one term; its value is a surrogate with the gradients of the loss, and the loss is reported."""
        stepped: Tensor = self.step_size
        if self.step_size_offset:
            stepped = F.leaky_relu(stepped) + self.step_size_offset
        alpha = stepped.detach().clone()
        found = self._search.find(context)
        shown = self._show(context)
        # Half-precision codes do not make half-precision students: their steps would vanish in the weights.
        images = shown.images.to(torch.promote_types(shown.images.dtype, torch.float32))
        network = found.network.to(images)
        start, target = send(self._draw_expert(context, found.experts), images.device).to(images.dtype)
        loss = StudentLoss(
            network,
            images_to_batch=lambda batch, draws: self.augmentation(context.normalise(batch), draws),
            labels=shown.labels.to(images.device),
            batches=shown.batches,
        )
        result = self.match(loss, start, target, images, alpha.to(images), self.syn_steps)
        # Every rank computes the same; each takes its own images, and a share of what is the same for all.
        share = len(shown.at) / len(images)
        gradient = (self.image_factor * result.images[shown.at]).to(shown.own.dtype)
        surrogate = (shown.own * gradient).sum() + share * result.step_size * stepped
        metrics = {"step_size": share * alpha}
        names = (CODES, "step_size")
        yield Term(
            "trajectory", surrogate, names, share * result.loss, metrics, alpha > 0, lambda: _too_low(alpha)
        )

    def _show(self, context: StepContext) -> "_Shown":
        """Decode what the student sees and nothing else: each code once, or a draw of its own for every inner step."""
        batches = self._draw_batches(context)

        def send(rows: Tensor) -> Tensor:
            return rows.to(context.rows.device, non_blocking=True)

        if not context.stochastic or self.draws == "step":
            # Of 500 images ten batches of 20 show 200.
            seen = torch.cat([rows for rows, _ in batches]).unique()
            mine = context.rows_on_host[torch.isin(context.rows_on_host, seen)]
            own, at = context.decode(mine), send(torch.searchsorted(seen, mine))
            shown = [(send(torch.searchsorted(seen, rows)), draws) for rows, draws in batches]
            return _Shown(own, context.gather(own, at, len(seen)), context.all_labels[send(seen)], at, shown)
        rows = torch.cat([rows for rows, _ in batches])
        mine = torch.isin(rows, context.rows_on_host)
        at = send(mine.nonzero().flatten())
        parts = [part[torch.isin(part, context.rows_on_host)] for part, _ in batches]
        own = torch.cat(context.decode_batches(parts, purpose="trajectory"))
        images = context.gather(own, at, len(rows))
        places = send(torch.arange(len(rows))).split([len(rows) for rows, _ in batches])
        shown = [(place, draws) for place, (_, draws) in zip(places, batches, strict=True)]
        return _Shown(own, images, context.all_labels[send(rows)], at, shown)

    def _draw_expert(self, context: StepContext, experts: Trajectories) -> Tensor:
        """Return weights at the start and at the target, (2, P)."""
        generator = context.generator("expert")
        expert = int(torch.randint(experts.num_experts, (), generator=generator))
        start = int(torch.randint(self.max_start_epoch, (), generator=generator))
        weights = experts.read(expert, [start, start + self.expert_epochs])
        if torch.equal(weights[0], weights[1]):
            raise UserError(
                f"{experts.path(expert)}: the weights are the same after epochs {start} and "
                f"{start + self.expert_epochs}; record experts with a higher learning_rate"
            )
        return weights

    def _draw_batches(self, context: StepContext) -> list[tuple[Tensor, Draws]]:
        """Return rows, on the CPU, and augmentation draws of every student step."""
        total = context.num_codes
        size = total if self.batch_syn is None else self.batch_syn
        if size > total:
            raise UserError(
                f"objective.batch_syn ({size}) is more than the {total} synthetic images; lower it, or set null for all"
            )
        order, augmentation = context.generator("student batches"), context.generator("augmentation")
        batches: list[tuple[Tensor, Draws]] = []
        while len(batches) < self.syn_steps:
            for rows in torch.randperm(total, generator=order).split(size):
                draws = self.augmentation.draw(len(rows), augmentation, one_strategy=True)
                batches.append((rows, draws))
        return batches[: self.syn_steps]

    def optimizers(self, codes: Codes, prior: Prior) -> dict[str, Optimizer]:
        """Return the optimizers of codes and decoder, and SGD over the student's step size."""
        step_size = SGD([self.step_size], lr=self.lr_step_size, momentum=self.momentum_step_size)
        return {**super().optimizers(codes, prior), "step_size": step_size}


def _too_low(alpha: Tensor) -> str:
    return (
        f"the student's learned step size is {alpha.item():g}, no longer above 0; lower "
        "objective.lr_step_size, or lr_latents and lr_conditioning"
    )


class _Shown(NamedTuple):
    """Images of one step: this rank's (n, C, H, W) with graph, all (M, C, H, W) without, and labels (M,) of all.

    `at` (n,) are the places of this rank's among all, `batches` places and augmentation draws of each inner step.
    """

    own: Tensor
    images: Tensor
    labels: Tensor
    at: Tensor
    batches: list[tuple[Tensor, Draws]]


@dataclass(frozen=True)
class StudentLoss:
    """The student's cross-entropy on the batch of an inner step, the same each time it is asked for.

    The network gives the architecture, without dropout; its own weights are not used.
    """

    network: Network
    images_to_batch: Callable[[Tensor, Draws], Tensor]
    labels: Tensor
    batches: Sequence[tuple[Tensor, Draws]]

    def __call__(self, theta: Tensor, images: Tensor, i: int) -> Tensor:
        """Return a scalar with graph to theta (P,) and images (N, C, H, W)."""
        rows, draws = self.batches[i]
        shapes = {name: value.shape for name, value in self.network.named_parameters()}
        parts = theta.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        # Copies: running statistics change in place, which a graph that is still needed would notice.
        buffers = {name: value.clone() for name, value in self.network.named_buffers()}
        batch = self.images_to_batch(images[rows], draws)
        logits = functional_call(self.network, weights | buffers, (batch,))
        return F.cross_entropy(logits, self.labels[rows])


class Match(NamedTuple):
    """A trajectory-matching loss, with its gradients with respect to images (N, C, H, W) and step size."""

    loss: Tensor
    images: Tensor
    step_size: Tensor


def match_in_constant_memory(
    loss: InnerLoss, start: Tensor, target: Tensor, images: Tensor, alpha: Tensor, steps: int
) -> Match:
    """Return the loss and its gradients with each theta_i constant, one inner step's graph at a time.

    Weights at the start and the target are (P,), images (N, C, H, W); alpha is a scalar.
    """
    theta, total = start, torch.zeros_like(start)
    for i in range(steps):
        gradient = _weight_gradient(loss, theta, images, i, create_graph=False)
        total += gradient
        theta = theta - alpha * gradient
    residual = start - alpha * total - target
    scale = 2 / (start - target).square().sum()
    pull, theta, leaf = -scale * alpha * residual, start, images.detach().requires_grad_()
    image_gradient = torch.zeros_like(images)
    for i in range(steps):
        gradient = _weight_gradient(loss, theta, leaf, i, create_graph=True)
        image_gradient += torch.autograd.grad(gradient, leaf, pull)[0]
        theta = theta - alpha * gradient.detach()  # computed again rather than kept
    return Match(residual.square().sum() * scale / 2, image_gradient, -scale * residual.dot(total))


def match_through_all_steps(
    loss: InnerLoss, start: Tensor, target: Tensor, images: Tensor, alpha: Tensor, steps: int
) -> Match:
    """Return the loss and its exact gradients, through all inner steps; arguments as of `match_in_constant_memory`."""
    leaf, rate = images.detach().requires_grad_(), alpha.detach().requires_grad_()
    theta = start.detach().requires_grad_()
    for i in range(steps):
        theta = theta - rate * torch.autograd.grad(loss(theta, leaf, i), theta, create_graph=True)[0]
    distance = (theta - target).square().sum() / (start - target).square().sum()
    image_gradient, rate_gradient = torch.autograd.grad(distance, [leaf, rate])
    return Match(distance.detach(), image_gradient, rate_gradient)


def _weight_gradient(loss: InnerLoss, theta: Tensor, images: Tensor, i: int, *, create_graph: bool) -> Tensor:
    """Return the gradient (P,) at theta as a constant."""
    theta = theta.detach().requires_grad_()
    return torch.autograd.grad(loss(theta, images, i), theta, create_graph=create_graph)[0]
