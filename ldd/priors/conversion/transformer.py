"""Convert an original diffusion transformer to a prior folder: DiT (arXiv:2212.09748) and SiT (arXiv:2401.08740).

Sizes are read off the tensors. Every tensor of the checkpoint is either converted or known to serve only training;
anything else fails.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.autoencoder import FOLDERS, AutoencoderPrior, autoencoder_folder, pixels_per_latent
from ldd.priors.conversion.checkpoint import Weights
from ldd.priors.conversion.reading import read_state
from ldd.priors.folder import Form, PriorCard, write_prior
from ldd.priors.loading import locate, read_json

_SECTIONS = {
    "ema": "ema",
    "raw": "model",
}  # of a training checkpoint; a released file holds the weights alone
_TRAINING = ("projectors.",)  # REPA's heads, which only its loss reads
_NAMES = {"dit": "DiT", "sit": "SiT"}
_HEADS_OF_XL = {1152: 16}
"""The one published width whose heads are not 64 wide."""

_INPUT = {"x_embedder.proj": "pos_embed.proj"}
_TIME = {"t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2"}
_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_OUTPUT = {"final_layer.adaLN_modulation.1": "proj_out_1", "final_layer.linear": "proj_out_2"}
_TABLE, _PLACES = "y_embedder.embedding_table.weight", "pos_embed"


def convert_transformer(
    checkpoint: Path | str,
    form: Form,
    vae: str,
    out: Path | str,
    *,
    classes: Sequence[ClassInfo],
    licence: str,
    heads: int | None = None,
    weights: Weights = "ema",
    trust: bool = False,
) -> Path:
    """Write the prior folder of an original DiT or SiT checkpoint; tensors keep the checkpoint's precision.

    Args:
        checkpoint: the `.pt` file: the weights alone, or a training checkpoint with `ema` and `model`.
        form: `dit` predicts the noise of a diffusion model, `sit` the velocity of a flow.
        vae: folder or hub id of the autoencoder whose latents it speaks.
        out: folder to write; it must not exist.
        classes: one for each row of the class table but the last, the null row.
        licence: terms of the weights.
        heads: attention heads; None takes width / 64, and the 16 of the published width 1152.
        weights: of a training checkpoint, the moving average or the weights as trained.
        trust: read pickles of more than tensors, see `read_state`.

    Raises:
        UserError: tensors that are missing, left over, of another shape or not finite, positions other than the sines
            that both models share, a class table of another length, or heads that do not divide the width.
    """
    if Path(out).exists():
        raise UserError(f"out ({out}) exists; name a new folder")
    state = read_state(checkpoint, trust=trust, section=_SECTIONS[weights])
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_TRAINING)}
    network = _network(state, heads)
    rows = state[_TABLE].shape[0]
    if rows != len(classes) + 1:
        raise UserError(
            f"the class table of the checkpoint has {rows} rows, which must be the {len(classes)} classes and one null "
            "row for guidance; give the names of its classes with --class-names FILE"
        )
    _fill(network, state)
    folder = autoencoder_folder(locate(vae, FOLDERS))
    size = network.config.sample_size * pixels_per_latent(read_json(folder / "config.json"))
    first_stage = AutoencoderPrior(str(folder), size)
    if first_stage.latent_shape[0] != network.config.in_channels:
        raise UserError(
            f"--vae ({vae}) has latents of {first_stage.latent_shape[0]} channels, the transformer takes "
            f"{network.config.in_channels}; name the autoencoder that it was trained with"
        )
    return write_prior(
        out,
        network=network,
        autoencoder=first_stage.autoencoder,
        scheduler=_scheduler(form),
        class_embedding=None,
        card=PriorCard(classes, len(classes), size, licence, form),
        readme=f"# {_NAMES[form]} prior, {len(classes)} classes, {size} px\n\nConverted by `latentdd prior convert` "
        f"from {Path(checkpoint).name}. Licence of the weights: {licence}.\n",
    )


def _network(state: Mapping[str, Tensor], heads: int | None) -> DiTTransformer2DModel:
    """Return an empty model of the sizes that the tensors have."""
    needed = ("x_embedder.proj.weight", "final_layer.linear.weight", _TABLE, _PLACES)
    if missing := [name for name in needed if name not in state]:
        raise UserError(f"the checkpoint is not an original DiT or SiT: it lacks {', '.join(missing)}")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    if heads is None:
        heads = _HEADS_OF_XL.get(width, width // 64)
    if heads < 1 or width % heads:
        raise UserError(f"--heads ({heads}) must divide the width of the transformer, {width}")
    side = math.isqrt(state[_PLACES].shape[1])
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    with torch.device("meta"):
        return DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=state["final_layer.linear.weight"].shape[0] // patch**2,
            num_layers=len(blocks),
            sample_size=side * patch,
            patch_size=patch,
            num_embeds_ada_norm=state[_TABLE].shape[0] - 1,
            norm_eps=1e-6,
        )


def _fill(network: DiTTransformer2DModel, state: Mapping[str, Tensor]) -> None:
    """Load the tensors under diffusers' names; the time and class embeddings are repeated in every block."""
    found: dict[str, Tensor] = {}
    used = {_PLACES, _TABLE}

    def take(theirs: str, *ours: str) -> None:
        for kind in ("weight", "bias"):
            used.add(f"{theirs}.{kind}")
            for name in ours:  # a copy each: safetensors stores no tensor twice
                found[f"{name}.{kind}"] = _finite(state, f"{theirs}.{kind}").clone()

    for theirs, ours in (*_INPUT.items(), *_OUTPUT.items()):
        take(theirs, ours)
    blocks = [f"transformer_blocks.{i}" for i in range(network.config.num_layers)]
    for theirs, ours in _TIME.items():
        take(theirs, *(f"{block}.norm1.emb.{ours}" for block in blocks))
    for i, block in enumerate(blocks):
        found[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = _finite(state, _TABLE).clone()
        for theirs, ours in _BLOCK.items():
            take(f"blocks.{i}.{theirs}", f"{block}.{ours}")
        for kind in ("weight", "bias"):
            used.add(f"blocks.{i}.attn.qkv.{kind}")
            parts = _finite(state, f"blocks.{i}.attn.qkv.{kind}").chunk(3)
            for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                found[f"{block}.attn1.{name}.{kind}"] = part.clone()
    if left := sorted(set(state) - used):
        raise UserError(f"the checkpoint holds tensors that no DiT or SiT has: {', '.join(left[:10])}")
    for name, tensor in network.state_dict().items():
        if name in found and found[name].shape != tensor.shape:
            raise UserError(
                f"the checkpoint's {name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}: its tensors do not "
                "fit together"
            )
    network.load_state_dict(found, strict=False, assign=True)
    _check_places(network, state[_PLACES])


def _finite(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UserError(f"the checkpoint is not an original DiT or SiT: it lacks {name}")
    if not bool(torch.isfinite(state[name]).all()):
        raise UserError(f"{name} holds other than finite numbers; the checkpoint is damaged, fetch it again")
    return state[name]


def _check_places(network: DiTTransformer2DModel, stored: Tensor) -> None:
    """Give the model its table of positions, which diffusers computes and does not store; raise unless it agrees."""
    config = network.config
    with torch.device("cpu"):
        own = DiTTransformer2DModel(
            num_attention_heads=1,
            attention_head_dim=stored.shape[-1],
            in_channels=config.in_channels,
            num_layers=0,
            sample_size=config.sample_size,
            patch_size=config.patch_size,
            num_embeds_ada_norm=1,
        ).pos_embed.pos_embed
    if own.shape != stored.shape or not torch.allclose(own, stored.float(), atol=1e-4):
        raise UserError(
            f"{_PLACES} of the checkpoint is not the table of sines of an original DiT or SiT; such a model would give "
            "other images"
        )
    network.pos_embed.pos_embed = own


def _scheduler(form: Form) -> SchedulerMixin:
    if form == "sit":  # the network is told sigma itself, see `DiffusionTransformer`
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=True, steps_offset=0)
