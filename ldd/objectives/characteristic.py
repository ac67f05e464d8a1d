"""Characteristic-function matching (NCFM): features should have the distribution of the real ones, at any frequency."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from ldd.augmentation.siamese import OPERATIONS
from ldd.codes import Codes
from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.networks import ConvNet, Network
from ldd.objectives.base import CODES, Embed, StepContext, Term
from ldd.objectives.discrepancy import scaled
from ldd.objectives.matching import (
    ExpertSearch,
    MatchingObjective,
    Networks,
    Rates,
    check_sgd,
    expert_need,
    expert_network,
    groups_of,
    purpose_of,
    real_features,
    refuse_batch_norm,
)
from ldd.priors import Prior
from ldd.runtime import seeding
from ldd.runtime.precision import without_autocast

SAMPLING = "sampling"
"""Name of the sampling networks' optimizer."""

_REPEATS = 16  # times that each output of the sampling network is taken (as released)
_SLOPE = 0.2  # of its leaky rectifiers (as released)
_LEAST = 1e-12  # of the phase term, as released: the root has no slope at 0


class CharacteristicMatching(MatchingObjective):
    """NCFM (Wang et al., CVPR 2025, arXiv 2502.20653): equal characteristic functions of features, class by class.

    phi(t) = mean_j exp(i <t, f_j>) over features f_j of unit length. With phi_r of the real and phi_s of the synthetic
    images of a class, and frequencies t, the loss is the sum over classes of

        weight mean_t sqrt(amplitude (|phi_r| - |phi_s|)^2 + 2 phase (|phi_r| |phi_s| - Re(phi_r conj phi_s))).

    Frequencies are drawn anew for each class and step: from N(0, I) or, with the sampling network, by a small network
    that is trained to raise the loss while the codes lower it (the paper's min-max; off in all released
    configurations). Codes are optimised by AdamW (as released). Released are also features of pre-trained networks
    (`trajectories`), of which a cross-entropy step follows each matching step (`calibration`).

    Args:
        lr_latents: AdamW learning rate of Z (published for pixels: 0.01).
        lr_conditioning: AdamW learning rate of c.
        lr_spread: AdamW learning rate of the spread of `GaussianCodes`; None takes a tenth of lr_latents.
        weight_decay: of that AdamW.
        lr_decoder: Adam learning rate of a decoder that is trained with the codes.
        weight_decay_decoder: of that Adam.
        real_batch: real images per class and step (published: 1024); a class with fewer is an error.
        frequencies: T, per class and step (published: 4096).
        amplitude: weight of the difference of amplitudes (published: 0.5).
        phase: weight of the difference of phases (published: 0.5).
        weight: of the whole (published: 300).
        sampling_network: whether a network draws the frequencies.
        lr_sampling: its SGD learning rate.
        network: newly initialised each step; of a list, each step draws one. No batch normalisation.
        trajectories: folder of expert trajectories, whose networks are taken in its place (`network` is then one); None
            for none.
        expert_epoch: weights of the experts' `last` epoch, of a `random` one from 1 on, or of a fixed epoch.
        num_experts: use this number of experts, from the first on; None uses all that were to be recorded.
        calibration: weight of the cross-entropy of the synthetic images under an expert's last epoch, in a step of its
            own; 0 for none. It needs `trajectories`.
        augmentation: differentiable siamese augmentation strategies, one draw per class; empty for none.
        real_chunk: real images per forward pass (memory only; the result is the same up to rounding).
        lr_noise: AdamW learning rate of n, where the codes learn it; None takes lr_latents.

    Raises:
        UserError: a number out of range, a calibration or a pool that does not fit `trajectories`; in the first step, a
            network with batch normalisation, trajectories that are missing or do not fit.
    """

    takes_batch_norm = False

    def __init__(
        self,
        lr_latents: float = 0.01,
        lr_conditioning: float = 0.01,
        lr_spread: float | None = None,
        weight_decay: float = 0.0,
        lr_decoder: float = 3e-4,
        weight_decay_decoder: float = 1e-5,
        real_batch: int = 256,
        frequencies: int = 4096,
        amplitude: float = 0.5,
        phase: float = 0.5,
        weight: float = 300.0,
        sampling_network: bool = False,
        lr_sampling: float = 1e-3,
        network: Networks = ConvNet,
        trajectories: str | None = None,
        expert_epoch: Literal["last", "random"] | int = "random",
        num_experts: int | None = None,
        calibration: float = 0.0,
        augmentation: Sequence[str] = tuple(OPERATIONS),
        real_chunk: int = 512,
        lr_noise: float | None = None,
    ) -> None:
        check_at_least(1, "objective", real_batch=real_batch, frequencies=frequencies, real_chunk=real_chunk)
        check_not_negative("objective", amplitude=amplitude, phase=phase, weight=weight)
        check_not_negative("objective", weight_decay=weight_decay, calibration=calibration)
        check_sgd({"sampling": lr_sampling}, 0.0)
        if calibration and trajectories is None:
            raise UserError(
                f"objective.calibration ({calibration}) needs trained networks: give objective.trajectories, or set 0"
            )
        need = expert_need(trajectories, network, num_experts, expert_epoch)
        rates = Rates(lr_latents, lr_conditioning, lr_spread, 0.0, lr_decoder, weight_decay_decoder, lr_noise)
        super().__init__(network, augmentation, rates, search=None if need is None else ExpertSearch(need))
        self.weight_decay = weight_decay
        self.real_batch = real_batch
        self.frequencies = frequencies
        self.amplitude = amplitude
        self.phase = phase
        self.weight = weight
        self.sampling_network = sampling_network
        self.lr_sampling = lr_sampling
        self.expert_epoch = expert_epoch
        self.calibration = calibration
        self.real_chunk = real_chunk
        self._samplers: dict[
            int, _SamplingNetwork
        ] = {}  # by the number of features; not part of the state's tensors
        self._stored: dict[str, Tensor] = {}

    def terms(self, context: StepContext) -> Iterator[Term]:
        """Yield the matching term, then, where they are asked for, the sampling network's and the calibration."""
        drawn = self.draw_network(context)
        network, metrics = self._features_of(context, drawn), self.record(context, drawn)
        refuse_batch_norm(network)
        embed = self.siamese_features(context, network, "augmentation")
        real = scaled(real_features(context, embed, self.real_batch, context.classes, self.real_chunk), "l2")
        (features,) = context.decode_batches([context.rows_on_host], embed, purpose_of(drawn))
        synthetic = (
            scaled(features, "l2").unflatten(0, (len(context.classes), -1)) if len(features) else features
        )
        chosen = [self._draw_frequencies(context, label, real) for label in context.classes.tolist()]
        triples = list(zip(real, synthetic, chosen, strict=True))
        yield Term("characteristic", self._sum(features, triples, maximise=False), (CODES,), metrics=metrics)
        if self.sampling_network:
            against = self._sum(features.detach(), triples, maximise=True)
            yield Term("sampling", -against, (SAMPLING,), report=against.detach())
        if self.calibration:
            yield Term("calibration", self.calibration * self._cross_entropy(context), (CODES,))

    def _sum(
        self, features: Tensor, triples: Sequence[tuple[Tensor, Tensor, Tensor]], *, maximise: bool
    ) -> Tensor:
        """Return the loss, with a graph to the features or, to `maximise`, to the frequencies; 0 without classes."""
        total = features.float().sum() * 0
        if maximise:  # every rank steps all of the networks
            total = (
                total
                + sum(weight.sum() for net in self._samplers.values() for weight in net.parameters()) * 0
            )
        for real, synthetic, t in triples:
            pair = (synthetic.detach(), t) if maximise else (synthetic, t.detach())
            total = total + self.weight * characteristic_distance(real, *pair, self.amplitude, self.phase)
        return total

    def _features_of(self, context: StepContext, drawn: int) -> Network:
        if self._search is None:
            return context.network(self.networks[drawn])
        return expert_network(context, self._search, self.expert_epoch, "characteristic expert")

    def _draw_frequencies(self, context: StepContext, label: int, like: Tensor) -> Tensor:
        """Frequencies (T, F) of a class, with a graph to the sampling network if there is one."""
        generator, width = context.generator("frequencies", label), like.shape[-1]
        if not self.sampling_network:
            return torch.randn(self.frequencies, width, generator=generator).to(like)
        count = -(-self.frequencies // _REPEATS)
        noise = torch.randn(max(2, count), width, generator=generator).to(like)
        repeated: Tensor = self._samplers[width](noise).repeat(_REPEATS, 1)[: self.frequencies]
        return repeated

    def _cross_entropy(self, context: StepContext) -> Tensor:
        assert self._search is not None
        teacher = expert_network(context, self._search, "last", "calibration expert")
        (logits,) = context.decode_batches(
            [context.rows_on_host], self._logits(context, teacher), "calibration"
        )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, context.labels, reduction="sum") / context.num_codes

    def _logits(self, context: StepContext, network: Network) -> Embed:
        draws = self.augmentation.draw(
            context.spec.num_classes, context.generator("calibration"), one_strategy=False
        )

        def classify(images: Tensor, labels: Tensor) -> Tensor:
            logits: Tensor = network(self.augmentation(context.normalise(images), draws[labels]))
            return logits

        return classify

    def optimizers(self, codes: Codes, prior: Prior) -> dict[str, Optimizer]:
        """Return AdamW over the codes, Adam over a trained decoder, and SGD over the sampling networks."""
        found = super().optimizers(codes, prior)
        groups = groups_of(codes, self.rates.of_codes())
        found[CODES] = AdamW(groups, weight_decay=self.weight_decay)
        if self.sampling_network:
            self._build_samplers(codes, prior.image_size)
            weights = [weight for network in self._samplers.values() for weight in network.parameters()]
            found[SAMPLING] = SGD(weights, lr=self.lr_sampling)
        return found

    def _build_samplers(self, codes: Codes, image_size: int) -> None:
        """Build one for each number of features that the networks have, the same in every run and on every rank."""
        blank = torch.zeros(1, 3, image_size, image_size)
        for factory in self.networks:
            with torch.no_grad():
                width = factory(int(codes.labels.max()) + 1, image_size).eval().embed(blank).shape[-1]
            with seeding.seeded(0, "sampling network", width):
                network = _SamplingNetwork(width)
            self._samplers[width] = network.to(
                codes.labels.device, torch.promote_types(codes.dtype, torch.float32)
            )
        self.set_extra_state(self._stored)

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the weights of the sampling networks, so that a resumed run goes on with them."""
        states = {width: network.state_dict() for width, network in self._samplers.items()}
        return {f"{width}.{name}": value for width, state in states.items() for name, value in state.items()}

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401 - torch's own signature
        """Take what `get_extra_state` returned: now, or when the networks are built."""
        self._stored = dict(state)
        for width, network in self._samplers.items():
            own = {k.partition(".")[2]: v for k, v in self._stored.items() if k.startswith(f"{width}.")}
            if own:
                network.load_state_dict(own)


@final
class _SamplingNetwork(nn.Sequential):
    """Noise (n, F) -> frequencies (n, F) in (-1, 1): three linear layers with batch normalisation (as released)."""

    def __init__(self, width: int) -> None:
        def layer(last: bool) -> Mapping[str, nn.Module]:
            ends = nn.Tanh() if last else nn.LeakyReLU(_SLOPE)
            # Of the batch alone: running statistics would differ between ranks, and nothing reads them.
            norm = nn.BatchNorm1d(width, track_running_stats=False)
            return {"linear": nn.Linear(width, width), "norm": norm, "end": ends}

        super().__init__(*(module for i in range(3) for module in layer(i == 2).values()))


@without_autocast()
def characteristic_distance(
    real: Tensor, synthetic: Tensor, frequencies: Tensor, amplitude: float = 0.5, phase: float = 0.5
) -> Tensor:
    """Return how far the characteristic functions of features (m, F) and (n, F) are apart at frequencies (T, F).

    A scalar, see `CharacteristicMatching`, without its weight; the phase term is at least 1e-12 (as released).
    """
    (real_cos, real_sin), (own_cos, own_sin) = (_characteristic(x, frequencies) for x in (real, synthetic))
    real_norm, own_norm = _norm(real_cos, real_sin), _norm(own_cos, own_sin)
    out_of_phase = 2 * (real_norm * own_norm - real_cos * own_cos - real_sin * own_sin)
    squared = amplitude * (real_norm - own_norm).square() + phase * out_of_phase.clamp(min=_LEAST)
    return squared.sqrt().mean()


def _norm(cosine: Tensor, sine: Tensor) -> Tensor:
    return (cosine.square() + sine.square()).clamp(min=_LEAST).sqrt()


def _characteristic(features: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (T,) of the mean of exp(i <t, f>)."""
    angles = frequencies @ features.T
    return angles.cos().mean(1), angles.sin().mean(1)
