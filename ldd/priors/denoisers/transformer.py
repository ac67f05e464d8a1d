"""Diffusion transformers (DiT) as denoisers: one learnable condition per block."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from ldd.images import ClassInfo
from ldd.priors.class_table import find_table
from ldd.priors.denoisers.base import Denoiser, timestep_tensor
from ldd.priors.folder import PriorCard
from ldd.priors.loading import Init, load_model
from ldd.priors.schedule import Interval, Time, Times


@final
class _BlockCondition(nn.Module):
    """Takes the place of a block's class table and returns the block's part of the conditions (N, blocks, D)."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, conditions: Tensor) -> Tensor:
        return conditions[:, self.block]


@final
class DiffusionTransformer(Denoiser):
    """A class-conditional DiT (diffusers' DiTTransformer2DModel; arXiv:2212.09748).

    Every block adds a row of its own class table to the timestep embedding. The tables are taken out of the blocks and
    their rows passed in: conditioning is (N, blocks, D), and the model's own forward runs with it in the place of
    class labels. Channels of a learned variance are dropped. Rows are named by `card` (`prior.json`), else by
    `model_index.json`. `tied` means one condition for all blocks, (N, 1, D), which starts from the mean of the tables.

    The original code differs from diffusers' model, and `prior.json` says whose a network is: its sinusoids of the
    timestep have the frequencies 10000^(-i / 128), where diffusers divides by 127; and a `sit` (SiT, arXiv:2401.08740)
    counts time from noise (0) to data (1) and predicts data - noise: both are turned round here.
    """

    _component = "transformer"
    class_embedding: Tensor

    def __init__(
        self, folder: Path, card: PriorCard | None = None, *, tied: bool = False, init: Init = "pretrained"
    ) -> None:
        super().__init__()
        self.network = load_model(folder / "transformer", (DiTTransformer2DModel,), init=init)
        embeddings = [block.norm1.emb for block in self.network.transformer_blocks]
        self.form = None if card is None else card.form
        if self.form is not None:
            for emb in embeddings:
                emb.time_proj.downscale_freq_shift = 0
        tables = torch.stack([emb.class_embedder.embedding_table.weight.detach() for emb in embeddings])
        for block, emb in enumerate(embeddings):
            emb.class_embedder = _BlockCondition(block)
        if bool((tables == tables[:1]).all()):
            tables = tables[:1]  # published models repeat one table in every block
        elif tied:
            tables = tables.double().mean(0, keepdim=True).float()
        # (1 or blocks, rows, D)
        self.register_buffer("class_embedding", tables.clone())
        self.blocks = 1 if tied else len(embeddings)
        self.multiple = self.network.config.patch_size
        self.null_class = tables.shape[1] - 1 if card is None else card.null_class
        self._table = find_table(folder, card, self._component, tables.shape[1])
        self.classes = self._table.classes

    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Return rows of the class tables, see `ClassTable.rows`."""
        return self._table.rows(classes, mapping)

    def embed(self, rows: Tensor) -> Tensor:
        """Return class embeddings (N, blocks, D), or (N, 1, D) if tied."""
        found = self.class_embedding[:, rows.to(self.class_embedding.device)].transpose(0, 1)
        return found.expand(-1, self.blocks, -1)

    def null(self, n: int) -> Tensor:
        """Return embeddings of the null class, (n, blocks, D) or (n, 1, D) if tied."""
        return self.class_embedding[:, self.null_class].expand(n, self.blocks, -1)

    def forward(self, x: Tensor, timestep: Time | Times, conditioning: Tensor) -> Tensor:
        """See `Denoiser.forward`; conditioning is (N, blocks, D) or (N, 1, D) if tied."""
        assert not isinstance(timestep, Interval), "checked by the prior"
        time = 1 - timestep if self.form == "sit" else timestep
        conditions = conditioning.expand(-1, len(self.network.transformer_blocks), -1)
        output: Tensor = self.network(
            x, timestep_tensor(time, x).expand(len(x)), class_labels=conditions, return_dict=False
        )[0]
        output = output[:, : x.shape[1]]
        return -output if self.form == "sit" else output

    def _outputs(self, channels: int) -> tuple[int, ...]:
        return (channels, 2 * channels)
