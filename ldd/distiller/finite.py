"""Whether the numbers of a run are finite: loss and gradient of each step, and what the step has made.

No step waits for the answer: the host reads it in the next one, once that is queued, and undoes the step if it was bad.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldd.errors import NonFiniteError, UserError
from ldd.objectives import Objective, Term

_EXTRA = "_extra_state"


class FiniteCheck:
    """Looks at all that steps read and make; the host waits for the device once a step, and then for the one before.

    In each step: `settle` before anything is updated, `keep`, then for each term `before_step` and `after_step`, and
    `end_step`. Whatever saves or shows the codes calls `check_codes` first.

    Args:
        objective: what is optimised.
        undone: called after a step has been undone.
    """

    def __init__(self, objective: Objective, undone: Callable[[], None]) -> None:
        self._objective = objective
        self._undone = undone
        self._name = type(objective).__name__
        self._largest: Tensor | None = None  # of all that steps have made, 0-d, on the device
        self._seen: list[_Seen] = []  # of the step whose answer is not yet read
        self._answer: _Later | None = None
        self._kept: _Kept | None = None

    def keep(self, optimizers: Iterable[Optimizer], buffers: Sequence[Tensor]) -> None:
        """Copy all that a step changes, before it does."""
        extra = {k: v for k, v in self._objective.state_dict().items() if k.endswith(_EXTRA)}
        states = [(optimizer, deepcopy(optimizer.state_dict())) for optimizer in optimizers]
        held = [*buffers, *(p for o, _ in states for group in o.param_groups for p in group["params"])]
        self._kept = _Kept([(value, value.detach().clone()) for value in held], states, extra)
        self._seen = []

    def before_step(self, term: Term, parameters: Sequence[nn.Parameter], step: int, world_size: int) -> None:
        """Note a term's loss and gradient, and the codes that they were computed from."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value = term.value.detach().clone()
        if world_size > 1:
            torch.distributed.all_reduce(value)  # so that no rank goes on alone
        made = torch.zeros_like(norm) if self._largest is None else self._largest
        good = torch.isfinite(norm + value + made)
        if term.holds is not None:
            good = good & term.holds
        self._seen.append(_Seen(step, term, value, norm, made, good))

    def after_step(self, parameters: Sequence[nn.Parameter]) -> None:
        """Note what a step has made of its parameters."""
        largest = torch.nn.utils.get_total_norm([p.detach() for p in parameters], norm_type=torch.inf)
        self._largest = largest if self._largest is None else torch.maximum(largest, self._largest)

    def end_step(self) -> None:
        """Let the answer travel to the host."""
        self._answer = _Later(torch.stack([seen.good for seen in self._seen]).all())

    def settle(self) -> None:
        """Raise if the last step was bad, after putting all that it has changed back to what it was.

        Raises:
            NonFiniteError: its loss or gradient, or what an objective says must hold; the codes before it are good.
            UserError: the codes before it are not.
        """
        answer, self._answer = self._answer, None
        if answer is None or answer.read():
            return
        bad = next(seen for seen in self._seen if not seen.good)
        if bad is self._seen[0] and not torch.isfinite(
            bad.made
        ):  # of a later term it is undone with the step
            self._refuse_codes(bad.step)
        self._largest = None
        assert self._kept is not None
        self._kept.restore(self._objective)
        self._undone()
        if bad.term.holds is not None and not bad.term.holds:
            raise NonFiniteError(f"step {bad.step}: {bad.term.otherwise()}")
        raise NonFiniteError(
            f"step {bad.step}: the {bad.term.name} loss of {self._name} is "
            f"{bad.value.item():g} with gradient norm {bad.norm.item():g}; the codes before this step are kept. "
            "Lower the objective's learning rates (lr_...), or use trainer.precision 32-true"
        )

    def check_codes(self, steps: int) -> None:
        """Raise if one of the `steps` so far was bad, or has made what it optimises infinite or NaN.

        Raises:
            NonFiniteError: as `settle`.
            UserError: the codes are lost: nothing of them may be kept.
        """
        self.settle()
        if self._largest is not None and not torch.isfinite(self._largest):
            self._refuse_codes(steps)

    def _refuse_codes(self, steps: int) -> None:
        raise UserError(
            f"after {steps} steps the codes are infinite or NaN, which no checkpoint keeps: the last one is from "
            f"before. Lower the learning rates of {self._name} (lr_...), and start the run again"
        )


class _Seen(NamedTuple):
    """A term of a step with its value, its gradient's norm and whether all is well, 0-d on the device."""

    step: int
    term: Term
    value: Tensor
    norm: Tensor
    made: Tensor  # the largest number of the codes that it was computed from
    good: Tensor


class _Kept(NamedTuple):
    """What a step changes, as it was."""

    tensors: list[tuple[Tensor, Tensor]]
    optimizers: list[tuple[Optimizer, dict[str, object]]]
    extra: dict[str, object]

    @torch.no_grad()
    def restore(self, objective: Objective) -> None:
        for value, before in self.tensors:
            value.copy_(before)
        for optimizer, state in self.optimizers:
            optimizer.load_state_dict(state)
        objective.load_state_dict(self.extra, strict=False)


class _Later:
    """A truth on the device that the host can read without waiting for what is queued after it."""

    def __init__(self, value: Tensor) -> None:
        self._host, self._event = value, None
        if value.is_cuda:
            self._host = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._host)
