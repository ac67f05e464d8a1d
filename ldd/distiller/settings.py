"""Settings that a run cannot honour, refused before any work: of codes and prior, of the trainer."""

from math import prod

import lightning as L
import torch

from ldd.artefact.manifest import Manifest
from ldd.errors import UserError, check_at_least
from ldd.images import DataSpec
from ldd.priors import Prior
from ldd.runtime.devices import free_bytes

_PRECISIONS = ("32-true", "bf16-mixed", "64-true")
"""Those under which codes, noise, momenta and counters have at least single precision."""


def check_sizes(prior: Prior, spec: DataSpec, images_per_class: int) -> None:
    """Raise unless codes of all classes can be held, made by the prior and kept in an artefact.

    Raises:
        UserError: names that no artefact can hold, IPC below 1 or too large for memory, sizes that differ.
    """
    Manifest.of(spec.classes, {})  # of folders that have such names
    check_at_least(1, images_per_class=images_per_class)
    per_class = 3 * 4 * prod(prior.latent_shape) * spec.num_classes  # codes, their noise, and gradients
    if (most := free_bytes(torch.device("cpu")) // per_class) < images_per_class:
        raise UserError(
            f"images_per_class ({images_per_class}): the codes alone would not fit into the free memory, which holds "
            f"{most} a class; lower it"
        )
    if prior.image_size != spec.image_size:
        raise UserError(
            f"data.image_size ({spec.image_size}) differs from the prior's image_size "
            f"({prior.image_size}); set one of them so that they agree"
        )


def check_trainer(trainer: L.Trainer, prior: Prior, prior_precision: str) -> None:
    """Raise for settings of the trainer that manual optimisation or the prior cannot honour."""
    if trainer.precision not in _PRECISIONS:
        raise UserError(
            f"trainer.precision ({trainer.precision}) is not supported: steps of half-precision codes and "
            "momenta are lost in rounding, and float16 needs a loss scaler; use bf16-mixed or 32-true"
        )
    if prior_precision == "bfloat16" and trainer.precision == "64-true":
        raise UserError(
            "model.prior_precision (bfloat16) contradicts trainer.precision (64-true), which casts the prior too; "
            "use 32-true or bf16-mixed"
        )
    if prior.batch_dependent and trainer.world_size > 1:
        raise UserError(
            f"trainer.devices: {type(prior).__name__} normalises over all images decoded together, which "
            f"{trainer.world_size} processes would split; use one, or choose preset: corrected"
        )
