"""Data and priors of any size: images of noise, and networks with random weights that take as long as trained ones."""

from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMScheduler, ModelMixin, UNet2DConditionModel, VQModel
from torch import Tensor

from ldd.data import DistillationData, Item
from ldd.data.sources import Source, Split
from ldd.images import ClassInfo
from ldd.prior_training.architectures import AutoencoderShape, UNetShape
from ldd.priors.folder import PriorCard, write_prior
from ldd.runtime.seeding import generator, seeded

SMALL_UNET = UNetShape((16, 16), attention=(False, True), conditioning_dim=16, norm_groups=8, heads=2)
TINY_UNET = UNetShape((8,), attention=(True,), conditioning_dim=8, norm_groups=4, heads=1, middle=False)
SMALL_AUTOENCODER = AutoencoderShape(channels=(8, 8, 8), norm_groups=4)
SIDE = 4  # pixels of a latent, of both priors


class NoiseSource(Source):
    """Images of noise, the same in every run: `num_classes` classes of `per_class` training images."""

    licence = "none: random numbers"
    in_memory = True

    def __init__(self, root: str | None, num_classes: int, per_class: int, size: int) -> None:
        self.classes = [
            ClassInfo(label=k, id=k, wnid=f"noise-{k}", name=f"noise {k}") for k in range(num_classes)
        ]
        self._counts = {"train": per_class, "selection": 1, "test": 2}
        self._size = size

    def class_items(self, split: Split, label: int) -> list[Item]:
        return [Item(f"{split}/{label}/{i}", label) for i in range(self._counts[split])]

    def read(self, item: Item) -> Tensor:
        shape = (3, self._size, self._size)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator(0, "noise", item.key))

    def stamp(self, item: Item) -> str:
        return item.key


def noise_data(num_classes: int, per_class: int, image_size: int) -> DistillationData:
    """Data of these sizes, ready."""
    source = partial(NoiseSource, num_classes=num_classes, per_class=per_class, size=image_size)
    data = DistillationData(source, image_size=image_size)
    data.setup()
    return data


def published_unet(side: int | None = None) -> UNet2DConditionModel:
    """The U-Net of the latent diffusion model that LD3M uses (400.9 M parameters)."""
    return UNet2DConditionModel(
        sample_size=side, in_channels=3, out_channels=3, block_out_channels=(192, 384, 576, 960), layers_per_block=2,
        cross_attention_dim=512, attention_head_dim=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    )  # fmt: skip


def published_schedule() -> DDIMScheduler:
    """Its noise levels."""
    return DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def published_autoencoder(image_size: int) -> VQModel:
    """Its autoencoder (f = 4)."""
    return VQModel(
        block_out_channels=(128, 256, 512), layers_per_block=2, latent_channels=3, num_vq_embeddings=8192,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=image_size,
    )  # fmt: skip


def _published(image_size: int) -> tuple[ModelMixin, ModelMixin, int]:
    return published_unet(image_size // SIDE), published_autoencoder(image_size), 512


def _small(image_size: int) -> tuple[ModelMixin, ModelMixin, int]:
    unet = SMALL_UNET.build(SMALL_AUTOENCODER.latent_channels, image_size // SIDE)
    return unet, SMALL_AUTOENCODER.build(image_size), SMALL_UNET.conditioning_dim


def _tiny(image_size: int) -> tuple[ModelMixin, ModelMixin, int]:
    unet = TINY_UNET.build(SMALL_AUTOENCODER.latent_channels, image_size // SIDE)
    return unet, SMALL_AUTOENCODER.build(image_size), TINY_UNET.conditioning_dim


SHAPES = {"published": _published, "small": _small, "tiny": _tiny}
"""The U-Net and VQ autoencoder (f = 4) that LD3M uses, or networks of that kind which a CPU runs in a moment."""


def random_prior(folder: Path, shape: str, classes: list[ClassInfo], image_size: int) -> str:
    """Write a prior of these classes with random weights; return its folder."""
    with seeded(0, "random prior"):
        unet, autoencoder, width = SHAPES[shape](image_size)
        table = torch.randn(len(classes) + 1, width)
    card = PriorCard(classes, len(classes), image_size, "random weights")
    write_prior(
        folder,
        network=unet.half(),
        autoencoder=autoencoder.half(),
        scheduler=published_schedule(),
        class_embedding=table.half(),
        card=card,
        readme="Random weights.\n",
    )
    return str(folder)
