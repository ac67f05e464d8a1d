"""Checks that the numbers of a run are finite: loss and gradient before a step, and what the step has made."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldd.errors import NonFiniteError, UserError
from ldd.objectives import Term


class FiniteCheck:
    """Looks at all that steps of an objective read and make; the host waits for the device once a term.

    What a step has made is read with the loss of the next term, or before anything is saved, so that no step waits
    for it.
    """

    def __init__(self, objective: str) -> None:
        self._objective = objective
        self._largest: Tensor | None = None  # of all that steps have made, 0-d, on the device

    def before_step(self, term: Term, parameters: Sequence[nn.Parameter], step: int, world_size: int) -> None:
        """Raise if a term's loss or gradient is not finite, or the codes that it was computed from."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value = term.value.detach().clone()
        if world_size > 1:
            torch.distributed.all_reduce(value)  # so that no rank goes on alone
        made = 0.0 if self._largest is None else 0 * self._largest  # NaN where that is not finite
        if torch.isfinite(norm + value + made):
            return
        self.check_codes(step)
        raise NonFiniteError(
            f"step {step}: the {term.name} loss of {self._objective} is "
            f"{value.item():g} with gradient norm {norm.item():g}; the codes before this step are kept. "
            "Lower the objective's learning rates (lr_...), or use trainer.precision 32-true"
        )

    def after_step(self, parameters: Sequence[nn.Parameter]) -> None:
        """Note what a step has made of its parameters."""
        largest = torch.nn.utils.get_total_norm([p.detach() for p in parameters], norm_type=torch.inf)
        self._largest = largest if self._largest is None else torch.maximum(largest, self._largest)

    def check_codes(self, steps: int) -> None:
        """Raise if one of the `steps` so far has made what it optimises infinite or NaN: nothing of it may be kept."""
        if self._largest is not None and not torch.isfinite(self._largest):
            raise UserError(
                f"after {steps} steps the codes are infinite or NaN, which no checkpoint keeps: the last one is from "
                f"before. Lower the learning rates of {self._objective} (lr_...), and start the run again"
            )
