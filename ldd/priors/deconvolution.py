"""D3's own decoders: small convolutional networks whose weights are trained together with the codes."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.images import IMAGENET_MEAN, IMAGENET_STD, per_channel
from ldd.priors.base import DirectPrior

_Norm = Callable[[int], nn.Module]
"""Number of channels -> normalisation layer."""

_SLOPE = 0.01  # of every LeakyReLU


@dataclass(frozen=True)
class _Size:
    """A released decoder at 64 px: kernel, channels at 2 x 2, numbers of a latent (None: no linear layer)."""

    kernel: int
    width: int
    latent_width: int | None


_SIZES = {"small": _Size(4, 256, 64), "medium": _Size(3, 512, 2048), "large": _Size(3, 1024, None)}


@final
class DeconvolutionPrior(DirectPrior):
    """A decoder that is trained with the codes (D3, arXiv 2403.00999, as in the released code), without an encoder.

    A latent becomes a map of 2 x 2, by a linear layer or as it is, and every stage doubles it: transposed
    convolution, normalisation, LeakyReLU. A last convolution of 3 x 3 and tanh give the image. At 64 px:

    - `small`: 64 numbers, kernels of 4, channels 256 (2 x 2), 128, 64, 32, 32, 32; 789,187 parameters
    - `medium`: 2,048 numbers, kernels of 3, channels 512, 256, 128, 64, 32, 32; 5,774,691 parameters
    - `large`: 4,096 numbers without a linear layer, channels 1,024, 512, 256, 128, 64, 64; 6,308,547 parameters

    Other image sizes have fewer or more stages: `small` stays at an eighth of its width, the others halve theirs at
    every stage but the last.

    Args:
        size: which of these decoders.
        image_size: height and width in pixels, a power of two.
        preset: `corrected` normalises by groups, so that an image depends on its own latent alone, and its tanh covers
            the whole range of pixels. `faithful` is as released: always the statistics of the batch that is decoded
            together (so a run needs `chunk_size: auto` and one process), and a tanh in the space of images
            normalised by ImageNet's mean and standard deviation, which excludes dark and bright pixels.
        width: channels of the 2 x 2 map; None takes the published number.
        latent_width: numbers of a latent; None takes the published number.

    Raises:
        UserError: an image size that is not a power of two of at least 8, a width that cannot be divided as often as
            needed, a latent width for the large decoder, numbers below 1.
    """

    can_encode = False
    licence = "none (trained with the codes)"

    def __init__(
        self,
        size: Literal["small", "medium", "large"] = "small",
        image_size: int = 64,
        preset: Literal["corrected", "faithful"] = "corrected",
        width: int | None = None,
        latent_width: int | None = None,
    ) -> None:
        super().__init__()
        published = _SIZES[size]
        if published.latent_width is None and latent_width is not None:
            raise UserError(
                f"latent_width ({latent_width}) is for small and medium decoders; the large one takes 4 numbers of "
                "each channel: set width"
            )
        width = published.width if width is None else width
        latent_width = published.latent_width if latent_width is None else latent_width
        check_image_size(image_size)
        self.faithful = preset == "faithful"
        self.batch_dependent = self.faithful
        norm = _batch_norm if self.faithful else group_norm
        channels = _channels(size, width, image_size)
        self.decoder = deconvolution(latent_width, channels, published.kernel, norm, out_channels=3)
        self.image_size = image_size
        self.latent_shape = (width, 2, 2) if latent_width is None else (latent_width, 1, 1)
        self.eval()

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return all weights."""
        return self.decoder.parameters()

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1] of latents (N, c, h, w)."""
        images: Tensor = torch.tanh(self.decoder(latents).to(latents.dtype))
        if not self.faithful:
            return images
        mean, std = (per_channel(numbers, images) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
        return 2 * (images * std + mean) - 1


def deconvolution(
    latent_width: int | None, channels: Sequence[int], kernel: int, norm: _Norm, out_channels: int
) -> nn.Sequential:
    """Build the layers from latents to a map with a side of 2^len(channels).

    Latents are (N, latent_width, 1, 1) or, if that is None, (N, channels[0], 2, 2); `channels` are of the 2 x 2 map and
    after each stage.
    """
    if latent_width is not None and latent_width < 1:
        raise UserError(f"latent_width ({latent_width}) must be at least 1")
    layers: list[nn.Module] = []
    if latent_width is not None:
        stem = nn.Linear(latent_width, 4 * channels[0])
        layers += [nn.Flatten(), stem, nn.Unflatten(1, (channels[0], 2, 2))]
    for before, after in pairwise(channels):
        up = nn.ConvTranspose2d(before, after, kernel, stride=2, padding=1, output_padding=kernel % 2)
        layers += [up, norm(after), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], out_channels, 3, padding=1))


def small_channels(width: int, map_size: int) -> list[int]:
    """Return the channels of the small decoder for a map of this size: half, a quarter, then an eighth of the width."""
    return _divided(width, [2 ** min(stage, 3) for stage in range(map_size.bit_length() - 1)])


def _channels(size: str, width: int, image_size: int) -> list[int]:
    if size == "small":
        return small_channels(width, image_size)
    stages = image_size.bit_length() - 2
    return _divided(width, [2**stage for stage in range(stages)] + [2 ** (stages - 1)])


def _divided(width: int, divisors: Sequence[int]) -> list[int]:
    if width < 1 or width % max(divisors):
        raise UserError(
            f"width ({width}) must be a multiple of {max(divisors)}, by which its channels are divided"
        )
    return [width // divisor for divisor in divisors]


def check_image_size(size: int, what: str = "image_size") -> None:
    """Raise unless `size` is a power of two of at least 8."""
    if size < 8 or size & (size - 1):
        raise UserError(
            f"{what} ({size}) must be a power of two of at least 8, since every stage doubles a 2 x 2 map"
        )


def group_norm(channels: int) -> nn.Module:
    """Normalise groups of about 16 channels; one group in small decoders keeps the brightness of single channels."""
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)


def _batch_norm(channels: int) -> nn.Module:
    """Normalise by the statistics of the batch, in eval mode as well."""
    return nn.BatchNorm2d(channels, track_running_stats=False)
