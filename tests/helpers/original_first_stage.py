"""The original latent-diffusion first stages (VQ and KL), from their structure, with their checkpoints' names."""

import math

import torch
from torch import nn
from torch.nn import functional


class Grow(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, emb=None, context=None):
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class FirstStageResidual(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, channels, 1e-6), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, out, 1e-6), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x):
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class FirstStageAttention(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, c, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weight = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(-1)
        return x + self.proj_out((v @ weight.transpose(1, 2)).view(x.shape))


class FirstStageShrink(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    def __init__(self, channels: int, out: int, blocks: int, attends: bool):
        super().__init__()
        self.block = nn.ModuleList(FirstStageResidual(out if i else channels, out) for i in range(blocks))
        self.attn = nn.ModuleList(FirstStageAttention(out) for _ in range(blocks * attends))

    def forward(self, x):
        for place, block in enumerate(self.block):
            x = block(x)
            x = self.attn[place](x) if len(self.attn) else x
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Middle(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = FirstStageResidual(c, c), FirstStageAttention(c), (
            FirstStageResidual(c, c)
        )  # fmt: skip

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(
        self, *, ch, ch_mult, num_res_blocks, z_channels, attn_resolutions, resolution, double_z, **inert
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        c, levels = ch, []
        for level, mult in enumerate(ch_mult):
            levels.append(Level(c, ch * mult, num_res_blocks, resolution // 2**level in attn_resolutions))
            c = ch * mult
            if level < len(ch_mult) - 1:
                levels[-1].downsample = FirstStageShrink(c)
        self.down, self.mid = nn.ModuleList(levels), Middle(c)
        self.norm_out = nn.GroupNorm(32, c, 1e-6)
        self.conv_out = nn.Conv2d(c, z_channels * (1 + double_z), 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, *, ch, ch_mult, num_res_blocks, z_channels, attn_resolutions, resolution, **inert):
        super().__init__()
        c = ch * ch_mult[-1]
        self.conv_in, self.mid = nn.Conv2d(z_channels, c, 3, padding=1), Middle(c)
        levels = []
        for level in reversed(range(len(ch_mult))):
            out = ch * ch_mult[level]
            levels.insert(0, Level(c, out, num_res_blocks + 1, resolution // 2**level in attn_resolutions))
            c = out
            if level:
                levels[0].upsample = Grow(c)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = nn.GroupNorm(32, c, 1e-6), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x):
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class FirstStage(nn.Module):
    """Takes the settings of `first_stage_config.params`; with `n_embed` it quantises."""

    def __init__(self, *, embed_dim, ddconfig, n_embed=None, **inert):
        super().__init__()
        self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        double = 1 + ddconfig["double_z"]
        self.quant_conv = nn.Conv2d(double * ddconfig["z_channels"], double * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        if n_embed is not None:
            self.quantize = nn.Module()
            self.quantize.embedding = nn.Embedding(n_embed, embed_dim)
        self.embed_dim = embed_dim

    def encode(self, x):
        """Before quantisation; the mode of a Gaussian."""
        return self.quant_conv(self.encoder(x))[:, : self.embed_dim]

    def decode(self, z):
        if hasattr(self, "quantize"):
            codes = self.quantize.embedding.weight
            nearest = torch.cdist(z.flatten(2).transpose(1, 2), codes[None]).argmin(-1)
            z = codes[nearest].transpose(1, 2).reshape(z.shape)
        return self.decoder(self.post_quant_conv(z))
