"""The record of a run: the description of its set, the identity of its prior, and the ledger of its costs."""

from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldd.artefact.identity import identify
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.distiller.synthesis import Synthesis
from ldd.errors import UserError
from ldd.experts.recording import cost_of_experts
from ldd.experts.trajectories import ExpertNeed
from ldd.images import DataSpec
from ldd.initializers import Initializer
from ldd.networks.base import names_of
from ldd.objectives import Objective
from ldd.priors import Prior
from ldd.runtime import ledger as costs
from ldd.runtime.ledger import DECODES, DISTIL, EXPERTS, STEPS, Figures, Ledger, Stages
from ldd.runtime.precision import reduced_matmul
from ldd.runtime.ranks import sum_over_ranks, this_rank
from ldd.runtime.tables import facts_table

NOT_KEPT: Stages = {DISTIL: {DECODES: None}}
"""Costs in a checkpoint from before ledgers were kept: unknown, which is not nothing."""


def shown(model: Any) -> dict[str, str]:  # noqa: ANN401 - a Distiller, whose module imports this one
    """Return what a distiller says of itself in a line or in a notebook."""
    made = f"{model.images_per_class} of each of {model.data_spec.num_classes} classes"
    return {
        "codes": f"{type(model.codes).__name__}: {made}",
        "step": str(int(model.num_steps_done)),
        "objective": type(model.objective).__name__,
        "prior": repr(model.prior),
    }


def shown_as_table(model: Any) -> str:  # noqa: ANN401 - likewise
    """Return the same as a table, for a notebook."""
    return facts_table("Distiller", shown(model))._repr_html_()


def describe(
    synthesis: Synthesis,
    spec: DataSpec,
    images: Tensor,
    *,
    seen: Set[str],
    prior: Mapping[str, Any],
    pruning: Mapping[str, Any] | None,
    data_fingerprints: Mapping[str, str],
    seed: int,
    step: int,
) -> DistilledSet:
    """Return the set of a run, with `images` of all its codes (uint8, on the CPU), without labels and costs."""
    codes = synthesis.codes
    by_pruner = {(pruning or {}).get("network") or ""} - {""}
    packed = codes.packing > 1  # grids are all that is kept
    described = DistilledSet.from_images(
        images,
        codes.labels.cpu()[:: codes.packing**2],
        spec.classes,
        mean=spec.mean,
        std=spec.std,
        codes=None if packed else codes.tensors(),
        decoder=None if packed else synthesis.prior.trained() or None,
        seed=seed,
        test_split_fingerprint=spec.fingerprint,
        licences={"prior": synthesis.prior.licence, "data": spec.licence},
        seen_networks=sorted(seen | by_pruner),
        prior=None if packed else prior,
        packing=codes.packing if packed else None,
    )
    return described.with_facts(
        step=step,
        pruning=pruning or None,
        data_fingerprints=dict(data_fingerprints),
        matmul_precision=reduced_matmul(),
    )


class RunRecord:
    """What a run's checkpoints and its set keep of it: the prior's frozen weights, and the networks that took part."""

    def __init__(self, prior: Prior, initializer: Initializer, objective: Objective, spec: DataSpec) -> None:
        self._prior = prior
        self._parts = initializer, objective, spec
        self._started = set[str]()

    def start(self) -> None:
        """Note the networks of the initialiser, which has set the codes."""
        initializer, _, spec = self._parts
        self._started = initializer.networks(spec)

    def seen(self, step: int) -> set[str]:
        """Return the dotted names of the networks that codes were started with and, after a step, matched by."""
        _, objective, spec = self._parts
        return self._started | (names_of(objective.matching_networks(), spec) if step else set())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The result of `identify`; the weights never change."""
        return identify(self._prior)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add both to a checkpoint."""
        checkpoint["prior"] = dict(self.identity)
        checkpoint["started_with"] = sorted(self._started)

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the networks of a checkpoint; an older one says neither.

        Raises:
            UserError: with both hashes, if its run had other weights.
        """
        before, now = checkpoint.get("prior", {}).get("sha256"), self.identity["sha256"]
        if before not in (None, now):
            raise UserError(
                f"ckpt_path: the run was started with other weights of the prior (sha256 then {before}, now {now}); "
                "restore them, or start another run"
            )
        if "started_with" in checkpoint:  # what started them may lie elsewhere by now
            self._started = set(checkpoint["started_with"])
        else:
            self.start()


class RunLedger(Ledger):
    """What each stage of a run has cost; evaluations charge the saved set themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._expert_costs: dict[bool, Figures] = {}  # before and after the first step
        self._in_step = 0
        self._decodes: int | Tensor = 0

    def decoded(self, images: int) -> None:
        """Count images that this rank decodes for its objective, with their graph or without."""
        self._in_step += images

    def end_step(self, device: torch.device) -> None:
        """Add up what all ranks have decoded; every rank calls this."""
        if this_rank()[1] > 1:  # a tensor, for which no step waits
            self._decodes += sum_over_ranks(torch.full((), self._in_step, device=device))
        else:
            self._decodes += self._in_step
        self._in_step = 0

    def kept(self, data: DistillationData) -> dict[str, dict[str, float | None]]:
        """Return what a checkpoint must keep: not the experts, which keep theirs, nor the model's own counts."""
        own: dict[str, Figures] = {DISTIL: {DECODES: int(self._decodes)}}
        if data.pruning_cost is not None:
            own[costs.PRUNE] = data.pruning_cost
        return costs.total([self.stages, own])

    def so_far(
        self,
        data: DistillationData,
        device: torch.device,
        needs: Sequence[ExpertNeed],
        seconds: float,
        steps: int,
    ) -> dict[str, dict[str, float | None]]:
        """Return what all stages have cost after `seconds` and `steps` of distilling, with the experts it needs."""
        stages = self.kept(data)
        if (stepped := steps > 0) not in self._expert_costs:
            self._expert_costs[stepped] = cost_of_experts(needs, data)
        if experts := self._expert_costs[stepped]:
            stages[EXPERTS] = dict(experts)
        stages[DISTIL] |= {**costs.measured(seconds, device), STEPS: steps}
        return stages
