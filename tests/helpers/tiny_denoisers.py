"""Prior folders with random weights in the forms other than the class-conditional U-Net, saved by diffusers itself."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DModel,
    VQModel,
)
from tiny_prior import SCHEDULER, tiny_autoencoder, tiny_unet

from ldd.runtime.seeding import seeded

LABELS = {
    "0": "tench, Tinca tinca",
    "1": "goldfish",
    "2": "crane",
    "3": "church, church building",
    "4": "crane",
}


STABLE_1: Mapping[str, object] = {}
STABLE_2 = {"use_linear_projection": True, "attention_head_dim": (2, 4)}
"""How the U-Net of Stable Diffusion 2.x differs: linear layers around the attention, heads of one width."""


def tiny_transformer(rows: int = 5, channels: int = 4) -> DiTTransformer2DModel:
    """Two blocks of width 16, class tables that differ, a learned variance."""
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=channels,
        out_channels=2 * channels,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=rows,
    )


def dit_pipeline(rows: int = 5) -> DiTPipeline:
    """Tables of `rows` classes and the null row."""
    with seeded(0, "tiny transformer"):
        transformer = tiny_transformer(rows).eval()
        # Tables as drawn would hardly move the output.
        for block in transformer.transformer_blocks:
            torch.nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight)
        vae = tiny_autoencoder(AutoencoderKL, shift_factor=None).eval()
    return DiTPipeline(transformer, vae, DDIMScheduler(**SCHEDULER))


def name_rows(pipeline: DiTPipeline, folder: Path) -> Path:
    """Save the pipeline with `LABELS`, which the published model carries but the library does not write."""
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": LABELS}))
    return folder


def ldm_pipeline() -> LDMPipeline:
    """Unconditional: VQ autoencoder and UNet2DModel."""
    with seeded(0, "tiny unconditional"):
        unet = UNet2DModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
            norm_num_groups=4, attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip
        vqvae = tiny_autoencoder(VQModel).eval()
    return LDMPipeline(vqvae, unet, DDIMScheduler(**SCHEDULER))


def pixel_unet(**settings) -> UNet2DModel:
    """A network of images at 16 px, as the published consistency models have it."""
    with seeded(0, "tiny pixels"):
        return UNet2DModel(
            sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
            norm_num_groups=4, attention_head_dim=4, resnet_time_scale_shift="scale_shift",
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), **settings,
        ).eval()  # fmt: skip


def consistency_pipeline(classes: int | None = 5, **scheduler) -> ConsistencyModelPipeline:
    """A consistency model of pixels with a table of `classes`, or without classes."""
    return ConsistencyModelPipeline(
        pixel_unet(num_class_embeds=classes), CMStochasticIterativeScheduler(**scheduler)
    )


def text_pipeline(
    folder: Path, unet: Mapping[str, object] = STABLE_1, **scheduler
) -> StableDiffusionPipeline:
    """Stable Diffusion's form with a tokenizer of single letters; `folder` takes the tokenizer's files."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789-,."
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    end = len(vocabulary) - 1
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2, projection_dim=16,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    with seeded(0, "tiny text"):
        parts = CLIPTextModel(config).eval(), tiny_unet(**unet).eval()
        vae = tiny_autoencoder(AutoencoderKL, shift_factor=None).eval()
    text_encoder, network = parts
    return StableDiffusionPipeline(
        vae, text_encoder, tokenizer, network, DDIMScheduler(**SCHEDULER | scheduler), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def xl_pipeline(folder: Path, **scheduler) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL's form: two text encoders, of which the second has a projection of another width."""
    from transformers import CLIPTextModelWithProjection

    width = {"cross_attention_dim": 32, "addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet = {**STABLE_2, **width, "projection_class_embeddings_input_dim": 6 * 8 + 24}
    first = text_pipeline(folder)
    config = type(first.text_encoder.config)(**first.text_encoder.config.to_dict() | {"projection_dim": 24})
    with seeded(1, "tiny xl"):
        second, network = CLIPTextModelWithProjection(config).eval(), tiny_unet(**unet).eval()
    scheduler = DDIMScheduler(**SCHEDULER | scheduler)
    parts = (first.vae, first.text_encoder, second, first.tokenizer, first.tokenizer, network, scheduler)
    return StableDiffusionXLPipeline(*parts, add_watermarker=False)
