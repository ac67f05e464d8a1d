"""The common part of objectives that match networks: optimizers of codes and decoder, budgets, features, experts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import vector_to_parameters
from torch.optim import SGD, Adam, Optimizer

from ldd.augmentation.siamese import SiameseAugmentation
from ldd.codes import Codes
from ldd.data.real import RealImages
from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.experts.trajectories import ExpertNeed, Trajectories, blank_network, find_experts
from ldd.images import DataSpec
from ldd.networks import Network, NetworkFactory
from ldd.objectives.base import CODES, DECODER, Embed, Objective, StepContext
from ldd.priors import Prior
from ldd.runtime.devices import send


@dataclass(frozen=True)
class Rates:
    """Learning rates and momentum of codes (SGD, a rate for each group), and of a decoder trained with them (Adam)."""

    latents: float
    conditioning: float
    spread: float | None = None
    momentum: float = 0.5
    decoder: float = 3e-4
    decay: float = 1e-5
    noise: float | None = None

    def __post_init__(self) -> None:
        check_sgd(self.of_codes(), self.momentum)
        check_not_negative("objective", lr_decoder=self.decoder, weight_decay_decoder=self.decay)

    def of_codes(self) -> dict[str, float]:
        """Return the learning rate of each group of codes."""
        spread = self.latents / 10 if self.spread is None else self.spread
        noise = self.latents if self.noise is None else self.noise
        return {"latents": self.latents, "conditioning": self.conditioning, "spread": spread, "noise": noise}


Networks = tuple[NetworkFactory, ...] | NetworkFactory
"""A matching network, or a pool of them of which each step draws one."""


class MatchingObjective(Objective):
    """Matches the outputs of one network, behind siamese augmentation, on real and on synthetic images.

    Budgets are nested, in images per class: the first images of a class, as many as a budget has, are matched on their
    own too.

    Attributes:
        takes_batch_norm: whether a network may have it; not where a class must not tell on the others.
    """

    takes_batch_norm: ClassVar[bool] = True

    def __init__(
        self,
        network: Networks,
        augmentation: Sequence[str],
        rates: Rates,
        budgets: Sequence[int] = (),
        search: "ExpertSearch | None" = None,
    ) -> None:
        super().__init__()
        check_at_least(1, "objective", budgets=min(budgets, default=1))
        self.networks = tuple(network) if isinstance(network, (list, tuple)) else (network,)
        if not self.networks:
            raise UserError("objective.network ([]) must be a network, or a list of one or more")
        self.augmentation = SiameseAugmentation(augmentation)
        self.rates = rates
        self.budgets = tuple(sorted(set(budgets)))
        self._search = search

    def optimizers(self, codes: Codes, prior: Prior) -> dict[str, Optimizer]:
        """Return SGD over the codes and, where the prior has trainable weights, Adam over those."""
        if self.budgets:
            fewest = int(codes.labels.bincount().min())
            if self.budgets[-1] > fewest:
                raise UserError(
                    f"objective.budgets ({self.budgets[-1]}) must not be above images_per_class ({fewest})"
                )
        found: dict[str, Optimizer] = {CODES: sgd_on_codes(codes, self.rates.of_codes(), self.rates.momentum)}
        if decoder := list(prior.trainable()):
            found[DECODER] = Adam(decoder, lr=self.rates.decoder, weight_decay=self.rates.decay)
        return found

    def matching_networks(self) -> tuple[NetworkFactory, ...]:
        """Return the network, or all of the pool."""
        return self.networks

    def check_networks(self, spec: DataSpec) -> None:
        """See `Objective.check_networks`."""
        for factory in () if self.takes_batch_norm else self.networks:
            refuse_batch_norm(blank_network(factory, spec))

    def draw_network(self, context: StepContext) -> int:
        """Return the place in `networks` of the one that this step draws, each as likely; the same on every rank."""
        if len(self.networks) == 1:
            return 0
        return int(torch.randint(len(self.networks), (), generator=context.generator("pool")))

    def record(self, context: StepContext, drawn: int) -> dict[str, Tensor]:
        """Return the metric `network`, the place of the drawn one; nothing without a pool."""
        share = len(context.rows) / context.num_codes  # metrics are summed over ranks
        return {"network": torch.tensor(share * drawn)} if len(self.networks) > 1 else {}

    def experts(self) -> tuple[ExpertNeed, ...]:
        """Return the experts that are read, if any are."""
        return () if self._search is None else (self._search.pinned(),)

    def siamese_features(self, context: StepContext, network: Network, purpose: str) -> Embed:
        """Return the features of augmented images; all images of a class share an augmentation."""
        draws = self.augmentation.draw(
            context.spec.num_classes, context.generator(purpose), one_strategy=False
        )

        def embed(images: Tensor, labels: Tensor) -> Tensor:
            return network.embed(self.augmentation(context.normalise(images), draws[labels]))

        return embed


def purpose_of(drawn: int) -> str:
    """Return under which purpose images are decoded for one network of a pool: each has a memory plan of its own."""
    return f"codes for network {drawn}" if drawn else "codes"


def real_features(
    context: StepContext, embed: Embed, n: int, classes: Tensor, chunk: int | None = None
) -> Tensor:
    """Return features (K', n, F), without graph, of `n` real images of each of `classes`, `chunk` at once."""
    labels = classes.repeat_interleave(n)
    chunk = len(labels) if chunk is None else chunk
    with torch.no_grad():
        parts = zip(context.real_parts(n, classes, chunk), labels.split(chunk), strict=True)
        features = torch.cat([embed(*part) for part in parts])
    return features.view(len(classes), n, *features.shape[1:])


def has_batch_norm(network: Network) -> bool:
    """Return whether a network has batch normalisation, which makes images of a batch depend on each other."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def with_all(budgets: Sequence[int], images: int) -> list[int]:
    """Return the budgets and the number of all images of a class, each once."""
    return sorted({*budgets, images})


def refuse_batch_norm(network: Network) -> None:
    """Raise for a network whose features of an image depend on the classes and ranks it is decoded with."""
    if has_batch_norm(network):
        raise UserError(
            "objective.network: batch normalisation would mix classes and ranks; set the network's norm to instance"
        )


def check_sgd(learning_rates: Mapping[str, float], momentum: float, momentum_name: str = "momentum") -> None:
    """Raise for a rate (argument `lr_<name>`) that is negative, infinite or NaN, or a momentum outside [0, 1)."""
    check_not_negative("objective", **{f"lr_{name}": rate for name, rate in learning_rates.items()})
    if not 0 <= momentum < 1:
        raise UserError(f"objective.{momentum_name} ({momentum}) must be at least 0 and below 1")


def sgd_on_codes(codes: Codes, learning_rates: Mapping[str, float], momentum: float) -> SGD:
    """Return SGD with one learning rate per group of codes (LD3M: momentum 0.5, no decay, no schedule)."""
    return SGD(groups_of(codes, learning_rates), momentum=momentum)


def groups_of(codes: Codes, learning_rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the codes' groups for an optimizer, each with its learning rate."""
    groups = codes.groups()
    if not groups:
        raise UserError(
            "codes: nothing is learned; set learn_latents, learn_conditioning or learn_noise to true"
        )
    if missing := groups.keys() - learning_rates.keys():
        raise UserError(f"objective: no learning rate for the codes' {', '.join(sorted(missing))}")
    return [{"params": values, "lr": learning_rates[name]} for name, values in groups.items()]


@dataclass(frozen=True)
class FoundExperts:
    """Experts that fit a run, with a network of their architecture (on its device, with random weights)."""

    core_set: RealImages
    network: Network
    experts: Trajectories


class ExpertSearch(nn.Module):
    """Looks a recording up in the first step and keeps it; the state is which one, and how many experts it had.

    A run that is resumed draws from as many, also if others have been recorded meanwhile.
    """

    def __init__(self, need: ExpertNeed) -> None:
        super().__init__()
        self.need = need
        self._found: FoundExperts | None = None
        self._began: dict[str, Any] = {}  # of a run that is resumed

    def find(self, context: StepContext) -> FoundExperts:
        """Return the recording for this run's data and network.

        Raises:
            UserError: none fits, or the run began with one that was trained in another way.
        """
        if self._found is None or self._found.core_set is not context.core_set:
            core_set, network = context.core_set, context.network(self.need.network)
            experts = find_experts(self.pinned(), context.spec, core_set)
            if self._began not in ({}, _facts(experts)):
                raise UserError(
                    f"objective.trajectories ({experts.folder}): the experts are not those that this run began with "
                    f"({self._began['training']}); restore them, or start another run"
                )
            self._found = FoundExperts(core_set, network, experts)
        return self._found

    def pinned(self) -> ExpertNeed:
        """Return what is read: of a run that is resumed, as many experts as it began with."""
        return replace(self.need, num_experts=self._began.get("num_experts", self.need.num_experts))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the number of experts and their training; nothing before the first step."""
        return self._began if self._found is None else _facts(self._found.experts)

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401 - torch's own signature
        """Take what `get_extra_state` returned."""
        self._began = dict(state)


def _facts(experts: Trajectories) -> dict[str, Any]:
    return {"num_experts": experts.num_experts, "training": asdict(experts.training)}


Epoch = Literal["last", "random"] | int
"""Which weights of an expert are taken: of its last epoch, of a random one from 1 on, or of a fixed one."""


def expert_need(
    trajectories: str | None, network: Networks, num_experts: int | None, epoch: Epoch
) -> ExpertNeed | None:
    """Return what an objective that takes features of experts reads; None without trajectories.

    Raises:
        UserError: a number below 1, or a pool of networks, of which a recording has one.
    """
    fixed = epoch if isinstance(epoch, int) else 1
    check_at_least(1, "objective", num_experts=num_experts, expert_epoch=fixed)
    if trajectories is None:
        return None
    if isinstance(network, (list, tuple)):
        raise UserError(
            f"objective.network: {len(network)} networks, but the experts in trajectories ({trajectories}) are of "
            "one; name that one, or leave trajectories out"
        )
    return ExpertNeed(trajectories, network, num_experts, fixed, f"expert_epoch ({epoch}) takes")


def expert_network(context: StepContext, search: ExpertSearch, epoch: Epoch, purpose: str) -> Network:
    """Return the network with the weights of an expert that this step draws for `purpose`."""
    found, generator = search.find(context), context.generator(purpose)
    expert = int(torch.randint(found.experts.num_experts, (), generator=generator))
    number = epoch if isinstance(epoch, int) else found.experts.training.epochs
    if epoch == "random":
        number = 1 + int(torch.randint(number, (), generator=generator))
    parameters = list(found.network.parameters())
    weights = send(found.experts.read(expert, [number])[0], parameters[0].device)
    vector_to_parameters(weights.to(parameters[0].dtype), parameters)
    return found.network
