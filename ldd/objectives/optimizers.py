"""Optimizers that several objectives build the same way."""

from collections.abc import Mapping

from torch.optim import SGD, Adam, Optimizer

from ldd.codes import Codes
from ldd.errors import UserError
from ldd.objectives.base import CODES, DECODER
from ldd.priors import Prior


def synthesis_optimizers(
    codes: Codes,
    prior: Prior,
    learning_rates: Mapping[str, float],
    momentum: float,
    lr_decoder: float,
    weight_decay_decoder: float,
) -> dict[str, Optimizer]:
    """SGD over the codes and, where the prior has trainable weights, Adam over those (D3 as released).

    Raises:
        UserError: as of `sgd_on_codes`.
    """
    decoder = list(prior.trainable())
    found: dict[str, Optimizer] = {CODES: sgd_on_codes(codes, learning_rates, momentum)}
    if decoder:
        found[DECODER] = Adam(decoder, lr=lr_decoder, weight_decay=weight_decay_decoder)
    return found


def code_rates(latents: float, conditioning: float, spread: float | None) -> dict[str, float]:
    """Learning rates by group of codes; None for the spread takes a tenth of the latents'."""
    return {
        "latents": latents,
        "conditioning": conditioning,
        "spread": latents / 10 if spread is None else spread,
    }


def check_sgd(learning_rates: Mapping[str, float], momentum: float, momentum_name: str = "momentum") -> None:
    """Refuse settings of SGD that no run can use.

    Args:
        learning_rates: by what they are of; the argument is `lr_<name>`.
        momentum: of all of them.
        momentum_name: what the argument is called.

    Raises:
        UserError: a rate that is negative, infinite or NaN, or a momentum outside [0, 1).
    """
    for name, rate in learning_rates.items():
        if not 0 <= rate < float("inf"):
            raise UserError(f"objective.lr_{name} ({rate}) must be a number of 0 or more")
    if not 0 <= momentum < 1:
        raise UserError(f"objective.{momentum_name} ({momentum}) must be at least 0 and below 1")


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
