"""Convert an original (CompVis) latent-diffusion checkpoint to a prior folder.

Every tensor of the checkpoint is either converted or known to serve only training; anything else fails.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import ModelMixin
from torch import Tensor

from ldd.errors import UserError, listed
from ldd.images import ClassInfo
from ldd.priors.conversion.config import Original, read_original
from ldd.priors.conversion.keys import Origin, autoencoder_origins, unet_origins
from ldd.priors.conversion.reading import read_state
from ldd.priors.folder import PriorCard, write_prior

Weights = Literal["raw", "ema"]

_UNET, _EMA, _FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
_TABLE, _SCALE = "cond_stage_model.embedding.weight", "scale_factor"
_EMA_COUNTERS = {"model_ema.decay", "model_ema.num_updates"}
_SCHEDULE = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    "lvlb_weights", "logvar",
}  # fmt: skip
"""Tables that follow from the YAML (`alphas_cumprod` is compared), and weights of the loss."""
_TRAINING = (f"{_FIRST_STAGE}loss.", f"{_FIRST_STAGE}model_ema.")


@dataclass(frozen=True)
class _Part:
    """A model on the meta device, and the origin (by full name) of each of its tensors."""

    model: ModelMixin
    origins: Mapping[str, Origin]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}


def convert_checkpoint(
    checkpoint: Path | str,
    config: Path | str,
    out: Path | str,
    *,
    classes: Sequence[ClassInfo],
    licence: str,
    weights: Weights = "raw",
    trust: bool = False,
) -> Path:
    """Write the prior folder of an original checkpoint and its YAML; tensors keep the checkpoint's precision.

    `classes` has one class for each row of the class table but the last, the null row; an unconditional model has no
    use for it. `weights` are the U-Net's as trained, or their moving average. With `trust` pickles of more than
    tensors are read, see `read_state`.
    """
    if Path(out).exists():
        raise UserError(f"out ({out}) exists; name a new folder")
    original = read_original(config)
    _check_classes(original, classes)
    state = read_state(checkpoint, trust=trust)
    parts = _parts(original, weights)
    _account(state, original, parts, weights)
    _check_schedule(state, original)
    for part in parts:
        _fill(part, state)
    original.autoencoder.register_to_config(scaling_factor=_scale(state, original))
    table = None if original.table_shape is None else state[_TABLE]
    known = () if table is None else classes
    kind = "unconditional" if table is None else f"{len(known)} classes"
    return write_prior(
        out,
        network=original.unet,
        autoencoder=original.autoencoder,
        scheduler=original.scheduler,
        class_embedding=table,
        card=PriorCard(known, -1 if table is None else len(known), original.image_size, licence),
        readme=f"# Latent diffusion prior, {kind}, {original.image_size} px\n\n"
        f"Converted by `latentdd prior convert` from {Path(checkpoint).name}, {weights} weights. "
        f"Licence of the weights: {licence}.\n",
    )


def _parts(original: Original, weights: Weights) -> tuple[_Part, _Part]:
    unet = {
        name: Origin(
            _ema_name(origin.key) if weights == "ema" else _UNET + origin.key, origin.part, origin.heads
        )
        for name, origin in unet_origins(original.unet).items()
    }
    first_stage = {
        name: Origin(_FIRST_STAGE + origin.key)
        for name, origin in autoencoder_origins(original.autoencoder).items()
    }
    return _Part(original.unet, unet), _Part(original.autoencoder, first_stage)


def _ema_name(key: str) -> str:
    """Return the moving average's name of a U-Net tensor, without dots, which names of buffers may not hold."""
    return _EMA + f"diffusion_model.{key}".replace(".", "")


def _account(
    state: Mapping[str, Tensor], original: Original, parts: Sequence[_Part], weights: Weights
) -> None:
    """Raise for missing tensors, unknown ones, and shapes other than the YAML's, all in one message."""
    if weights == "ema" and not any(key.startswith(_EMA) for key in state):
        raise UserError("the checkpoint holds no moving average of the weights; give --weights raw")
    wrong, needed = [], set()
    for part in parts:
        shapes = part.shapes
        needed |= {origin.key for origin in part.origins.values()}
        wrong += [
            f"{origin.key} is {tuple(state[origin.key].shape)}, not {origin.shape(shapes[name])}"
            for name, origin in part.origins.items()
            if origin.key in state and not origin.fits(state[origin.key], shapes[name])
        ]
    if original.table_shape is not None:
        needed.add(_TABLE)
        if _TABLE in state and tuple(state[_TABLE].shape) != original.table_shape:
            wrong.append(f"{_TABLE} is {tuple(state[_TABLE].shape)}, not {original.table_shape}")
    if original.scale_by_std:
        needed.add(_SCALE)
    raw = {origin.key for origin in unet_origins(original.unet).values()}
    other = {_UNET + key for key in raw} if weights == "ema" else {_ema_name(key) for key in raw}
    known = needed | other | _SCHEDULE | _EMA_COUNTERS | {_SCALE}
    missing = sorted(needed - set(state))
    left = sorted(key for key in state if key not in known and not key.startswith(_TRAINING))
    if missing or left or wrong:
        found = (("missing", missing), ("left over", left), ("of another shape", list(dict.fromkeys(wrong))))
        lines = "\n".join(f"{len(keys)} {what}: {listed(keys, 40)}" for what, keys in found if keys)
        raise UserError(
            f"checkpoint and config do not fit together; give the YAML it was trained with\n{lines}"
        )


def _check_schedule(state: Mapping[str, Tensor], original: Original) -> None:
    ours, theirs = original.scheduler.alphas_cumprod, state.get("alphas_cumprod")
    if theirs is None:
        return
    if theirs.shape != ours.shape or not torch.allclose(theirs.float(), ours, rtol=1e-4, atol=1e-7):
        raise UserError(
            "the config's noise schedule (linear_start, linear_end, timesteps) is not the one in the checkpoint; "
            "give the YAML it was trained with"
        )


def _scale(state: Mapping[str, Tensor], original: Original) -> float:
    """Return the scale of the latents: the checkpoint's own where it has one, which the config must not deny."""
    stated = float(original.autoencoder.config.scaling_factor)
    if _SCALE not in state:
        return stated
    found = float(state[_SCALE]) if state[_SCALE].numel() == 1 else math.nan
    if not 0 < found < math.inf:
        raise UserError(
            f"the checkpoint's {_SCALE} is {found}, not a number above 0; it is damaged, fetch it again"
        )
    if not original.scale_by_std and not math.isclose(found, stated, rel_tol=1e-4):
        raise UserError(
            f"the checkpoint's {_SCALE} is {found:.6g} and the config's {stated:.6g}; give the YAML it was trained "
            "with (scale_by_std: true takes the checkpoint's)"
        )
    return found if original.scale_by_std else stated


def _check_classes(original: Original, classes: Sequence[ClassInfo]) -> None:
    if original.table_shape is not None and original.table_shape[0] != len(classes) + 1:
        raise UserError(
            f"cond_stage_config has n_classes={original.table_shape[0]}, which must be the {len(classes)} classes of "
            "the class table and one null row for guidance; give the names of its classes with --class-names FILE"
        )


def _fill(part: _Part, state: Mapping[str, Tensor]) -> None:
    shapes = part.shapes
    tensors = {name: origin.take(state[origin.key], shapes[name]) for name, origin in part.origins.items()}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{part.origins[name].key} holds other than finite numbers; the checkpoint is damaged, fetch it again"
            )
    part.model.load_state_dict(tensors, strict=True, assign=True)
