"""A latent diffusion model as prior: what LD3M distils through."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.autoencoder import AutoencoderPrior
from ldd.priors.base import Guide, Prior
from ldd.priors.denoisers.text import PROMPT, TextToImageUNet
from ldd.priors.denoisers.transformer import DiffusionTransformer
from ldd.priors.denoisers.unet import ClassConditionalUNet, Denoiser, UnconditionalUNet
from ldd.priors.loading import Init, class_name, load_scheduler, locate, read_card, read_json
from ldd.priors.reverse import (
    Predict,
    Skip,
    check_guidance,
    check_skip,
    ddim_invert,
    ddim_sample,
    guided,
    modified_reverse,
)
from ldd.priors.schedule import Schedule

_COMPONENTS = ("unet", "transformer", "vae", "vqvae")
_TEXT = ("text_encoder/model.safetensors", "tokenizer/*")


@final
class LatentDiffusionPrior(Prior):
    """Frozen autoencoder, denoising network and DDIM schedule, as diffusers saves them.

    The folder holds `vae/` (or `vqvae/`), `scheduler/` and one of:

    - `unet/` (UNet2DConditionModel) with `class_embedding.safetensors` (key `weight`: one row per class and the null
      row) and `prior.json` (`classes`, `null_class`, `image_size`, `licence`): class-conditional, one token a class;
    - `transformer/` (DiTTransformer2DModel): class-conditional, one condition per block;
    - `unet/` (UNet2DConditionModel), `text_encoder/` and `tokenizer/`: Stable Diffusion 1.5's form, a prompt a class;
    - `unet/` (UNet2DModel): unconditional, only latents are learned.

    Args:
        path_or_hub_id: the prior folder, `embedded:digits` (in the package), or a hub id.
        num_steps: S, steps of the modified reverse process. With 0 there is none: codes are clean latents, which are
            decoded as they are, without conditions and noise. `sample` and `invert` are the same as ever, so that
            what they give (the latents of `ldd.initializers`) becomes a set image by image.
        guidance_scale: s of classifier-free guidance, e = e_u + s (e_c - e_u), one network batch of 2N a step.
            At 0 and 1 only the half that counts is run; at 0 no gradient reaches the conditioning. Without
            conditions e_c is e_u, so that every s means the same.
        skip: form of the linearly decaying skip, see `ldd.priors.reverse.modified_reverse`.
        image_size: pixels; None takes the prior's own. Another one works as far as the network generalises.
        init: `random` gives the network random weights (an ablation of LD3M); all other components are kept.
        classes: WordNet id or name of a data class -> what it is to the prior: a row, a WordNet id or name of the
            prior's own, or a prompt. Classes not named here are found by WordNet id or name.
        prompt: template of a text-to-image prior's prompts with `{name}` and `{wnid}`; None takes
            "a photo of a {name}".
        tied: one condition for all blocks of a diffusion transformer instead of one each.
        quantise_decoded: see `AutoencoderPrior`; the reverse process quantises Z either way.

    Attributes:
        classes: the prior's own classes, `label` being the row; empty if it names none.
        denoiser: network and conditions.

    Raises:
        UserError: missing or damaged folder or component, components that do not fit together, or an argument
            out of range or without effect on this prior.
    """

    def __init__(
        self,
        path_or_hub_id: str,
        num_steps: int = 10,
        guidance_scale: float = 3.0,
        skip: Skip = "clean",
        image_size: int | None = None,
        init: Init = "pretrained",
        classes: Mapping[str, int | str] | None = None,
        prompt: str | None = None,
        tied: bool = False,
        quantise_decoded: bool = True,
    ) -> None:
        super().__init__()
        check_skip(skip)
        check_guidance(guidance_scale)
        folder = locate(str(path_or_hub_id), _COMPONENTS, _TEXT)
        self.schedule = Schedule(load_scheduler(folder / "scheduler"))
        if num_steps:
            self.schedule.steps(num_steps)  # refuses a bad number of steps before the weights are read
        self.denoiser: Denoiser = load_denoiser(folder, init=init, prompt=prompt, tied=tied)
        if image_size is None and not (folder / "prior.json").is_file():
            image_size = _trained_size(folder, self.denoiser.sample_size)
        self.autoencoder = AutoencoderPrior(str(folder), image_size, quantise_decoded)
        channels, size, _ = self.autoencoder.latent_shape
        self.denoiser.check_latents(channels, size, self.autoencoder.image_size)
        self.classes = self.denoiser.classes
        self.licence = self.autoencoder.licence
        self.image_size = self.autoencoder.image_size
        self.latent_shape = self.autoencoder.latent_shape
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.skip: Skip = skip
        self._mapping = dict(classes or {})
        self.denoiser.rows([], self._mapping)  # refuses a mapping that means nothing
        self.eval()

    @property
    def unet(self) -> ModelMixin:
        """The denoising network, whichever its architecture."""
        return self.denoiser.network

    def networks(self) -> Iterable[nn.Module]:
        """The denoising network and the decoder."""
        return (self.denoiser.network, *self.autoencoder.networks())

    def rows(self, classes: Sequence[ClassInfo]) -> Tensor:
        """Rows of the prior's conditions (K,) int64: by `classes` of the constructor, WordNet id or name.

        A text-to-image prior knows every class (a row is the number of its prompt), an unconditional one gives the
        labels.

        Raises:
            UserError: a class this prior does not know; the message lists the choices.
        """
        return self.denoiser.rows(classes, self._mapping)

    def embed(self, rows: Tensor) -> Tensor:
        """Conditioning (N, L, D): class tokens (L = 1), conditions of each block, tokens of a prompt, or nothing."""
        return self.denoiser.embed(rows)

    def null(self, n: int) -> Tensor:
        """Conditioning (n, L, D) of the null class or the empty prompt."""
        return self.denoiser.null(n)

    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents (N, c, h, w) of images in [-1, 1], not quantised, no gradient."""
        return self.autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, 3, H, W) of scaled latents, not clamped, see `AutoencoderPrior`."""
        return self.autoencoder.decode(latents)

    def denoise(self, latents: Tensor, conditioning: Tensor, noise: Tensor) -> Tensor:
        """The modified reverse process: Z and noise (N, c, h, w), conditioning (N, L, D) -> (N, c, h, w).

        Without steps it is Z, whatever the others are.
        """
        if not self.num_steps:
            return latents
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
        state: Tensor | None = None,
        strength: float = 1.0,
        guide: Guide | None = None,
    ) -> Tensor:
        """Ordinary DDIM generation, see `Prior.sample`; the initial noise is one float32 draw (N, c, h, w).

        Raises:
            UserError: guidance_scale, num_steps or strength out of range, strength without start or state, or both.
        """
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        check_guidance(scale)
        conditioning = self.embed(rows)
        noise = torch.randn(len(rows), *self.latent_shape, generator=generator).to(conditioning)
        return ddim_sample(
            self._predict(conditioning, scale),
            noise,
            self.schedule,
            num_steps,
            start=None if start is None else start.to(noise),
            state=None if state is None else state.to(noise),
            strength=strength,
            guide=None if guide is None else lambda x0, k: guide(x0, k, rows),
        )

    @torch.no_grad()
    def invert(self, latents: Tensor, conditioning: Tensor, num_steps: int, strength: float = 1.0) -> Tensor:
        """DDIM inversion at guidance 1, as is usual: guided steps amplify the inversion's error."""
        return ddim_invert(self._predict(conditioning, 1.0), latents, self.schedule, num_steps, strength)

    def _predict(self, conditioning: Tensor, scale: float) -> Predict:
        """The guided network for one batch: (x, timestep) -> output (N, c, h, w)."""
        null = self.null(len(conditioning)).to(conditioning)
        return guided(self.denoiser, conditioning, null, scale)


def _trained_size(folder: Path, latent_size: int | None) -> int | None:
    """Pixels of the images whose latents the network was trained on, if the configs tell."""
    config = next(
        (path for name in ("vae", "vqvae") if (path := folder / name / "config.json").is_file()), None
    )
    if config is None or latent_size is None:
        return None
    shape = read_json(config)
    levels = shape.get("encoder_block_out_channels") or shape.get("block_out_channels") or ()
    return latent_size * int(2 ** (len(levels) - 1)) if levels else None


def load_denoiser(folder: Path, *, init: Init, prompt: str | None, tied: bool) -> Denoiser:
    """The denoiser in `folder`.

    `transformer/` makes it a diffusion transformer; `unet/` of diffusers' UNet2DModel an unconditional U-Net; `unet/`
    beside `text_encoder/` a text-to-image U-Net; any other `unet/` a class-conditional U-Net.

    Args:
        folder: the prior folder.
        init: `random` for random weights of the network.
        prompt: template of a text-to-image prior; None takes the usual one.
        tied: one condition for all blocks of a diffusion transformer.

    Raises:
        UserError: no network in the folder, a component that is missing, damaged or does not fit, or an argument that
            means nothing for the network found.
    """
    kind = class_name(folder / "unet")
    if kind is None and class_name(folder / "transformer") is not None:
        _refuse(prompt is not None, f"prompt={prompt!r}", "a diffusion transformer, which reads no text")
        card = read_card(folder, table=False) if (folder / "prior.json").is_file() else None
        return DiffusionTransformer(folder, card if card and card.classes else None, tied=tied, init=init)
    if kind is None:
        raise UserError(
            f"component 'unet' is missing: no diffusers config.json in {folder / 'unet'} nor in transformer/; a prior "
            "folder holds unet/ or transformer/, vae/ or vqvae/, and scheduler/"
        )
    _refuse(tied, "tied=True", "a U-Net, which has one condition anyway")
    if kind != "UNet2DModel" and (folder / "text_encoder").is_dir():
        return TextToImageUNet(folder, PROMPT if prompt is None else prompt, init)
    _refuse(
        prompt is not None, f"prompt={prompt!r}", "no text-to-image model (no text_encoder/ beside unet/)"
    )
    # A class table beside a network without classes is a folder put together wrongly, which loading then refuses.
    if kind == "UNet2DModel" and not (folder / "class_embedding.safetensors").is_file():
        return UnconditionalUNet(folder, init)
    return ClassConditionalUNet(folder, read_card(folder), init)


def _refuse(given: bool, argument: str, why: str) -> None:
    if given:
        raise UserError(f"{argument} has no effect here: the prior is {why}; remove it")
