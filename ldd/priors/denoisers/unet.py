"""What a latent diffusion prior needs of its network, and the class-conditional and unconditional U-Nets.

An adapter holds one frozen network of diffusers and what conditions it, and translates between them and the reverse
process: latents and a conditioning tensor in, the predicted noise (or velocity, or clean latents) out, differentiable
in both. `ldd.priors.denoisers.transformer` and `ldd.priors.denoisers.text` hold the other adapters.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from diffusers import ModelMixin, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.class_table import ClassTable
from ldd.priors.loading import Init, PriorCard, load_model, load_tensor

_FURTHER_INPUTS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "num_class_embeds",
    "time_cond_proj_dim",
)


class Denoiser(nn.Module, ABC):
    """A frozen denoising network with its conditions. Subclasses are final.

    Attributes:
        network: the diffusers model.
        classes: the classes the conditions stand for, `label` being the row; empty if they have no names.
        multiple: the side of the latents must be a multiple of it.
    """

    network: ModelMixin
    classes: list[ClassInfo]
    multiple: int = 1

    @property
    def sample_size(self) -> int | None:
        """Side of the latents the network was trained on, if its config tells."""
        size = self.network.config.get("sample_size")
        return size if isinstance(size, int) else None

    def check_latents(self, channels: int, size: int, image_size: int) -> None:
        """Refuse latents (channels, size, size), of images of `image_size` pixels, that the network cannot take.

        Raises:
            UserError: another number of channels, or a side that is not a multiple of `multiple`.
        """
        config = self.network.config
        out = config.get("out_channels") or config.in_channels
        if config.in_channels != channels or out not in self._outputs(channels):
            raise UserError(
                f"component {self._component!r} maps {config.in_channels} to {out} channels but the autoencoder's "
                f"latents have {channels}; both must be from one prior"
            )
        if size % self.multiple or size < self.multiple:
            pixels = image_size // size
            step = self.multiple * pixels
            below = image_size // step * step
            good = " or ".join(str(side) for side in (below, below + step) if side)
            raise UserError(
                f"image_size={image_size} makes latents of {size} x {size}, but component {self._component!r} needs a "
                f"multiple of {self.multiple}; nearest good sizes: {good}"
            )

    @abstractmethod
    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Rows of the conditions for the data's classes, (K,) int64; `mapping` goes before the names.

        Raises:
            UserError: a class without a condition, or an entry of `mapping` that names none.
        """

    @abstractmethod
    def embed(self, rows: Tensor) -> Tensor:
        """Conditioning (N, L, D) of rows (N,), on the network's device; L = 0 if unconditional."""

    @abstractmethod
    def null(self, n: int) -> Tensor:
        """Conditioning (n, L, D) of the null condition."""

    @abstractmethod
    def forward(self, x: Tensor, timestep: int, conditioning: Tensor) -> Tensor:
        """The network's prediction (N, c, h, w) for noisy latents x (N, c, h, w) under conditioning (N, L, D)."""

    _component = "unet"

    def _outputs(self, channels: int) -> tuple[int, ...]:
        """Numbers of output channels that go with `channels` of the latents."""
        return (channels,)


def tell(timestep: int, like: Tensor) -> Tensor:
    """A timestep as the networks take it: on the device, since a plain number would be copied over at every call."""
    return torch.full((), timestep, dtype=torch.int64, device=like.device)


def refuse_further_inputs(unet: ModelMixin, tokens: str) -> None:
    """Refuse a U-Net that wants more than noisy latents, a timestep and `tokens`.

    Raises:
        UserError: with the settings that ask for more.
    """
    wanted = [key for key in _FURTHER_INPUTS if unet.config.get(key) is not None]
    if wanted:
        raise UserError(f"component 'unet' wants inputs beyond {tokens} ({', '.join(wanted)}); not supported")


@final
class ClassConditionalUNet(Denoiser):
    """A U-Net with cross-attention to one class token, a row of `class_embedding.safetensors`.

    Args:
        folder: with `unet/` (UNet2DConditionModel) and `class_embedding.safetensors`.
        card: the classes and the null row.
        init: `random` for a U-Net of random weights; the class table is kept.

    Raises:
        UserError: missing or damaged component, or components that do not fit together.
    """

    class_embedding: Tensor

    def __init__(self, folder: Path, card: PriorCard, init: Init = "pretrained") -> None:
        super().__init__()
        self.network = load_model(folder / "unet", (UNet2DConditionModel,), init=init)
        table = load_tensor(folder / "class_embedding.safetensors", "weight")
        refuse_further_inputs(self.network, "a class token")
        width = self.network.config.cross_attention_dim
        if table.ndim != 2 or table.shape[1] != width:
            raise UserError(
                f"class_embedding.safetensors holds a table of shape {tuple(table.shape)}; the U-Net's "
                f"cross_attention_dim asks for (rows, {width})"
            )
        if not 0 <= card.null_class < len(table) or len(card.classes) > len(table):
            raise UserError(
                f"prior.json names {len(card.classes)} classes and null_class {card.null_class}, but the class table "
                f"has {len(table)} rows"
            )
        self.register_buffer("class_embedding", table)
        self.null_class = card.null_class
        self.classes = card.classes
        self._table = ClassTable(card.classes, len(table))

    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Rows of the class table, see `ClassTable.rows`."""
        return self._table.rows(classes, mapping)

    def embed(self, rows: Tensor) -> Tensor:
        """Class tokens (N, 1, D)."""
        return self.class_embedding[rows.to(self.class_embedding.device)][:, None]

    def null(self, n: int) -> Tensor:
        """The null token, (n, 1, D)."""
        return self.class_embedding[self.null_class].expand(n, 1, -1)

    def forward(self, x: Tensor, timestep: int, conditioning: Tensor) -> Tensor:
        """See `Denoiser.forward`; conditioning is (N, 1, D)."""
        output: Tensor = self.network(
            x, tell(timestep, x), encoder_hidden_states=conditioning, return_dict=False
        )[0]
        return output


@final
class UnconditionalUNet(Denoiser):
    """A U-Net without a condition (diffusers' UNet2DModel): conditioning is empty, only latents are learned.

    Args:
        folder: with `unet/`.
        init: `random` for a U-Net of random weights.

    Raises:
        UserError: missing or damaged component, or a U-Net that wants classes.
    """

    def __init__(self, folder: Path, init: Init = "pretrained") -> None:
        super().__init__()
        self.network = load_model(folder / "unet", (UNet2DModel,), init=init)
        refuse_further_inputs(self.network, "noisy latents")
        self.classes = []
        self.multiple = 2 ** (len(self.network.config.block_out_channels) - 1)

    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """The labels, (K,) int64: without conditions every class is known and its own row.

        Raises:
            UserError: a mapping is given, which would change nothing.
        """
        if mapping:
            raise UserError("classes is given, but the prior is unconditional and has no classes; remove it")
        return torch.tensor([info.label for info in classes], dtype=torch.int64)

    def embed(self, rows: Tensor) -> Tensor:
        """Empty conditioning (N, 0, 0)."""
        return self.null(len(rows))

    def null(self, n: int) -> Tensor:
        """Empty conditioning (n, 0, 0)."""
        weight: Tensor = next(self.network.parameters())
        return weight.new_zeros(n, 0, 0)

    def forward(self, x: Tensor, timestep: int, conditioning: Tensor) -> Tensor:
        """See `Denoiser.forward`; conditioning is not looked at."""
        output: Tensor = self.network(x, tell(timestep, x), return_dict=False)[0]
        return output
