"""Denoising networks as diffusers saves them, and which of them a prior folder holds."""

from pathlib import Path

from ldd.errors import UserError
from ldd.priors.denoisers.base import Denoiser
from ldd.priors.denoisers.text import PROMPT, TextToImageUNet
from ldd.priors.denoisers.transformer import DiffusionTransformer
from ldd.priors.denoisers.unet import ClassConditionalUNet, LabelledUNet, UnconditionalUNet
from ldd.priors.folder import read_card, read_optional_card
from ldd.priors.loading import Init, class_name, read_json

__all__ = ["Denoiser", "load_denoiser"]


def load_denoiser(folder: Path, *, init: Init, prompt: str | None, tied: bool) -> Denoiser:
    """Load the denoiser in `folder`.

    `transformer/` makes it a diffusion transformer; `unet/` of diffusers' UNet2DModel a U-Net with a class table of its
    own, or an unconditional one; `unet/` next to `text_encoder/` a text-to-image U-Net; any other `unet/` a U-Net with
    cross-attention to a class token.
    """
    kind = class_name(folder / "unet")
    if kind is None and class_name(folder / "transformer") is not None:
        _refuse(prompt is not None, f"prompt={prompt!r}", "a diffusion transformer, which reads no text")
        card = read_optional_card(folder)
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
        prompt is not None, f"prompt={prompt!r}", "not a text-to-image model (no text_encoder/ next to unet/)"
    )
    # A class table next to a network without classes: the folder was put together wrongly, which loading then says.
    if kind == "UNet2DModel" and not (folder / "class_embedding.safetensors").is_file():
        if read_json(folder / "unet" / "config.json").get("num_class_embeds") is not None:
            return LabelledUNet(folder, read_optional_card(folder), init)
        return UnconditionalUNet(folder, init)
    return ClassConditionalUNet(folder, read_card(folder), init)


def _refuse(given: bool, argument: str, why: str) -> None:
    if given:
        raise UserError(f"{argument} has no effect here: the prior is {why}; remove it")
