"""Several objectives in one step, in turn or as a sum."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from ldd.codes import Codes
from ldd.errors import UserError
from ldd.experts.trajectories import ExpertNeed
from ldd.images import DataSpec
from ldd.networks import NetworkFactory
from ldd.objectives.base import CODES, DECODER, Objective, StepContext, Term
from ldd.priors import Prior


class Alternating(Objective):
    """Takes each objective in turn: a backward pass and a step of its optimizers before the next objective.

    D3 (arXiv 2403.00999, as in the released code) alternates `TrajectoryMatching` and `MaximumMeanDiscrepancy`.
    The optimizers of codes and decoder, with their momenta, are one for all objectives; what else an objective
    optimises (the student's step size) is its own.

    Args:
        objectives: two or more. Where optimizers are shared, their settings must be the same.
        every: the i-th objective takes part in every `every[i]`-th step; None for all in every step.
        mode: `alternate`, or `sum`: one backward pass and one step for the sum of all losses.
        share_optimizers: False gives each objective optimizers of its own, with its own settings and momenta (mode
            `alternate` only).

    Raises:
        UserError: fewer than two objectives, not one number in `every` for each of them, none of them 1, `sum` without
            shared optimizers; when the run starts, shared optimizers with different settings.
    """

    def __init__(
        self,
        objectives: list[Objective],
        every: list[int] | None = None,
        mode: Literal["alternate", "sum"] = "alternate",
        share_optimizers: bool = True,
    ) -> None:
        super().__init__()
        if len(objectives) < 2:
            raise UserError(f"objective.objectives: {len(objectives)} given; two or more can alternate")
        every = [1] * len(objectives) if every is None else every
        if len(every) != len(objectives) or min(every) != 1:
            raise UserError(
                f"objective.every ({every}) must have a number from 1 on for each of the {len(objectives)} objectives, "
                "and a 1 among them"
            )
        if mode == "sum" and not share_optimizers:
            raise UserError("objective.share_optimizers (false): a sum has one step; choose mode: alternate")
        self.objectives = nn.ModuleList(objectives)
        self.every = every
        self.mode = mode
        self.share_optimizers = share_optimizers

    def terms(self, context: StepContext) -> Iterator[Term]:
        """Yield the terms of all objectives that take part in this step."""
        taking_part = [i for i, every in enumerate(self.every) if context.step % every == 0]
        streams = [self._terms(i, context) for i in taking_part]
        if self.mode == "alternate":
            for stream in streams:
                yield from stream
            return
        for together in zip_longest(*streams):
            yield _sum([term for term in together if term is not None])

    def _terms(self, i: int, context: StepContext) -> Iterator[Term]:
        own = copy(context)
        own.turn = context.step // self.every[i]  # so that an objective's own cycles are whole
        for term in self._children[i].terms(own):
            yield replace(term, optimizers=tuple(self._name(i, name) for name in term.optimizers))

    def _name(self, i: int, name: str) -> str:
        return name if self.share_optimizers and name in (CODES, DECODER) else f"{name} {i}"

    @property
    def _children(self) -> Sequence[Objective]:
        return [child for child in self.objectives if isinstance(child, Objective)]

    def optimizers(self, codes: Codes, prior: Prior) -> dict[str, Optimizer]:
        """Return the optimizers of all objectives, shared ones once."""
        found: dict[str, Optimizer] = {}
        for i, child in enumerate(self._children):
            for name, optimizer in child.optimizers(codes, prior).items():
                shared = found.setdefault(self._name(i, name), optimizer)
                if _settings(shared) != _settings(optimizer):
                    raise UserError(
                        f"objective.objectives: {type(child).__name__} has other settings for the {name} than those "
                        f"before it ({_difference(shared, optimizer)}), but they share an optimizer; give them the "
                        "same, or set objective.share_optimizers to false"
                    )
        return found

    def matching_networks(self) -> tuple[NetworkFactory, ...]:
        """Return those of all objectives."""
        return tuple(network for child in self._children for network in child.matching_networks())

    def check_networks(self, spec: DataSpec) -> None:
        """See `Objective.check_networks`."""
        for child in self._children:
            child.check_networks(spec)

    def real_images(self) -> int:
        """Return the most that one of the objectives needs."""
        return max(child.real_images() for child in self._children)

    def experts(self) -> tuple[ExpertNeed, ...]:
        """Return those of all objectives."""
        return tuple(need for child in self._children for need in child.experts())


def _sum(terms: Sequence[Term]) -> Term:
    reports = [term.value if term.report is None else term.report for term in terms]
    values = {term.name: report for term, report in zip(terms, reports, strict=True)}
    return Term(
        "sum",
        torch.stack([term.value for term in terms]).sum(),
        tuple(dict.fromkeys(name for term in terms for name in term.optimizers)),
        report=torch.stack(reports).detach().sum(),
        metrics={**values, **{name: value for term in terms for name, value in term.metrics.items()}},
        holds=torch.stack(held).all() if (held := [t.holds for t in terms if t.holds is not None]) else None,
        otherwise=lambda: "; ".join(t.otherwise() for t in terms if t.holds is not None and not t.holds),
    )


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    groups = ({"optimizer": type(optimizer).__name__, **group} for group in optimizer.param_groups)
    return [{name: value for name, value in group.items() if name != "params"} for group in groups]


def _difference(one: Optimizer, other: Optimizer) -> str:
    for a, b in zip(_settings(one), _settings(other), strict=True):
        for name in a:
            if a[name] != b.get(name):
                return f"{name} {a[name]} and {b.get(name)}"
    return "groups"
