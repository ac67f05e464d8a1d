"""A pre-trained autoencoder alone: codes are latents of it, without a diffusion model."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.priors.base import DirectPrior, in_own_type
from ldd.priors.folder import read_licence, read_optional_card
from ldd.priors.loading import class_name, load_model, locate
from ldd.runtime.precision import without_autocast

FOLDERS = ("vae", "vqvae")
_KINDS = (AutoencoderKL, VQModel, AutoencoderTiny)
_DISTANCES = 2**25  # between latents and codes of a codebook that are held at one time


@final
class AutoencoderPrior(DirectPrior):
    """A frozen diffusers autoencoder: AutoencoderKL, VQModel or AutoencoderTiny.

    Latents are in the scaled space a denoiser would see: (z - shift_factor) * scaling_factor with the
    constants of the autoencoder's own config. `encode` returns the mode of a KL posterior; a VQModel quantises
    when it decodes, not when it encodes.

    Args:
        path_or_hub_id: folder of the autoencoder itself, a pipeline or prior folder with `vae/` or `vqvae/`,
            `embedded:NAME`, or a hub id.
        image_size: height and width in pixels; None takes the size in `prior.json`, else the config's
            `sample_size`.
        quantise_decoded: a VQModel decodes the nearest codes, as diffusers' pipelines and the released LD3M code do;
            false decodes the latents as they are.

    Raises:
        UserError: missing or damaged folder, image_size unknown or not divisible by the autoencoder's factor,
            an autoencoder for images other than RGB or with per-channel latent statistics, quantise_decoded false
            for one without a codebook.
    """

    def __init__(
        self, path_or_hub_id: str, image_size: int | None = None, quantise_decoded: bool = True
    ) -> None:
        super().__init__()
        root = locate(str(path_or_hub_id), FOLDERS)
        card = read_optional_card(root)
        self.autoencoder = load_model(autoencoder_folder(root), _KINDS)
        config = self.autoencoder.config
        if config.in_channels != 3 or config.out_channels != 3:
            raise UserError(f"{root}: the autoencoder has {config.in_channels} image channels; RGB needs 3")
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise UserError(f"{root}: the autoencoder's latents_mean and latents_std are not supported")
        self.scale, self.shift = _scaling(root, config)
        self.quantised = isinstance(self.autoencoder, VQModel)
        if not (quantise_decoded or self.quantised):
            raise UserError(
                f"quantise_decoded=false has no effect: {root} has no codebook (only a VQModel has one); leave it out"
            )
        self._quantise_decoded = quantise_decoded
        if image_size is None:
            image_size = card.image_size if card is not None else config.get("sample_size")
        if not isinstance(image_size, int):
            raise UserError(f"image_size is required: {root} does not state one")
        factor = pixels_per_latent(config)
        _check_divisible(image_size, factor)
        channels = (config.vq_embed_dim if self.quantised else None) or config.latent_channels
        self.image_size = image_size
        self.latent_shape = (channels, image_size // factor, image_size // factor)
        self.licence = card.licence if card is not None else read_licence(root)
        self.eval()

    def networks(self) -> Iterable[nn.Module]:
        """Return the decoder."""
        return (self.autoencoder.decoder,)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents (N, c, h, w) of images in [-1, 1], no gradient."""
        encoding = self.autoencoder.encode(images)
        z: Tensor = encoding.latent_dist.mode() if "latent_dist" in encoding else encoding.latents
        return (z.to(images.dtype) - self.shift) * self.scale

    @torch.no_grad()
    def draw_encoding(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return scaled latents drawn from the posterior by a CPU generator; without one what `encode` does."""
        encoding = self.autoencoder.encode(images)
        if "latent_dist" not in encoding:
            return self.encode(images)
        found = encoding.latent_dist
        drawn = torch.randn(found.mean.shape, generator=generator).to(found.mean)
        z: Tensor = found.mean + found.std * drawn
        return (z.to(images.dtype) - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) of scaled latents, not clamped.

        A VQModel quantises first (straight-through) unless told not to.
        """
        z = self._unscale(latents)
        if self.quantised and self._quantise_decoded:
            z = self._nearest(z)
        spatial = (z,) if self.autoencoder.config.get("norm_type") == "spatial" else ()
        if (convolution := getattr(self.autoencoder, "post_quant_conv", None)) is not None:
            with without_autocast():
                z = convolution(z)
        decoder = self.autoencoder.decoder
        return in_own_type(decoder, decoder, z, *spatial).to(latents.dtype)

    def quantise(self, latents: Tensor) -> Tensor:
        """Return the nearest codes of scaled latents, straight-through; without a codebook the latents."""
        if not self.quantised:
            return latents
        return (self._nearest(self._unscale(latents)) - self.shift) * self.scale

    @without_autocast()
    def _nearest(self, z: Tensor) -> Tensor:
        """Return the nearest codes of z (N, c, h, w), as the autoencoder's `quantize` finds them, part by part."""
        codebook: Tensor = self.autoencoder.quantize.embedding.weight
        flat = z.permute(0, 2, 3, 1).contiguous()
        with torch.no_grad():
            rows = flat.view(-1, flat.shape[-1]).split(max(1, _DISTANCES // len(codebook)))
            codes = codebook[torch.cat([torch.cdist(part, codebook).argmin(1) for part in rows])]
            change = codes.view(flat.shape) - flat
        return (flat + change).permute(0, 3, 1, 2).contiguous()

    def _unscale(self, latents: Tensor) -> Tensor:
        return latents / self.scale + self.shift


def _scaling(root: Path, config: Mapping[str, Any]) -> tuple[float, float]:
    """Return scale and shift of latents; raise for those that no latent survives."""
    scale: Any = config.get("scaling_factor")
    shift: Any = 0.0 if config.get("shift_factor") is None else config["shift_factor"]
    for name, value, least in (("scaling_factor", scale, 0.0), ("shift_factor", shift, -math.inf)):
        if type(value) not in (int, float) or not least < value < math.inf:
            raise UserError(
                f"{root}: {name} of the autoencoder's config is {value!r}; it must be a number"
                f"{' above 0' * (least == 0.0)}, see the model's page"
            )
    return float(scale), float(shift)


def autoencoder_folder(root: Path) -> Path:
    """Return `root` itself if it is an autoencoder's folder, else its subfolder of one."""
    known = {kind.__name__ for kind in _KINDS}
    if class_name(root) in known:
        return root
    folder = next((root / name for name in FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(
            f"no autoencoder in {root}: component 'vae' is missing; expected a folder saved by "
            f"{', '.join(sorted(known))}, or one with such a folder named vae/ or vqvae/"
        )
    return folder


def pixels_per_latent(config: Mapping[str, Any]) -> int:
    """Return the pixels per latent cell in each direction: every level but one halves the size."""
    levels = config.get("encoder_block_out_channels") or config.get("block_out_channels") or (0,)
    return int(2 ** (len(levels) - 1))


def _check_divisible(image_size: int, factor: int) -> None:
    if image_size < 1 or image_size % factor:
        below = max(image_size // factor, 1) * factor
        good = f"{below} or {below + factor}" if below < image_size else below
        raise UserError(
            f"image_size={image_size} is not divisible by the autoencoder's factor {factor}; nearest good sizes: {good}"
        )
