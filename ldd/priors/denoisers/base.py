"""What a latent diffusion prior needs of its network.

A denoiser holds one frozen network of diffusers and what conditions it, and translates between them and the reverse
process: latents and a conditioning tensor in, the network's prediction out, differentiable in both.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.schedule import Interval, Time, Times

_FURTHER_INPUTS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "num_class_embeds",
    "time_cond_proj_dim",
)
LENGTH = "timestep"
"""`class_embed_type` of a U-Net that is told the length of a step besides its noisier end (MeanFlow)."""


class Denoiser(nn.Module, ABC):
    """A frozen denoising network with its conditions. Subclasses are final.

    Attributes:
        network: the diffusers model.
        classes: the classes the conditions stand for, `label` being the row; empty if they have no names.
        multiple: the side of the latents must be a multiple of it.
        has_null: whether there is a null condition, without which there is no guidance.
        embeds_guidance: whether the network is told the guidance scale (LCM), as a further argument of `forward`.
    """

    network: ModelMixin
    classes: list[ClassInfo]
    multiple: int = 1
    has_null: bool = True
    embeds_guidance: bool = False
    _component = "unet"

    @property
    def of_intervals(self) -> bool:
        """Whether the network is told both ends of a step."""
        return bool(self.network.config.get("class_embed_type") == LENGTH)

    @property
    def sample_size(self) -> int | None:
        """Side of the latents the network was trained on, if its config says so."""
        size = self.network.config.get("sample_size")
        return size if isinstance(size, int) else None

    def check_latents(self, channels: int, size: int, image_size: int) -> None:
        """Raise unless the network takes latents (channels, size, size) of images of `image_size` pixels."""
        config = self.network.config
        out = config.get("out_channels") or config.in_channels
        if config.in_channels != channels or out not in self._outputs(channels):
            raise UserError(
                f"component {self._component!r} maps {config.in_channels} to {out} channels but the autoencoder's "
                f"latents have {channels}; both must be from one prior"
            )
        if size % self.multiple or size < self.multiple:
            step = self.multiple * (image_size // size)
            below = image_size // step * step
            good = " or ".join(str(side) for side in (below, below + step) if side)
            raise UserError(
                f"image_size={image_size} makes latents of {size} x {size}, but component {self._component!r} needs a "
                f"multiple of {self.multiple}; nearest good sizes: {good}"
            )

    @abstractmethod
    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Return the rows (K,) int64 of the conditions for the data's classes; `mapping` takes precedence.

        Raises:
            UserError: a class without a condition, or an entry of `mapping` that names none.
        """

    @abstractmethod
    def embed(self, rows: Tensor) -> Tensor:
        """Return the conditioning (N, L, D) of rows (N,), on the network's device; L = 0 if unconditional."""

    @abstractmethod
    def null(self, n: int) -> Tensor:
        """Return the conditioning (n, L, D) of the null condition."""

    def forward(self, x: Tensor, timestep: Time | Times, conditioning: Tensor) -> Tensor:
        """Predict for noisy latents x (N, c, h, w) under conditioning (N, L, D): (N, c, h, w).

        This is the call of a U-Net with cross-attention; other networks override it.
        """
        return call_unet(self.network, x, timestep, conditioning)

    def _outputs(self, channels: int) -> tuple[int, ...]:
        """Return numbers of output channels that go with `channels` of the latents."""
        return (channels,)


def call_unet(unet: nn.Module, x: Tensor, time: Time | Times, tokens: Tensor) -> Tensor:
    """Call a U-Net with cross-attention for latents x (N, c, h, w), times (N,) or one of all, and tokens (N, L, D)."""
    if not isinstance(time, Interval):
        output: Tensor = unet(x, timestep_tensor(time, x), encoder_hidden_states=tokens, return_dict=False)[0]
        return output
    length = timestep_tensor(time.begin - time.end, x).expand(len(x))
    begin = timestep_tensor(time.begin, x)
    output = unet(x, begin, encoder_hidden_states=tokens, class_labels=length, return_dict=False)[0]
    return output


def timestep_tensor(timestep: float | Tensor, like: Tensor) -> Tensor:
    """Return a timestep as the networks take it: on the device, where a plain number is copied at every call.

    Timesteps of a diffusion model are whole numbers; a flow's lie between, in float32 whatever the precision.
    """
    if isinstance(timestep, Tensor):
        return timestep
    kind = torch.int64 if isinstance(timestep, int) else torch.float32
    return torch.full((), timestep, dtype=kind, device=like.device)


def check_inputs(unet: ModelMixin, tokens: str, known: Mapping[str, str | None] = {}) -> None:
    """Raise if a U-Net wants more than noisy latents, a timestep, `tokens` and what is `known`.

    `known` has settings of its config that ask for a further input, each with its value, or None for any.
    """
    given = {key: unet.config.get(key) for key in _FURTHER_INPUTS}
    wanted = [
        key
        for key, value in given.items()
        if value is not None and not (key in known and known[key] in (None, value))
    ]
    if wanted:
        raise UserError(f"component 'unet' wants inputs beyond {tokens} ({', '.join(wanted)}); not supported")
