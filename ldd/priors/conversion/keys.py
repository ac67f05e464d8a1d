"""Where each tensor of a diffusers model lies in an original latent-diffusion checkpoint.

The map leads from the names in diffusers to the original ones, so that both sides can be checked: every tensor has
exactly one origin, and what is the origin of none is left over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from torch import Tensor

_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_FUSED = {"to_q": 0, "to_k": 1, "to_v": 2}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Attributes:
        key: its name in the original.
        part: 0, 1, 2 for the queries, keys, values of a fused tensor; None for a tensor of its own.
        heads: of a fused tensor: its rows are ordered by head, then by part.
    """

    key: str
    part: int | None = None
    heads: int = 1

    def shape(self, ours: Sequence[int]) -> tuple[int, ...]:
        """Return its shape in the original, up to trailing ones, for `ours`."""
        return (ours[0] * (1 if self.part is None else 3), *ours[1:])

    def fits(self, original: Tensor, ours: Sequence[int]) -> bool:
        """Tell whether `original` can become a tensor of shape `ours`, up to trailing ones (convolutions of 1 x 1)."""
        wanted, found = self.shape(ours), tuple(original.shape)
        return found[: len(wanted)] == wanted and set(found[len(wanted) :]) <= {1}

    def take(self, original: Tensor, ours: Sequence[int]) -> Tensor:
        """Return the tensor of shape `ours`."""
        if self.part is not None:
            original = original.reshape(self.heads, 3, -1, *ours[1:])[:, self.part]
        return original.reshape(tuple(ours)).contiguous()


def unet_origins(model: UNet2DConditionModel | UNet2DModel) -> dict[str, Origin]:
    """Return the origin of each tensor of a U-Net, without the prefix `model.diffusion_model.`.

    The original numbers its blocks consecutively: the first convolution, then per level the residual blocks (each with
    its attention) and the downsampling; on the way up one more residual block per level, the last with the upsampling.
    """
    step = model.config.layers_per_block + 1
    fused = isinstance(model, UNet2DModel)
    origins = {}
    for name in model.state_dict():
        match name.split("."):
            case ["down_blocks", level, "downsamplers", "0", "conv", leaf]:
                origin = Origin(f"input_blocks.{(int(level) + 1) * step}.0.op.{leaf}")
            case ["up_blocks", level, "upsamplers", "0", "conv", leaf]:
                place = 1 + hasattr(model.up_blocks[int(level)], "attentions")
                origin = Origin(f"output_blocks.{(int(level) + 1) * step - 1}.{place}.conv.{leaf}")
            case ["mid_block", kind, place, *rest]:
                block = f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}"
                origin = _inner(model, name, block, rest, fused=fused)
            case [("down_blocks" | "up_blocks") as side, level, kind, place, *rest]:
                number = int(level) * step + int(place)
                first = f"input_blocks.{number + 1}" if side == "down_blocks" else f"output_blocks.{number}"
                origin = _inner(model, name, f"{first}.{kind == 'attentions':d}", rest, fused=fused)
            case [*module, leaf]:
                origin = Origin(f"{_UNET['.'.join(module)]}.{leaf}")
        origins[name] = origin
    return origins


def _inner(
    model: UNet2DConditionModel | UNet2DModel,
    name: str,
    block: str,
    rest: Sequence[str],
    *,
    fused: bool,
) -> Origin:
    module, leaf = ".".join(rest[:-1]), rest[-1]
    if ".resnets." in name:
        return Origin(f"{block}.{_UNET_RESIDUAL[module]}.{leaf}")
    if not fused:  # transformer blocks have the same names on both sides
        return Origin(f"{block}.{module}.{leaf}")
    if module in _FUSED:
        heads = model.get_submodule(name.removesuffix(f".{module}.{leaf}")).heads
        return Origin(f"{block}.qkv.{leaf}", _FUSED[module], heads)
    return Origin(f"{block}.{_ATTENTION[module]}.{leaf}")


def autoencoder_origins(model: AutoencoderKL | VQModel) -> dict[str, Origin]:
    """Return the origin of each tensor of an autoencoder, without `first_stage_model.`."""
    top = len(model.config.block_out_channels) - 1
    return {name: Origin(_autoencoder_key(name.split("."), top)) for name in model.state_dict()}


def _autoencoder_key(name: Sequence[str], top: int) -> str:
    match name:
        case [half, "down_blocks", level, *rest]:
            return f"{half}.down.{level}.{_level(rest, 'downsample')}"
        case [half, "up_blocks", level, *rest]:
            # The original decoder counts its levels down.
            return f"{half}.up.{top - int(level)}.{_level(rest, 'upsample')}"
        case [half, "mid_block", "resnets", place, *rest]:
            return f"{half}.mid.block_{int(place) + 1}.{_residual(rest)}"
        case [half, "mid_block", "attentions", "0", *rest]:
            return f"{half}.mid.attn_1.{_attention(rest)}"
        case [half, "conv_norm_out", leaf]:
            return f"{half}.norm_out.{leaf}"
    return ".".join(name)


def _level(rest: Sequence[str], sampling: str) -> str:
    match rest:
        case ["resnets", place, *inner]:
            return f"block.{place}.{_residual(inner)}"
        case ["attentions", place, *inner]:
            return f"attn.{place}.{_attention(inner)}"
        case _:  # downsamplers.0.conv.*, upsamplers.0.conv.*
            return f"{sampling}.conv.{rest[-1]}"


def _residual(rest: Sequence[str]) -> str:
    return ".".join(rest).replace("conv_shortcut", "nin_shortcut")


def _attention(rest: Sequence[str]) -> str:
    return f"{_ATTENTION['.'.join(rest[:-1])]}.{rest[-1]}"
