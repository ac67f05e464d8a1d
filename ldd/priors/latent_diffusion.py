"""A class-conditional latent diffusion model as prior: the one LD3M distils through."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ldd.classes import ClassInfo
from ldd.errors import UserError
from ldd.priors.autoencoder import AutoencoderPrior
from ldd.priors.base import Guide, Prior
from ldd.priors.loading import load_model, load_scheduler, load_tensor, locate, read_card
from ldd.priors.reverse import Predict, Schedule, Skip, check_skip, ddim_invert, ddim_sample, modified_reverse

_COMPONENTS = ("unet", "vae", "vqvae")
_FURTHER_INPUTS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "num_class_embeds",
    "time_cond_proj_dim",
)
_LISTED_CLASSES = 20


@final
class LatentDiffusionPrior(Prior):
    """Frozen autoencoder, U-Net with cross-attention to one class token, DDIM schedule and class table.

    The folder holds `unet/`, `vae/` (or `vqvae/`), `scheduler/`, `class_embedding.safetensors` (key `weight`:
    one row per class and the null row) and `prior.json` (`classes`, `null_class`, `image_size`, `licence`).

    Args:
        path_or_hub_id: the prior folder, `embedded:digits` (in the package), or a hub id.
        num_steps: S, steps of the modified reverse process.
        guidance_scale: s of classifier-free guidance, e = e_u + s (e_c - e_u), one U-Net batch of 2N a step.
            At 0 and 1 only the half that counts is run; at 0 no gradient reaches the conditioning.
        skip: form of the linearly decaying skip, see `ldd.priors.reverse.modified_reverse`.
        image_size: pixels; None takes the prior's own. Another one works as far as the U-Net generalises.

    Attributes:
        classes: the prior's own classes; `label` is the row of its class table.

    Raises:
        UserError: missing or damaged folder or component, components that do not fit together, or an argument
            out of range.
    """

    class_embedding: Tensor

    def __init__(
        self,
        path_or_hub_id: str,
        num_steps: int = 10,
        guidance_scale: float = 3.0,
        skip: Skip = "clean",
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        check_skip(skip)
        _check_guidance(guidance_scale)
        folder = locate(str(path_or_hub_id), _COMPONENTS)
        card = read_card(folder)
        self.schedule = Schedule(load_scheduler(folder / "scheduler"))
        self.schedule.steps(num_steps)  # refuses a bad number of steps before the weights are read
        self.autoencoder = AutoencoderPrior(str(folder), image_size)
        self.unet = load_model(folder / "unet", (UNet2DConditionModel,))
        table = load_tensor(folder / "class_embedding.safetensors", "weight")
        _check_fit(
            self.unet.config, self.autoencoder.latent_shape[0], table, len(card.classes), card.null_class
        )
        self.register_buffer("class_embedding", table)
        self.null_class = card.null_class
        self.classes = card.classes
        self.licence = card.licence
        self.image_size = self.autoencoder.image_size
        self.latent_shape = self.autoencoder.latent_shape
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.skip: Skip = skip
        self.eval()

    def rows(self, classes: Sequence[ClassInfo]) -> Tensor:
        """Rows of the class table (K,) int64, by WordNet id, else by exact name if only one class bears it.

        Raises:
            UserError: a class this prior does not know; the message lists the choices.
        """
        by_wnid = {info.wnid: info.label for info in self.classes}
        names = [info.name for info in self.classes]
        by_name = {info.name: info.label for info in self.classes if names.count(info.name) == 1}
        rows = [by_wnid.get(info.wnid, by_name.get(info.name)) for info in classes]
        unknown = [
            f"{info.wnid} ({info.name})" for info, row in zip(classes, rows, strict=True) if row is None
        ]
        if unknown:
            choices = ", ".join(f"{info.wnid} ({info.name})" for info in self.classes[:_LISTED_CLASSES])
            more = len(self.classes) - _LISTED_CLASSES
            raise UserError(
                f"the prior does not know the classes {', '.join(unknown)}; it knows {choices}"
                + (f" and {more} more (its prior.json lists them)" if more > 0 else "")
                + "; choose classes among these or another prior"
            )
        return torch.tensor(rows, dtype=torch.int64)

    def embed(self, rows: Tensor) -> Tensor:
        """Class tokens (N, 1, D)."""
        return self.class_embedding[rows.to(self.class_embedding.device)][:, None]

    def null(self, n: int) -> Tensor:
        """The null token, (n, 1, D)."""
        return self.class_embedding[self.null_class].expand(n, 1, -1)

    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents (N, c, h, w) of images in [-1, 1], not quantised, no gradient."""
        return self.autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, 3, H, W) of scaled latents, not clamped; a VQ autoencoder quantises first."""
        return self.autoencoder.decode(latents)

    def denoise(self, latents: Tensor, conditioning: Tensor, noise: Tensor) -> Tensor:
        """The modified reverse process: Z and noise (N, c, h, w), conditioning (N, 1, D) -> (N, c, h, w)."""
        return modified_reverse(
            self._predict(conditioning, self.guidance_scale),
            latents,
            noise,
            self.schedule,
            self.num_steps,
            skip=self.skip,
            quantise=self.autoencoder.quantise,
        )

    @torch.no_grad()
    def sample(
        self,
        rows: Tensor,
        generator: torch.Generator,
        *,
        num_steps: int = 50,
        guidance_scale: float | None = None,
        start: Tensor | None = None,
        strength: float = 1.0,
        guide: Guide | None = None,
    ) -> Tensor:
        """Ordinary DDIM generation, see `Prior.sample`; the initial noise is one float32 draw (N, c, h, w).

        Raises:
            UserError: guidance_scale, num_steps or strength out of range, or strength without start.
        """
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        _check_guidance(scale)
        conditioning = self.embed(rows)
        noise = torch.randn(len(rows), *self.latent_shape, generator=generator).to(conditioning)
        return ddim_sample(
            self._predict(conditioning, scale),
            noise,
            self.schedule,
            num_steps,
            start=None if start is None else start.to(noise),
            strength=strength,
            guide=None if guide is None else lambda x0, k: guide(x0, k, rows),
        )

    @torch.no_grad()
    def invert(self, latents: Tensor, conditioning: Tensor, num_steps: int) -> Tensor:
        """DDIM inversion at guidance 1, as is usual: guided steps amplify the inversion's error."""
        return ddim_invert(self._predict(conditioning, 1.0), latents, self.schedule, num_steps)

    def _predict(self, conditioning: Tensor, scale: float) -> Predict:
        """The guided network for one batch: (x, timestep) -> output (N, c, h, w)."""
        null = self.null(len(conditioning)).to(conditioning)

        def network(x: Tensor, timestep: int, tokens: Tensor) -> Tensor:
            # A tensor on the device: a plain number would be copied over at every call.
            told = torch.full((), timestep, dtype=torch.int64, device=x.device)
            output: Tensor = self.unet(x, told, encoder_hidden_states=tokens, return_dict=False)[0]
            return output

        def guided(x: Tensor, timestep: int) -> Tensor:
            without, given = network(torch.cat([x, x]), timestep, torch.cat([null, conditioning])).chunk(2)
            return without + scale * (given - without)

        if scale in (0, 1):
            return lambda x, timestep: network(x, timestep, conditioning if scale else null)
        return guided


def _check_guidance(scale: float) -> None:
    if not 0 <= scale < math.inf:
        raise UserError(f"guidance_scale={scale} must be a finite number of at least 0 (1: no guidance)")


def _check_fit(unet: Any, channels: int, table: Tensor, num_classes: int, null_class: int) -> None:  # noqa: ANN401
    """Refuse components of different models, or a U-Net that wants more than latents and class tokens."""
    if unet.in_channels != channels or unet.out_channels != channels:
        raise UserError(
            f"component 'unet' maps {unet.in_channels} to {unet.out_channels} channels but the autoencoder's "
            f"latents have {channels}; both must be from one prior"
        )
    wanted = [key for key in _FURTHER_INPUTS if unet.get(key) is not None]
    if wanted:
        raise UserError(
            f"component 'unet' wants inputs beyond a class token ({', '.join(wanted)}); not supported"
        )
    if table.ndim != 2 or table.shape[1] != unet.cross_attention_dim:
        raise UserError(
            f"class_embedding.safetensors holds a table of shape {tuple(table.shape)}; the U-Net's "
            f"cross_attention_dim asks for (rows, {unet.cross_attention_dim})"
        )
    if not 0 <= null_class < len(table) or num_classes > len(table):
        raise UserError(
            f"prior.json names {num_classes} classes and null_class {null_class}, but the class table has "
            f"{len(table)} rows"
        )
