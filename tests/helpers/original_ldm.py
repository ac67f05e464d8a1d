"""The original latent-diffusion architecture, written from its structure, with the names its checkpoints use.

Nothing here knows diffusers: it is what converted models are compared with.
"""

import math

import torch
from original_first_stage import FirstStage, Grow
from torch import Tensor, nn
from torch.nn import functional

from ldd.runtime.seeding import seeded


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, width: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x, emb, context):
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class FusedAttention(nn.Module):
    """Rows of `qkv` by head, then q, k, v."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, emb, context):
        n, c, height, width = x.shape
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).view(n, self.heads, 3, c // self.heads, -1).unbind(2)
        weight = torch.einsum("nhct,nhcs->nhts", q, k).div(math.sqrt(c // self.heads)).softmax(-1)
        mixed = torch.einsum("nhts,nhcs->nhct", weight, v).reshape(n, c, -1)
        return (flat + self.proj_out(mixed)).view(n, c, height, width)


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0))

    def forward(self, x, context):
        q, k, v = (
            t.unflatten(2, (self.heads, -1)) for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        weight = torch.einsum("nthc,nshc->nhts", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
        return self.to_out(torch.einsum("nhts,nshc->nthc", weight, v).flatten(2))


class Gated(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, -1)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(Gated(channels), nn.Dropout(0), nn.Linear(4 * channels, channels))


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, context: int, heads: int):
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x, context):
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff.net(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, context: int, heads: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context, heads)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x, emb, context):
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Shrink(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, emb, context):
        return self.op(x)


class UNet(nn.Module):
    """Takes the settings of `unet_config.params`."""

    def __init__(self, *, model_channels, channel_mult, num_res_blocks, attention_resolutions, in_channels,
                 out_channels, num_heads=-1, num_head_channels=-1, context_dim=None, **inert):  # fmt: skip
        super().__init__()
        self.model_channels = model_channels
        width = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, width), nn.SiLU(), nn.Linear(width, width))

        def attention(c):
            heads = num_heads if num_head_channels == -1 else c // num_head_channels
            return (
                FusedAttention(c, heads) if context_dim is None else SpatialTransformer(c, context_dim, heads)
            )

        c, skips, factor = model_channels, [model_channels], 1
        inputs = [nn.ModuleList([nn.Conv2d(in_channels, c, 3, padding=1)])]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                block = [Residual(c, mult * model_channels, width)]
                c = mult * model_channels
                inputs.append(nn.ModuleList(block + [attention(c)] * (factor in attention_resolutions)))
                skips.append(c)
            if level < len(channel_mult) - 1:
                inputs.append(nn.ModuleList([Shrink(c)]))
                skips.append(c)
                factor *= 2
        self.middle_block = nn.ModuleList([Residual(c, c, width), attention(c), Residual(c, c, width)])
        outputs = []
        for level in reversed(range(len(channel_mult))):
            out = channel_mult[level] * model_channels
            for number in range(num_res_blocks + 1):
                block = [Residual(c + skips.pop(), out, width)]
                c = out
                block += [attention(c)] * (factor in attention_resolutions)
                if level and number == num_res_blocks:
                    block.append(Grow(c))
                    factor //= 2
                outputs.append(nn.ModuleList(block))
        self.input_blocks, self.output_blocks = nn.ModuleList(inputs), nn.ModuleList(outputs)
        self.out = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, out_channels, 3, padding=1))

    def forward(self, x, t, context=None):
        half = self.model_channels // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        h, kept = x, []
        for number, block in enumerate(self.input_blocks):
            for layer in block:
                h = layer(h, emb, context) if number else layer(h)
            kept.append(h)
        for layer in self.middle_block:
            h = layer(h, emb, context)
        for block in self.output_blocks:
            h = torch.cat([h, kept.pop()], dim=1)
            for layer in block:
                h = layer(h, emb, context)
        return self.out(h)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that make every tensor matter, none of them at its default."""
    with seeded(seed, "original"), torch.no_grad():
        for parameter in module.parameters():
            fan = parameter[0].numel()
            noise = torch.randn_like(parameter)
            parameter.copy_(noise / math.sqrt(fan) if parameter.ndim > 1 else 0.5 + 0.3 * noise)
    return module.eval()


def abar(params: dict) -> Tensor:
    """abar of the original's `linear` schedule, computed in double precision as there."""
    start, end = params["linear_start"] ** 0.5, params["linear_end"] ** 0.5
    betas = torch.linspace(start, end, params["timesteps"], dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def ema_name(key: str) -> str:
    return "model_ema." + f"diffusion_model.{key}".replace(".", "")


def checkpoint_of(
    params: dict, unet: UNet, stage: FirstStage, table: Tensor | None = None
) -> dict[str, Tensor]:
    """The state dict of a whole model, with what training leaves in it beside the weights."""
    bars = abar(params).float()
    state = {"betas": 1 - bars, "alphas_cumprod": bars, "logvar": torch.zeros(len(bars))}
    state |= {f"model.diffusion_model.{key}": value for key, value in unet.state_dict().items()}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    state |= {ema_name(key): value + 0.01 for key, value in unet.state_dict().items()}
    state |= {f"first_stage_model.{key}": value for key, value in stage.state_dict().items()}
    state["first_stage_model.loss.discriminator.main.0.weight"] = torch.zeros(2)
    if table is not None:
        state["cond_stage_model.embedding.weight"] = table
    return state


def config_of(kind: str = "class", first_stage: str = "vq", tiny: bool = True) -> dict:
    """`model.params` of a YAML: the form of cin256-v2 (`class`) or ffhq-ldm-vq-4 (`unconditional`), whole or tiny."""
    latent = {"vq": 3, "kl": 4}[first_stage]
    ddconfig = {
        "double_z": first_stage == "kl", "z_channels": latent, "resolution": 16 if tiny else 256, "in_channels": 3,
        "out_ch": 3, "ch": 32 if tiny else 128, "ch_mult": [1, 2] if tiny else [1, 2, 4], "dropout": 0.0,
        "num_res_blocks": 1 if tiny else 2, "attn_resolutions": [],
    }  # fmt: skip
    if first_stage == "kl" and not tiny:
        ddconfig["ch_mult"] = [1, 2, 4, 4]
    stage = {"embed_dim": latent, "ddconfig": ddconfig, "lossconfig": {"target": "torch.nn.Identity"}}
    if first_stage == "vq":
        stage["n_embed"] = 32 if tiny else 8192
    size = 8 if tiny else 256 // 2 ** (len(ddconfig["ch_mult"]) - 1)
    unet = {
        "image_size": size, "in_channels": latent, "out_channels": latent, "num_res_blocks": 2,
        "model_channels": {"class": 192, "unconditional": 224}[kind], "attention_resolutions": [8, 4, 2],
        "channel_mult": {"class": [1, 2, 3, 5], "unconditional": [1, 2, 3, 4]}[kind],
    }  # fmt: skip
    if tiny:
        unet |= {"model_channels": 32, "channel_mult": [1, 2], "attention_resolutions": [2]}
    if kind == "class":
        unet |= {"num_heads": 1, "use_spatial_transformer": True, "transformer_depth": 1}
        unet["context_dim"] = 16 if tiny else 512
    else:
        unet["num_head_channels"] = 16 if tiny else 32
    classes = {"n_classes": 11 if tiny else 1001, "embed_dim": unet.get("context_dim"), "key": "class_label"}
    target = {"vq": "VQModelInterface", "kl": "AutoencoderKL"}[first_stage]
    return {
        "linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 1000, "log_every_t": 200, "image_size": size,
        "channels": latent, "monitor": "val/loss", "use_ema": False,
        "conditioning_key": "crossattn" if kind == "class" else None,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {"target": f"ldm.models.autoencoder.{target}", "params": stage},
        "cond_stage_config": "__is_unconditional__" if kind == "unconditional" else {
            "target": "ldm.modules.encoders.modules.ClassEmbedder", "params": classes,
        },
    }  # fmt: skip


def build(params: dict) -> tuple[UNet, FirstStage]:
    """The two networks of a YAML's `model.params`."""
    return UNet(**params["unet_config"]["params"]), FirstStage(**params["first_stage_config"]["params"])
