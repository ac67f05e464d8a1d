"""A prior folder with random weights, built by diffusers itself: 32 px, latents 4x8x8, ten digit classes."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    VQModel,
)
from safetensors.torch import save_file

from ldd.runtime.seeding import seeded

CLASSES = [{"id": i, "wnid": f"digit-{i}", "name": str(i)} for i in range(10)]
PUBLISHED = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
SCHEDULER = {**PUBLISHED, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def tiny_unet(channels: int = 4, width: int = 16, **config) -> UNet2DConditionModel:
    """65 thousand parameters, one attention level."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **{"attention_head_dim": 2, "cross_attention_dim": width} | config,
    )


def tiny_autoencoder(kind: type = AutoencoderKL, **config) -> torch.nn.Module:
    """20 thousand parameters, factor 4, with scaling and shift (where the class has one) off 1 and 0."""
    if kind is AutoencoderTiny:
        blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
        blocks |= {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
        return AutoencoderTiny(**blocks, **{"scaling_factor": 0.7, "shift_factor": 0.1} | config)
    own = {"num_vq_embeddings": 32} if kind is VQModel else {"shift_factor": 0.1}
    model = kind(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **own | {"scaling_factor": 0.7} | config,
    )
    if kind is VQModel:
        torch.nn.init.normal_(model.quantize.embedding.weight)  # the default crowds all codes around zero
    return model


def write_prior_folder(
    path: Path, vq: bool = False, seed: int = 0, one_step: bool = False, **scheduler
) -> Path:
    """Write the folder and return it.

    Args:
        path: the folder to make.
        vq: a VQModel as autoencoder instead of an AutoencoderKL.
        seed: of the random weights.
        one_step: a network of average velocities, as `latentdd prior train` with `steps: one` writes it.
        scheduler: further settings of the DDIM scheduler; the default has the published betas, 1000 steps.
    """
    with seeded(seed, "tiny prior"):
        tiny_unet(class_embed_type="timestep" if one_step else None).save_pretrained(path / "unet")
        tiny_autoencoder(VQModel if vq else AutoencoderKL).save_pretrained(path / "vae")
        made = DDIMScheduler(**SCHEDULER | scheduler)
        if one_step:
            made = FlowMatchEulerDiscreteScheduler(num_train_timesteps=10)
            made.register_to_config(prediction_type="average_velocity")
        made.save_pretrained(path / "scheduler")
        save_file({"weight": torch.randn(11, 16)}, path / "class_embedding.safetensors")
    card = {"classes": CLASSES, "null_class": 10, "image_size": 32, "licence": "random weights"}
    card |= {"guidance": 2.0} if one_step else {}
    (path / "prior.json").write_text(json.dumps(card))
    return path
