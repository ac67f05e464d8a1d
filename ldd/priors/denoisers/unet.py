"""The class-conditional and unconditional U-Nets as denoisers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.class_table import ClassTable, find_table
from ldd.priors.denoisers.base import LENGTH, Denoiser, check_inputs, timestep_tensor
from ldd.priors.folder import PriorCard
from ldd.priors.loading import Init, load_model, load_tensor
from ldd.priors.schedule import Interval, Time, Times


@final
class ClassConditionalUNet(Denoiser):
    """A U-Net with cross-attention to one class token, a row of `class_embedding.safetensors`."""

    class_embedding: Tensor

    def __init__(self, folder: Path, card: PriorCard, init: Init = "pretrained") -> None:
        super().__init__()
        self.network = load_model(folder / "unet", (UNet2DConditionModel,), init=init)
        table = load_tensor(folder / "class_embedding.safetensors", "weight")
        check_inputs(self.network, "a class token", {"class_embed_type": LENGTH})
        width = self.network.config.cross_attention_dim
        if table.ndim != 2 or table.shape[1] != width:
            raise UserError(
                f"class_embedding.safetensors holds a table of shape {tuple(table.shape)}; the U-Net's "
                f"cross_attention_dim asks for (rows, {width})"
            )
        card.check_table(len(table), "the class table has")
        self.register_buffer("class_embedding", table)
        self.null_class = card.null_class
        self._table = ClassTable(card.classes, len(table))
        self.classes = self._table.classes

    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Return rows of the class table, see `ClassTable.rows`."""
        return self._table.rows(classes, mapping)

    def embed(self, rows: Tensor) -> Tensor:
        """Return the class tokens (N, 1, D)."""
        return self.class_embedding[rows.to(self.class_embedding.device)][:, None]

    def null(self, n: int) -> Tensor:
        """Return the null token, (n, 1, D)."""
        return self.class_embedding[self.null_class].expand(n, 1, -1)


@final
class UnconditionalUNet(Denoiser):
    """A U-Net without a condition (diffusers' UNet2DModel): conditioning is empty, only latents are learned."""

    def __init__(self, folder: Path, init: Init = "pretrained") -> None:
        super().__init__()
        self.network = load_model(folder / "unet", (UNet2DModel,), init=init)
        check_inputs(self.network, "noisy latents")
        self.classes = []
        self.multiple = _multiple(self.network)

    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Return the labels (K,) int64: without conditions every class is known and its own row."""
        if mapping:
            raise UserError("classes is given, but the prior is unconditional and has no classes; remove it")
        return torch.tensor([info.label for info in classes], dtype=torch.int64)

    def embed(self, rows: Tensor) -> Tensor:
        """Return empty conditioning (N, 0, 0)."""
        return self.null(len(rows))

    def null(self, n: int) -> Tensor:
        """Return empty conditioning (n, 0, 0)."""
        weight: Tensor = next(self.network.parameters())
        kind = torch.promote_types(weight.dtype, torch.float32)  # not the type of half-precision weights
        return weight.new_zeros(n, 0, 0, dtype=kind)

    def forward(self, x: Tensor, timestep: Time | Times, conditioning: Tensor) -> Tensor:
        """See `Denoiser.forward`; conditioning is not read."""
        assert not isinstance(timestep, Interval), "checked by the prior"
        output: Tensor = self.network(x, timestep_tensor(timestep, x), return_dict=False)[0]
        return output


@final
class LabelledUNet(Denoiser):
    """A U-Net that adds a row of its own class table to the time's embedding (diffusers' UNet2DModel).

    The table is taken out and its rows passed in: conditioning is (N, 1, D). Published models have no null row and
    cannot be guided; `prior.json` names one where there is.
    """

    class_embedding: Tensor

    def __init__(self, folder: Path, card: PriorCard | None = None, init: Init = "pretrained") -> None:
        super().__init__()
        self.network = load_model(folder / "unet", (UNet2DModel,), init=init)
        check_inputs(self.network, "noisy latents and a class", {"num_class_embeds": None})
        table = self.network.class_embedding.weight.detach()
        self.network.class_embedding = nn.Identity()
        self.register_buffer("class_embedding", table.clone())
        self.null_class = -1 if card is None else card.null_class
        self.has_null = self.null_class >= 0
        self._table = find_table(folder, card, self._component, len(table), int(self.has_null))
        self.classes = self._table.classes
        self.multiple = _multiple(self.network)

    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Return rows of the class table, see `ClassTable.rows`."""
        return self._table.rows(classes, mapping)

    def embed(self, rows: Tensor) -> Tensor:
        """Return the class embeddings (N, 1, D)."""
        return self.class_embedding[rows.to(self.class_embedding.device)][:, None]

    def null(self, n: int) -> Tensor:
        """Return the null row, (n, 1, D); zeros where there is none, which nothing uses."""
        row = self.class_embedding[self.null_class]
        return (row if self.has_null else torch.zeros_like(row)).expand(n, 1, -1)

    def forward(self, x: Tensor, timestep: Time | Times, conditioning: Tensor) -> Tensor:
        """See `Denoiser.forward`."""
        assert not isinstance(timestep, Interval), "checked by the prior"
        time = timestep_tensor(timestep, x)
        output: Tensor = self.network(x, time, class_labels=conditioning[:, 0], return_dict=False)[0]
        return output


def _multiple(network: UNet2DModel) -> int:
    """Pixels, or latents, that become one at the lowest level."""
    return int(2 ** (len(network.config.block_out_channels) - 1))
