"""A run's codes as an artefact: what it says of itself beside its images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.experts.recording import cost_of_experts
from ldd.networks.base import dotted_name
from ldd.runtime.ledger import (
    DECODES,
    DISTIL,
    EXPERTS,
    LABEL,
    PRUNE,
    STEPS,
    Figures,
    Ledger,
    Stages,
    measured,
    total,
)
from ldd.runtime.ranks import sum_over_ranks

if TYPE_CHECKING:
    from ldd.distiller.module import Distiller


def describe(
    distiller: "Distiller", images: Tensor, prior: Mapping[str, Any], pruning: Mapping[str, Any] | None
) -> DistilledSet:
    """The set of a run as it is now, with the labels that the run gives and what it has cost.

    Args:
        distiller: its codes, decoder and settings.
        images: of its codes, (N, 3, H, W) uint8 on the CPU.
        prior: what `ldd.priors.identify` says of its frozen weights.
        pruning: what was left out of the real images, and by what, or None.
    """
    spec, codes = distiller.data_spec, distiller.codes
    factories = distiller.objective.matching_networks()
    seen = {type(factory(spec.num_classes, spec.image_size)) for factory in factories}
    described = DistilledSet.from_images(
        images,
        codes.labels.cpu(),
        spec.classes,
        mean=spec.mean,
        std=spec.std,
        codes=codes.tensors(),
        decoder=distiller.prior.trained() or None,
        seed=distiller.seed,
        test_split_fingerprint=spec.fingerprint,
        licences={"prior": distiller.prior.licence, "data": spec.licence},
        seen_networks=sorted(map(dotted_name, seen)),
        prior=prior,
    )
    described = described.with_facts(step=int(distiller.num_steps_done), pruning=pruning or None)
    return distiller.ledger.written(described)


if TYPE_CHECKING:
    from ldd.distiller.module import Distiller

NOT_KEPT: Stages = {DISTIL: {DECODES: None}}
"""Of a checkpoint from before ledgers were kept: what it has cost is unknown, not nothing."""


class RunLedger(Ledger):
    """What each stage has cost; evaluations charge the saved set themselves.

    Args:
        model: whose run it is.
    """

    def __init__(self, model: "Distiller") -> None:
        super().__init__()
        self._model = model
        self._expert_costs: dict[bool, Figures] = {}
        self._in_step = 0
        self._decodes: int | Tensor = 0

    def decoded(self, images: int) -> None:
        """Note images that this rank decodes for its objective, with their graph or without."""
        self._in_step += images

    def end_step(self) -> None:
        """Add up what all ranks have decoded; every rank calls this."""
        many = self._model.trainer.world_size > 1  # then a tensor, for which no step waits
        if many:
            self._decodes += sum_over_ranks(torch.full((), self._in_step, device=self._model.device))
        else:
            self._decodes += self._in_step
        self._in_step = 0

    def kept(self) -> dict[str, dict[str, float | None]]:
        """What a checkpoint must keep: not the experts, who keep theirs, nor what the model counts itself."""
        cost = self._data.pruning_cost
        own: dict[str, Figures] = {DISTIL: {DECODES: int(self._decodes)}}
        if cost is not None:
            own[PRUNE] = cost
        return total([self.stages, own])

    def written(self, described: DistilledSet) -> DistilledSet:
        """A set with the labels of the run, where it has any, and what all stages have cost so far."""
        model = self._model
        if model.labeller is not None:
            with self.charge(LABEL, model.device):
                described = model.labeller.label(described)
        stages = self.kept()
        if experts := self._cost_of_experts(stepped=int(model.num_steps_done) > 0):
            stages[EXPERTS] = dict(experts)
        stages[DISTIL] |= {**measured(float(model.seconds), model.device), STEPS: int(model.num_steps_done)}
        return described.charged(stages)

    def _cost_of_experts(self, *, stepped: bool) -> Figures:
        """Of those that the labels read, and the objective once a step was taken."""
        if stepped not in self._expert_costs:
            model = self._model
            needs = () if model.labels is None else model.labels.experts()
            needs = (*(model.objective.experts() if stepped else ()), *needs)
            self._expert_costs[stepped] = cost_of_experts(needs, self._data)
        return self._expert_costs[stepped]

    @property
    def _data(self) -> DistillationData:
        data = self._model.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DistillationData)
        return data
