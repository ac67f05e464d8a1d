"""Optimizers that several objectives build the same way."""

from collections.abc import Mapping

from torch.optim import SGD

from ldd.codes import Codes
from ldd.errors import UserError


def code_rates(latents: float, conditioning: float, spread: float | None) -> dict[str, float]:
    """Learning rates by group of codes; None for the spread takes a tenth of the latents'."""
    return {
        "latents": latents,
        "conditioning": conditioning,
        "spread": latents / 10 if spread is None else spread,
    }


def sgd_on_codes(codes: Codes, learning_rates: Mapping[str, float], momentum: float) -> SGD:
    """SGD with one learning rate per group of codes (LD3M: momentum 0.5, no decay, no schedule).

    Raises:
        UserError: a group of the codes has no learning rate, or nothing is learned.
    """
    groups = codes.groups()
    if not groups:
        raise UserError("codes: nothing is learned; set learn_latents or learn_conditioning to true")
    if missing := groups.keys() - learning_rates.keys():
        raise UserError(f"objective: no learning rate for the codes' {', '.join(sorted(missing))}")
    return SGD(
        [{"params": values, "lr": learning_rates[name]} for name, values in groups.items()], momentum=momentum
    )
