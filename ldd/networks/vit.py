"""Vision transformer in the small form the distillation papers test on."""

from typing import final

import torch
from torch import Tensor, nn
from torchvision.ops import MLP

from ldd.errors import UserError
from ldd.networks.base import Network, check_sizes


class _Block(nn.Module):
    """Self-attention, then a two-layer perceptron, on tokens (N, T, dim): normalised before, added after."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float, layer_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(dim) if layer_norm else nn.Identity()
        self.queries_keys_values = nn.Linear(dim, 3 * dim, bias=False)
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.norm_mlp = nn.LayerNorm(dim) if layer_norm else nn.Identity()
        self.mlp = MLP(dim, [mlp_dim, dim], activation_layer=nn.GELU, inplace=None, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.queries_keys_values(self.norm_attention(x))
        # Each (N, heads, T, dim / heads).
        q, k, v = packed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: torch's fused attention has no second derivative, which gradient matching needs, and is
        # no faster at these lengths.
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.project((attention @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))  # type: ignore[no-any-return]


@final
class ViT(Network):
    """Vision transformer (arXiv 2010.11929) with a class token and learned positions.

    16,198,154 parameters for 10 classes at 128 px. The published comparison (GLaD, LD3M) ran it with every
    LayerNorm removed, 16,176,650 parameters; `layer_norm=False` reproduces that. Both round to 16.2 M.
    Weights start as torch's default layers and tokens as unit normals, as published.

    Args:
        num_classes: K.
        image_size: height and width in pixels, at least 32.
        patch_size: side of a patch in pixels, a divisor of `image_size`; None takes an eighth (16 at 128 px).
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads, a divisor of `dim`.
        mlp_dim: hidden width of each block's perceptron; None takes `dim`.
        dropout: probability, on the embedded tokens and after each linear layer of the blocks but the first.
        layer_norm: False is the published quirk: no LayerNorm anywhere.

    Raises:
        UserError: an image size below 32 px, a patch size that does not divide it, heads that do not divide
            `dim`, a dropout that is not a probability.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        patch_size: int | None = None,
        dim: int = 512,
        depth: int = 10,
        heads: int = 8,
        mlp_dim: int | None = None,
        dropout: float = 0.1,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        patch_size = image_size // 8 if patch_size is None else patch_size
        mlp_dim = dim if mlp_dim is None else mlp_dim
        check_sizes(
            "ViT",
            num_classes,
            image_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
        )
        if image_size % patch_size:
            raise UserError(
                f"ViT: patch_size {patch_size} does not divide image_size {image_size}; give one of "
                f"{[size for size in range(1, image_size) if image_size % size == 0]}"
            )
        if dim % heads:
            raise UserError(f"ViT: heads {heads} does not divide dim {dim}; set dim to a multiple of heads")
        if not 0 <= dropout < 1:
            raise UserError(f"ViT: dropout is {dropout}; give a probability from 0 up to but not 1")
        self.patches = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, (image_size // patch_size) ** 2 + 1, dim))
        self.blocks = nn.Sequential(
            nn.Dropout(dropout), *(_Block(dim, heads, mlp_dim, dropout, layer_norm) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim) if layer_norm else nn.Identity()
        self.classifier = nn.Linear(dim, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the class token after the last block (N, dim), normalised unless `layer_norm` is off."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1) + self.positions
        return self.norm(self.blocks(tokens)[:, 0])  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.classifier(self.embed(x))  # type: ignore[no-any-return]
