"""Optimisers of students by the names that protocols give them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Muon, Optimizer

from ldd.students.protocol import Protocol

_SECOND_BETA = 0.999  # of AdamW


def student_optimizer(
    network: nn.Module, protocol: Protocol, parameters: Iterable[nn.Parameter], *, stacked: bool = False
) -> Optimizer:
    """Return the protocol's optimiser of a network's parameters, at its peak rate.

    Parameters of many students, `stacked`, have one axis more each; those of Muon cannot be.
    """
    rate, decay, everything = protocol.peak_lr(type(network)), protocol.weight_decay, list(parameters)
    if protocol.optimizer == "muon":
        return MatrixMuon(everything, rate, protocol.momentum, decay, decay_vectors=protocol.decay_vectors)
    groups = _groups(everything, protocol.decay_vectors, 1 + stacked)
    if protocol.optimizer == "adamw":
        return AdamW(groups, lr=rate, betas=(protocol.momentum, _SECOND_BETA), weight_decay=decay)
    return SGD(groups, lr=rate, momentum=protocol.momentum, weight_decay=decay)


def forget(optimizer: Optimizer) -> None:
    """Let moments and counts of steps start from nothing, as if the optimiser were built anew."""
    for one in (optimizer, *(optimizer.inner if isinstance(optimizer, MatrixMuon) else ())):
        one.state.clear()


def _groups(parameters: list[nn.Parameter], decay_vectors: bool, axes: int = 1) -> list[dict[str, Any]]:
    if decay_vectors:
        return [{"params": parameters}]
    return [
        {"params": [p for p in parameters if p.ndim > axes]},
        {"params": [p for p in parameters if p.ndim <= axes], "weight_decay": 0.0},
    ]


class MatrixMuon(Optimizer):
    """Muon (Jordan et al., 2024) over weights as matrices (outputs, rest), AdamW over the head and over vectors.

    Orthogonalised updates have the root mean square of AdamW's (Liu et al., arXiv 2502.16982), so that its rates and
    decays serve. The head is the last weight with two or more axes.

    Args:
        parameters: of the network, in its order.
        lr: rate of both.
        momentum: of Muon, with Nesterov's correction; AdamW has betas of 0.9 and 0.999.
        weight_decay: of both, decoupled.
        decay_vectors: whether it also takes biases, gains and shifts.

    Attributes:
        inner: the two, which hold all moments; its own `state` is empty.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        decay_vectors: bool = True,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        places = [place for place, parameter in enumerate(parameters) if parameter.ndim > 1][:-1]
        self._weights = [parameters[place] for place in places]
        others = [parameter for place, parameter in enumerate(parameters) if place not in places]
        self._matrices = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in self._weights]
        self.inner: list[Optimizer] = [
            AdamW(_groups(others, decay_vectors), lr=lr, weight_decay=weight_decay)
        ]
        if self._matrices:
            fit = "match_rms_adamw"
            self.inner.append(Muon(self._matrices, lr, weight_decay, momentum, adjust_lr_fn=fit))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step of both at the current rate."""
        for matrix, weight in zip(self._matrices, self._weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer in self.inner:
            for group in optimizer.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            optimizer.step()
        for matrix, weight in zip(self._matrices, self._weights, strict=True):
            weight.copy_(matrix.view_as(weight))
