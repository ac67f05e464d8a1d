"""The original DiT and SiT in functions: tensors by their own names, and the arithmetic written from the papers."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH, HEADS, DEPTH, PATCH, CHANNELS, SIDE, ROWS = 32, 2, 2, 2, 4, 8, 6


def sines(size: int, width: int) -> Tensor:
    """Positions (1, size^2, width): a quarter each of sines and cosines of the column, then of the row."""
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4.0))
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    parts = [table.flatten()[:, None] * omega for table in (columns, rows)]
    return torch.cat([f(part) for part in parts for f in (torch.sin, torch.cos)], 1)[None].float()


def state(outputs: int = CHANNELS, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of two blocks."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "x_embedder.proj": (WIDTH, CHANNELS, PATCH, PATCH),
        "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH),
        "final_layer.linear": (PATCH * PATCH * outputs, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }
    for i in range(DEPTH):
        shapes |= {
            f"blocks.{i}.attn.qkv": (3 * WIDTH, WIDTH),
            f"blocks.{i}.attn.proj": (WIDTH, WIDTH),
            f"blocks.{i}.mlp.fc1": (4 * WIDTH, WIDTH),
            f"blocks.{i}.mlp.fc2": (WIDTH, 4 * WIDTH),
            f"blocks.{i}.adaLN_modulation.1": (6 * WIDTH, WIDTH),
        }
    found = {"pos_embed": sines(SIDE // PATCH, WIDTH)}
    found["y_embedder.embedding_table.weight"] = torch.randn(ROWS, WIDTH, generator=draw)
    for name, shape in shapes.items():
        fan = math.prod(shape[1:])
        found[f"{name}.weight"] = torch.randn(shape, generator=draw) / math.sqrt(fan)
        found[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=draw)
    return found


def forward(weights: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Output (N, outputs, h, w) of latents x at times t (N,) under rows y (N,), in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], eps=1e-6)

    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    angles = t.double()[:, None] * frequencies
    time = torch.cat([angles.cos(), angles.sin()], 1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", time)))
    c = F.silu(c + w["y_embedder.embedding_table.weight"][y])
    h = F.conv2d(x.double(), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=PATCH)
    h = h.flatten(2).transpose(1, 2) + w["pos_embed"]
    for i in range(DEPTH):
        shift, scale, gate, shift2, scale2, gate2 = (
            part[:, None] for part in linear(f"blocks.{i}.adaLN_modulation.1", c).chunk(6, 1)
        )
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in linear(f"blocks.{i}.attn.qkv", norm(h) * (1 + scale) + shift).chunk(3, 2)
        )
        attended = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(WIDTH / HEADS), -1) @ v
        h = h + gate * linear(f"blocks.{i}.attn.proj", attended.transpose(1, 2).flatten(2))
        inner = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(h) * (1 + scale2) + shift2), approximate="tanh")
        h = h + gate2 * linear(f"blocks.{i}.mlp.fc2", inner)
    shift, scale = (part[:, None] for part in linear("final_layer.adaLN_modulation.1", c).chunk(2, 1))
    h = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    n, cells = len(x), SIDE // PATCH
    h = h.view(n, cells, cells, PATCH, PATCH, -1)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(n, -1, SIDE, SIDE)
