"""A latent diffusion model as prior, through which LD3M distils."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.autoencoder import FOLDERS, AutoencoderPrior, autoencoder_folder, pixels_per_latent
from ldd.priors.base import Guide, Prior, StateGuide, in_own_type
from ldd.priors.denoisers import Denoiser, load_denoiser
from ldd.priors.folder import PriorCard, read_licence, read_optional_card
from ldd.priors.loading import Init, class_name, locate, read_json
from ldd.priors.pixel import PixelPrior
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
from ldd.priors.schedule import Grid, Time, Times
from ldd.priors.scheduler_config import load_schedule

COMPONENTS = ("unet", "transformer", *FOLDERS)
TEXT = (
    "text_encoder/model.safetensors",
    "tokenizer/*",
    "text_encoder_2/model.safetensors",
    "tokenizer_2/*",
)


@final
class LatentDiffusionPrior(Prior):
    """Frozen autoencoder, denoising network and schedule (diffusion, flow matching or consistency), in diffusers' form.

    The folder holds `vae/` (or `vqvae/`), `scheduler/` and one of:

    - `unet/` (UNet2DConditionModel) with `class_embedding.safetensors` (key `weight`: one row per class and the null
      row) and `prior.json` (`classes`, `null_class`, `image_size`, `licence`): class-conditional, one token a class;
    - `transformer/` (DiTTransformer2DModel): class-conditional, one condition per block;
    - `unet/` (UNet2DConditionModel), `text_encoder/` and `tokenizer/`: the form of Stable Diffusion 1.5, 2.x and
      SD-Turbo, a prompt a class; with `text_encoder_2/` and `tokenizer_2/` Stable Diffusion XL's;
    - `unet/` (UNet2DModel): unconditional, only latents are learned; or with a class table of its own, one condition a
      class.

    A `unet/` (UNet2DModel) of three channels without an autoencoder beside it is a model of pixels: latents are images.
    That is the form of consistency models.

    Args:
        path_or_hub_id: the prior folder, `embedded:digits` or `embedded:digits-one-step` (in the package), or a model
            on the hub: `owner/name`, or `hf://owner/name[@revision]`, of which no pickle is read.
        num_steps: S, steps of the modified reverse process; None takes 10, or 1 of a prior that was trained for one
            (average velocities, consistency models).
            With 0 there is none: codes are clean latents, which are decoded as they are, without conditions and noise.
            `sample` and `invert` stay the same, so that their latents (as of `ldd.initializers`) become a set image
            by image.
        guidance_scale: s of classifier-free guidance, e = e_u + s (e_c - e_u), one network batch of 2N a step; None
            takes 3, or 1 of a prior in which guidance was learned, or that has no null condition. At 0 and 1 only the
            half that counts is run; at 0 no gradient reaches the conditioning. An unconditional prior ignores s, since
            e_c is e_u. A latent consistency model that is told s is called once.
        skip: form of the linearly decaying skip, see `ldd.priors.reverse.modified_reverse`.
        start: share of the path at which the chain begins, in (0, 1]: 1 at its noise end, where one step of a flow
            leaves nothing of Z, and one of a consistency model next to nothing; below it Z enters through the first
            state.
        guided_channels: guide only the first so many channels of the latents; None guides all. The original code of DiT
            and SiT guides 3 of 4, which is a quirk.
        image_size: pixels; None takes the prior's own. Another one works as far as the network generalises.
        init: `random` gives the network random weights (an ablation of LD3M); all other components are kept.
        classes: WordNet id or name of a data class -> a row of the prior, the WordNet id or name of one of its
            classes, or a prompt. Classes not named here are found by WordNet id or name.
        prompt: template of a text-to-image prior's prompts with `{name}` and `{wnid}`; None takes
            "a photo of a {name}".
        tied: one condition for all blocks of a diffusion transformer instead of one each.
        quantise_decoded: see `AutoencoderPrior`; the reverse process quantises Z either way.
        grid: timesteps that S steps visit, see `ldd.priors.DiffusionSchedule`: `compvis` is LD3M's code, `joined` has
            no gaps between steps. The three are one where S divides the timesteps and the spacing is `leading`.

    Attributes:
        classes: the prior's own classes, `label` being the row; empty if it names none.
        denoiser: the network and its conditions.
        learned_guidance: scale of the guidance that was learned in, or None.
        schedule: the noise levels.

    Raises:
        UserError: missing or damaged folder or component, components that do not fit together, or an argument
            out of range or without effect on this prior.
    """

    def __init__(
        self,
        path_or_hub_id: str,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        skip: Skip = "clean",
        image_size: int | None = None,
        init: Init = "pretrained",
        classes: Mapping[str, int | str] | None = None,
        prompt: str | None = None,
        tied: bool = False,
        quantise_decoded: bool = True,
        start: float = 1.0,
        guided_channels: int | None = None,
        grid: Grid = "diffusers",
    ) -> None:
        super().__init__()
        check_skip(skip)
        if guidance_scale is not None:
            check_guidance(guidance_scale)
        folder = locate(str(path_or_hub_id), COMPONENTS, TEXT)
        self.schedule = load_schedule(folder / "scheduler", grid)
        if num_steps is None:
            num_steps = self.schedule.usual_steps
        if not num_steps and start != 1:
            raise UserError(f"start={start} has no effect with num_steps=0, which runs no chain; remove it")
        taken = 0
        if num_steps:  # raises for a bad number of steps or start, before the weights are read
            first, *others = self.schedule.steps(num_steps, start)
            self.reads_latents = first.level.signal > 0 or (skip == "clean" and bool(others))
            taken = 1 + len(others)
        self.denoiser: Denoiser = load_denoiser(folder, init=init, prompt=prompt, tied=tied)
        self._check_intervals()
        card = read_optional_card(folder)
        self.learned_guidance = None if card is None else card.guidance
        self.autoencoder = _autoencoder(folder, card, self.denoiser, image_size, quantise_decoded)
        channels, size, _ = self.autoencoder.latent_shape
        self.denoiser.check_latents(channels, size, self.autoencoder.image_size)
        if guided_channels is not None and not 1 <= guided_channels <= channels:
            raise UserError(f"guided_channels={guided_channels} must be 1 to {channels}, or null for all")
        told = self.denoiser.embeds_guidance
        if guided_channels is not None and (told or not self.denoiser.has_null or not self.null(1).numel()):
            how = "is told its guidance" if told else "has no classes to guide to"
            raise UserError(f"guided_channels={guided_channels} has no effect: this prior {how}; remove it")
        self.classes = self.denoiser.classes
        self.licence = read_licence(folder) if card is None else card.licence
        self.image_size = self.autoencoder.image_size
        self.latent_shape = self.autoencoder.latent_shape
        self.num_steps, self._asked = taken, num_steps
        self.start = start
        self.guided_channels = guided_channels
        guided = self.learned_guidance is None and self.denoiser.has_null
        self.guidance_scale = (3.0 if guided else 1.0) if guidance_scale is None else guidance_scale
        self._check_null(self.guidance_scale)
        self.skip: Skip = skip
        self._mapping = dict(classes or {})
        self.denoiser.rows([], self._mapping)  # raises for a mapping that has no effect
        self.eval()

    def _check_intervals(self) -> None:
        """Raise where the scheduler takes the network's answers for averages over steps and they are none."""
        if self.schedule.of_intervals != self.denoiser.of_intervals:
            told = "both ends of a step" if self.denoiser.of_intervals else "one time"
            raise UserError(
                f"scheduler: prediction_type={self.schedule.prediction_type!r} does not go with a network that is told "
                f"{told}; scheduler and network must be from one prior"
            )

    def _check_null(self, scale: float) -> None:
        """Raise for guidance of a prior that has no null condition."""
        if scale != 1 and not self.denoiser.has_null:
            raise UserError(
                f"guidance_scale={scale} needs the condition of no class, which this prior lacks; set it to 1 (the "
                "null_class of a prior.json names the row of a table that has one)"
            )

    @property
    def unet(self) -> ModelMixin:
        """The denoising network, whichever its architecture."""
        return self.denoiser.network

    def networks(self) -> Iterable[nn.Module]:
        """Return the denoising network and the decoder."""
        return (self.denoiser.network, *self.autoencoder.networks())

    def rows(self, classes: Sequence[ClassInfo]) -> Tensor:
        """Return rows (K,) int64 of the prior's conditions: by `classes` of the constructor, WordNet id or name.

        A text-to-image prior knows every class (a row is the number of its prompt), an unconditional one returns the
        labels.

        Raises:
            UserError: a class this prior does not know; the message lists the choices.
        """
        return self.denoiser.rows(classes, self._mapping)

    def embed(self, rows: Tensor) -> Tensor:
        """Return conditioning (N, L, D): one class token, conditions of each block, tokens of a prompt, or nothing."""
        return self.denoiser.embed(rows)

    def null(self, n: int) -> Tensor:
        """Return the conditioning (n, L, D) of the null class or the empty prompt."""
        return self.denoiser.null(n)

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents (N, c, h, w) of images in [-1, 1], not quantised, no gradient."""
        return self.autoencoder.encode(images)

    def draw_encoding(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a draw of the autoencoder's posterior, scaled, see `Prior.draw_encoding`."""
        return self.autoencoder.draw_encoding(images, generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) of scaled latents, not clamped, see `AutoencoderPrior`."""
        return self.autoencoder.decode(latents)

    def denoise(self, latents: Tensor, conditioning: Tensor, noise: Tensor) -> Tensor:
        """Run the modified reverse process: Z and noise (N, c, h, w), conditioning (N, L, D) -> (N, c, h, w).

        Without steps the result is Z.
        """
        return self.denoise_checkpointed(latents, conditioning, noise, 0)

    def denoise_checkpointed(
        self, latents: Tensor, conditioning: Tensor, noise: Tensor, calls: int
    ) -> Tensor:
        """Run the modified reverse process with a checkpoint over each of the first `calls` calls of the network."""
        if not self.num_steps:
            return latents
        return modified_reverse(
            self._predict(conditioning, self.guidance_scale),
            latents,
            noise,
            self.schedule,
            self._asked,
            start=self.start,
            skip=self.skip,
            quantise=self.autoencoder.quantise,
            checkpointed=calls,
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
        ancestral: bool = False,
    ) -> Tensor:
        """Generate by ordinary DDIM, see `Prior.sample`; the initial noise is one float32 draw (N, c, h, w).

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
            move=guide.move if isinstance(guide, StateGuide) else None,
            ancestral=generator if ancestral else None,
        )

    @torch.no_grad()
    def invert(
        self,
        latents: Tensor,
        conditioning: Tensor,
        num_steps: int,
        strength: float = 1.0,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Invert DDIM, by default at guidance 1, as is usual: guided steps amplify the inversion's error."""
        predict = self._predict(conditioning, guidance_scale)
        return ddim_invert(predict, latents, self.schedule, num_steps, strength)

    def velocity(self, x: Tensor, t: Tensor, conditioning: Tensor, guidance_scale: float = 1.0) -> Tensor:
        """Return the velocity n - z (N, c, h, w) of the straight path at x = (1 - t) z + t n, see `Schedule.velocity`.

        Args:
            x: noisy latents (N, c, h, w).
            t: shares of noise, (N,) in [0, 1].
            conditioning: (N, L, D).
            guidance_scale: of classifier-free guidance.

        Raises:
            UserError: a prior of one or few steps, or guidance of one without a null condition.
        """
        return self.schedule.velocity(self._predict(conditioning, guidance_scale), x, t)

    def _predict(self, conditioning: Tensor, scale: float) -> Predict:
        """Return the guided network for one batch: (x, timestep) -> output (N, c, h, w)."""
        self._check_null(scale)
        network = self.denoiser.network
        if network.dtype == torch.bfloat16:
            conditioning = conditioning.to(network.dtype)  # once, and not at every call
        if self.denoiser.embeds_guidance:  # one call under a scale that it is told
            return lambda x, timestep: in_own_type(
                network, lambda x, c: self.denoiser(x, timestep, c, scale), x, conditioning
            )
        null = self.null(len(conditioning)).to(conditioning)

        def call(x: Tensor, timestep: Time | Times, condition: Tensor) -> Tensor:
            return in_own_type(network, lambda x, c: self.denoiser(x, timestep, c), x, condition)

        return guided(call, conditioning, null, scale, self.guided_channels)


def _autoencoder(
    folder: Path, card: PriorCard | None, denoiser: Denoiser, image_size: int | None, quantise_decoded: bool
) -> AutoencoderPrior | PixelPrior:
    """The autoencoder in a prior's folder, or pixels where a network of three channels has none beside it."""
    side = denoiser.sample_size
    of_pixels = class_name(folder / "unet") == "UNet2DModel" and denoiser.network.config.in_channels == 3
    if not of_pixels or any((folder / name).is_dir() for name in FOLDERS) or _names_autoencoder(folder):
        if image_size is None and card is None and side:
            config = autoencoder_folder(folder) / "config.json"
            image_size = side * pixels_per_latent(read_json(config)) if config.is_file() else None
        return AutoencoderPrior(str(folder), image_size, quantise_decoded)
    if not quantise_decoded:
        raise UserError(f"quantise_decoded=false has no effect: {folder} has no autoencoder; leave it out")
    size = image_size or (side if card is None else card.image_size)
    if size is None:
        raise UserError(f"image_size is required: {folder} does not state one")
    return PixelPrior(size)


def _names_autoencoder(folder: Path) -> bool:
    """Tell whether a pipeline's index names an autoencoder, whose folder is then missing if it is not here."""
    index = folder / "model_index.json"
    return index.is_file() and any(name in read_json(index) for name in FOLDERS)
