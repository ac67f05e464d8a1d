"""Build diffusers components from the YAML of an original latent-diffusion model; raise for what they lack."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel, VQModel

from ldd.disk.files import read_yaml
from ldd.errors import UserError

_UNCONDITIONAL = "__is_unconditional__"
_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear"}
"""Original name -> name in diffusers: the original `linear` is linear in the square root of beta."""

_UNET_FIXED = {
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "use_linear_in_transformer": False,
    "n_embed": None,
}
_UNET_READ = {
    "in_channels", "out_channels", "model_channels", "attention_resolutions", "num_res_blocks", "channel_mult",
    "num_heads", "num_head_channels", "use_spatial_transformer", "transformer_depth", "context_dim",
}  # fmt: skip
_UNET_INERT = {"image_size", "dropout", "use_checkpoint", "use_fp16", "legacy"}

_FIRST_STAGE_FIXED = {
    "tanh_out": False,
    "resamp_with_conv": True,
    "give_pre_end": False,
    "attn_type": "vanilla",
}
_FIRST_STAGE_READ = {
    "z_channels", "resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_resolutions",
    "double_z",
}  # fmt: skip


@dataclass(frozen=True)
class Original:
    """What an original YAML describes. The networks are on the meta device: shapes without weights.

    Attributes:
        unet: with cross-attention for a class-conditional model.
        autoencoder: the first stage.
        scheduler: DDIM over the model's noise schedule.
        table_shape: (rows, D) of the class table; None for an unconditional model.
        image_size: pixels.
        scale_by_std: the latents' scaling factor is in the checkpoint, not in the YAML.
    """

    unet: UNet2DConditionModel | UNet2DModel
    autoencoder: AutoencoderKL | VQModel
    scheduler: DDIMScheduler
    table_shape: tuple[int, int] | None
    image_size: int
    scale_by_std: bool


def read_original(path: Path | str) -> Original:
    """Build what the YAML describes, without weights."""
    document = read_yaml(path, "give the YAML that came with the checkpoint as config")
    try:
        return _build(_at(document, "model", "params"))
    except UserError as error:
        raise UserError(f"config ({path}): {error}") from error
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"config ({path}): a setting is missing or of another form ({type(error).__name__}: {error}); give the "
            "YAML that came with the checkpoint"
        ) from error


def _build(params: Mapping[str, Any]) -> Original:
    table_shape = _table_shape(params)
    first_stage = _at(params, "first_stage_config", "params")
    levels = len(_at(first_stage, "ddconfig")["ch_mult"])
    latent_size = int(params["image_size"])
    image_size = latent_size * 2 ** (levels - 1)
    scale_by_std = bool(params.get("scale_by_std", False))
    scale = 1.0 if scale_by_std else float(params.get("scale_factor", 1.0))
    with torch.device("meta"):
        autoencoder = _autoencoder(_at(params, "first_stage_config"), image_size, scale)
        unet = _unet(_at(params, "unet_config", "params"), latent_size, table_shape)
    width = (
        autoencoder.quantize.vq_embed_dim if isinstance(autoencoder, VQModel) else first_stage["embed_dim"]
    )
    if unet.config.in_channels != width:
        raise UserError(
            f"unet_config.params.in_channels={unet.config.in_channels} is not the first stage's embed_dim={width}; "
            "further inputs (concatenated masks or images) are not supported"
        )
    return Original(unet, autoencoder, _scheduler(params), table_shape, image_size, scale_by_std)


def _at(section: Any, *keys: str) -> dict[str, Any]:  # noqa: ANN401 - a YAML document
    """Return the mapping at `keys`."""
    for key in keys:
        if not isinstance(section, Mapping) or not isinstance(section.get(key), Mapping):
            raise UserError(
                f"there is no section {'.'.join(keys)!r}; give the YAML of an original latent-diffusion model"
            )
        section = section[key]
    return dict(section)


def _check(section: Mapping[str, Any], where: str, known: set[str], fixed: Mapping[str, object]) -> None:
    """Raise for unknown settings and for values that diffusers does not have."""
    for key, value in section.items():
        if key in fixed and value != fixed[key]:
            raise UserError(
                f"{where}.{key}={value!r} has no counterpart here (supported: {fixed[key]!r}); this model cannot "
                "be converted"
            )
    unknown = sorted(set(section) - known - set(fixed))
    if unknown:
        raise UserError(f"{where} has unknown settings {', '.join(unknown)}; this model cannot be converted")


def _table_shape(params: Mapping[str, Any]) -> tuple[int, int] | None:
    condition = params.get("cond_stage_config", _UNCONDITIONAL)
    if condition == _UNCONDITIONAL:
        if params.get("conditioning_key") is not None:
            raise UserError(
                f"conditioning_key={params['conditioning_key']!r} without a cond_stage_config is not supported"
            )
        return None
    target = str(condition["target"])
    if not target.endswith(".ClassEmbedder") or params.get("conditioning_key") != "crossattn":
        raise UserError(
            f"cond_stage_config.target={target} with conditioning_key={params.get('conditioning_key')!r} is not "
            "supported; only a ClassEmbedder with 'crossattn', or an unconditional model"
        )
    return int(condition["params"].get("n_classes", 1000)), int(condition["params"]["embed_dim"])


def _scheduler(params: Mapping[str, Any]) -> DDIMScheduler:
    schedule, target = params.get("beta_schedule", "linear"), params.get("parameterization", "eps")
    predictions = {"eps": "epsilon", "x0": "sample"}
    for key, value, choices in (
        ("beta_schedule", schedule, _SCHEDULES),
        ("parameterization", target, predictions),
    ):
        if value not in choices:
            raise UserError(f"{key}={value!r} is not supported; only {', '.join(choices)}")
    if params.get("given_betas") is not None:
        raise UserError("given_betas is not supported; only linear_start and linear_end")
    return DDIMScheduler(
        num_train_timesteps=int(params.get("timesteps", 1000)),
        beta_start=float(params.get("linear_start", 1e-4)),
        beta_end=float(params.get("linear_end", 2e-2)),
        beta_schedule=_SCHEDULES[schedule],
        prediction_type=predictions[target],
        clip_sample=False,
        set_alpha_to_one=False,  # the original's DDIM ends at the first abar of its table
        steps_offset=1,  # and its timesteps start at 1
    )


def _autoencoder(stage: Mapping[str, Any], image_size: int, scale: float) -> AutoencoderKL | VQModel:
    params, target = _at(stage, "params"), str(stage.get("target"))
    shape = _at(params, "ddconfig")
    _check(shape, "first_stage_config.params.ddconfig", _FIRST_STAGE_READ | {"dropout"}, _FIRST_STAGE_FIXED)
    quantised = target.endswith((".VQModelInterface", ".VQModel"))
    if not quantised and not target.endswith(".AutoencoderKL"):
        raise UserError(
            f"first_stage_config.target={target} is not supported; only VQModelInterface and AutoencoderKL"
        )
    if bool(shape.get("double_z", True)) == quantised:
        raise UserError(f"first_stage_config.params.ddconfig.double_z={not quantised} expected for {target}")
    channels = tuple(int(shape["ch"] * factor) for factor in shape["ch_mult"])
    attends = [
        int(shape["resolution"]) // 2**level in shape["attn_resolutions"] for level in range(len(channels))
    ]
    common = {
        "in_channels": shape["in_channels"],
        "out_channels": shape["out_ch"],
        "latent_channels": shape["z_channels"],
        "block_out_channels": channels,
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if used else "DownEncoderBlock2D" for used in attends
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if used else "UpDecoderBlock2D" for used in attends[::-1]
        ),
        "layers_per_block": shape["num_res_blocks"],
        "sample_size": image_size,
        "scaling_factor": scale,
    }
    if quantised:
        return VQModel(num_vq_embeddings=params["n_embed"], vq_embed_dim=params["embed_dim"], **common)
    if params["embed_dim"] != shape["z_channels"]:
        raise UserError(
            f"first_stage_config.params.embed_dim={params['embed_dim']} other than ddconfig.z_channels="
            f"{shape['z_channels']} has no counterpart in AutoencoderKL"
        )
    return AutoencoderKL(**common)


def _unet(
    params: Mapping[str, Any], latent_size: int, table_shape: tuple[int, int] | None
) -> UNet2DConditionModel | UNet2DModel:
    _check(params, "unet_config.params", _UNET_READ | _UNET_INERT, _UNET_FIXED)
    channels = tuple(params["model_channels"] * factor for factor in params["channel_mult"])
    attends = [2**level in params["attention_resolutions"] for level in range(len(channels))]
    common = {
        "sample_size": latent_size,
        "in_channels": params["in_channels"],
        "out_channels": params["out_channels"],
        "block_out_channels": channels,
        "layers_per_block": params["num_res_blocks"],
    }
    transformer = bool(params.get("use_spatial_transformer", False))
    if transformer != (table_shape is not None):
        raise UserError(
            f"unet_config.params.use_spatial_transformer={transformer} does not fit cond_stage_config: a "
            "class-conditional model needs it, an unconditional one cannot have it"
        )
    if table_shape is None:
        return UNet2DModel(
            down_block_types=tuple("AttnDownBlock2D" if used else "DownBlock2D" for used in attends),
            up_block_types=tuple("AttnUpBlock2D" if used else "UpBlock2D" for used in attends[::-1]),
            attention_head_dim=_head_width(params, channels, attends),
            **common,
        )
    if params["context_dim"] != table_shape[1]:
        raise UserError(
            f"unet_config.params.context_dim={params['context_dim']} is not cond_stage_config's "
            f"embed_dim={table_shape[1]}"
        )
    fixed = params.get("num_head_channels", -1)
    return UNet2DConditionModel(
        down_block_types=tuple("CrossAttnDownBlock2D" if used else "DownBlock2D" for used in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if used else "UpBlock2D" for used in attends[::-1]),
        cross_attention_dim=table_shape[1],
        transformer_layers_per_block=params.get("transformer_depth", 1),
        # The library's name; it takes this as the number of heads.
        attention_head_dim=params["num_heads"]
        if fixed == -1
        else tuple(max(1, c // fixed) for c in channels),
        **common,
    )


def _head_width(params: Mapping[str, Any], channels: tuple[int, ...], attends: list[bool]) -> int | None:
    """Channels per head; None for a single head. The library has one width for all levels."""
    width = params.get("num_head_channels", -1)
    if width != -1:
        return int(width)
    heads = int(params["num_heads"])
    widths = {c // heads for c, used in zip(channels, attends, strict=True) if used} | {channels[-1] // heads}
    if heads > 1 and len(widths) > 1:
        raise UserError(
            f"unet_config.params.num_heads={heads} over levels of {list(channels)} channels has no counterpart in "
            "UNet2DModel, whose heads have one width; this model cannot be converted"
        )
    return None if heads == 1 else widths.pop()
