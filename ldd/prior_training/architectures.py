"""The two networks that `latentdd prior train` builds: their shapes as options, the U-Net with its class table."""

from dataclasses import dataclass

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.priors.denoisers.base import LENGTH, call_unet
from ldd.priors.schedule import Time, Times


@dataclass(frozen=True)
class AutoencoderShape:
    """A convolutional autoencoder with Gaussian latents (diffusers' `AutoencoderKL`).

    Args:
        channels: per level, finest first; each level after the first halves the side.
        latent_channels: c.
        layers_per_block: residual blocks per level.
        norm_groups: of group normalisation; divides every entry of `channels`.
        attention: self-attention at the coarsest level.

    Raises:
        UserError: a number that does not fit the others.
    """

    channels: tuple[int, ...]
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_groups: int = 8
    attention: bool = False

    def __post_init__(self) -> None:
        _check_groups("autoencoder", self.channels, self.norm_groups)

    def latent_size(self, image_size: int) -> int:
        """Return the side of the latents of images of `image_size` pixels."""
        factor: int = 2 ** (len(self.channels) - 1)
        if image_size % factor:
            raise UserError(
                f"autoencoder.channels has {len(self.channels)} levels, which needs a data.image_size that is a "
                f"multiple of {factor}, not {image_size}"
            )
        return image_size // factor

    def build(self, image_size: int) -> AutoencoderKL:
        """Build the model with new weights, for images of `image_size` pixels."""
        levels = len(self.channels)
        return AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=self.latent_channels,
            block_out_channels=self.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=self.layers_per_block,
            norm_num_groups=self.norm_groups,
            mid_block_add_attention=self.attention,
            sample_size=image_size,
        )


@dataclass(frozen=True)
class UNetShape:
    """A U-Net with cross-attention to one class token (diffusers' `UNet2DConditionModel`).

    Args:
        channels: per level, finest first; each level after the first halves the side.
        attention: per level, whether it attends to itself and to the class token; at least one does.
        conditioning_dim: D, width of the class token.
        layers_per_block: residual blocks per level.
        norm_groups: of group normalisation; divides every entry of `channels`.
        heads: of each attention; divides the `channels` of the levels that attend.
        middle: a further block with attention at the coarsest level.

    Raises:
        UserError: a number that does not fit the others.
    """

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    conditioning_dim: int = 64
    layers_per_block: int = 1
    norm_groups: int = 16
    heads: int = 4
    middle: bool = True

    def __post_init__(self) -> None:
        _check_groups("unet", self.channels, self.norm_groups)
        if len(self.attention) != len(self.channels):
            raise UserError(
                f"unet.attention={list(self.attention)} must have one entry for each of "
                f"unet.channels={list(self.channels)}"
            )
        if not (self.middle or any(self.attention)):
            raise UserError(
                "unet.attention is false at every level, so the class cannot be told; set one to true"
            )
        attending = [c for c, used in zip(self.channels, self.attention, strict=True) if used]
        attending += self.channels[-1:] if self.middle else ()
        if any(c % self.heads for c in attending):
            raise UserError(
                f"unet.heads={self.heads} does not divide the channels {attending} of the attending levels"
            )

    def build(
        self, latent_channels: int, latent_size: int, *, of_intervals: bool = False
    ) -> UNet2DConditionModel:
        """Build the model with new weights, for latents of (latent_channels, latent_size, latent_size).

        One `of_intervals` is told the length of an interval besides its noisier end, see `ldd.priors.schedule`.
        """
        factor = 2 ** (len(self.channels) - 1)
        if latent_size % factor:
            raise UserError(
                f"unet.channels has {len(self.channels)} levels, which needs latents with a side that is a "
                f"multiple of {factor}, not {latent_size}; use fewer levels or another data.image_size"
            )
        down = ["CrossAttnDownBlock2D" if used else "DownBlock2D" for used in self.attention]
        up = ["CrossAttnUpBlock2D" if used else "UpBlock2D" for used in reversed(self.attention)]
        return UNet2DConditionModel(
            sample_size=latent_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=self.channels,
            down_block_types=tuple(down),
            mid_block_type="UNetMidBlock2DCrossAttn" if self.middle else None,
            up_block_types=tuple(up),
            layers_per_block=self.layers_per_block,
            norm_num_groups=self.norm_groups,
            cross_attention_dim=self.conditioning_dim,
            attention_head_dim=self.heads,  # the library's name; it takes this as the number of heads
            class_embed_type=LENGTH if of_intervals else None,
        )


class ClassUNet(nn.Module):
    """A U-Net with its class table; rows 0..K-1 are the classes, row K is the null condition."""

    def __init__(self, unet: UNet2DConditionModel, num_classes: int) -> None:
        super().__init__()
        self.unet = unet
        self.class_embedding = nn.Embedding(num_classes + 1, unet.config.cross_attention_dim)

    def forward(self, latents: Tensor, times: Times, rows: Tensor) -> Tensor:
        """Predict (N, c, h, w) for latents (N, c, h, w) at times (N,) under class rows (N,)."""
        return self.predict(latents, times, self.class_embedding(rows)[:, None])

    def predict(self, latents: Tensor, times: Time | Times, tokens: Tensor) -> Tensor:
        """Predict (N, c, h, w) under class tokens (N, 1, D), at times (N,) or one time of all."""
        return call_unet(self.unet, latents, times, tokens)


def _check_groups(network: str, channels: tuple[int, ...], groups: int) -> None:
    if not channels or min(channels) < 1:
        raise UserError(f"{network}.channels={list(channels)} must hold a positive number per level")
    if groups < 1 or any(c % groups for c in channels):
        raise UserError(
            f"{network}.norm_groups={groups} does not divide every entry of channels={list(channels)}"
        )
