"""Text-to-image U-Nets (Stable Diffusion 1.5, 2.x, SD-Turbo) as denoisers: conditions start from a prompt per class."""

import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import pad

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.denoisers.base import Denoiser, check_inputs, timestep_tensor
from ldd.priors.loading import Init, find_variant, frozen, load_model, read_json, reading
from ldd.priors.schedule import Interval, Time

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

PROMPT = "a photo of a {name}"
_FIELDS = {"name", "wnid"}


@final
class TextToImageUNet(Denoiser):
    """A U-Net with cross-attention to the tokens of a prompt; the text encoder is frozen like everything else.

    Rows number the prompts in the order in which `rows` met them; a class keeps its row for the lifetime of the prior.
    `prompt` is a template with `{name}` and `{wnid}`; the null condition is the empty prompt.
    """

    null_tokens: Tensor

    def __init__(self, folder: Path, prompt: str = PROMPT, init: Init = "pretrained") -> None:
        super().__init__()
        _check_template(prompt)
        self.prompt = prompt
        self.network = load_model(folder / "unet", (UNet2DConditionModel,), init=init)
        check_inputs(self.network, "the tokens of a prompt", guidance=True)
        self.embeds_guidance = self.network.config.get("time_cond_proj_dim") is not None
        self.tokenizer, self.text_encoder = _load_text(folder)
        width = self.text_encoder.config.hidden_size
        if width != self.network.config.cross_attention_dim:
            raise UserError(
                f"component 'text_encoder' makes tokens of width {width}; the U-Net's cross_attention_dim asks for "
                f"{self.network.config.cross_attention_dim}; both must be from one prior"
            )
        self.classes: list[ClassInfo] = []
        self._rows: dict[str, int] = {}
        self.register_buffer("null_tokens", self._encode([""]))

    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Return the numbers (K,) int64 of the classes' prompts: from `mapping`, else the filled template."""
        return torch.tensor([self._row(info, mapping) for info in classes], dtype=torch.int64)

    def embed(self, rows: Tensor) -> Tensor:
        """Return text embeddings (N, L, D) of the prompts, L being the text encoder's length; without gradient."""
        prompts = list(self._rows)
        kept, place = rows.cpu().unique(return_inverse=True)
        return self._encode([prompts[row] for row in kept.tolist()])[place.to(self.null_tokens.device)]

    def null(self, n: int) -> Tensor:
        """Return the text embedding of the empty prompt, (n, L, D)."""
        return self.null_tokens.expand(n, -1, -1)

    def forward(self, x: Tensor, timestep: Time, conditioning: Tensor, guidance: float = 1.0) -> Tensor:
        """See `Denoiser.forward`; `guidance` is a scale that the network is told, if it takes one."""
        if not self.embeds_guidance:
            return super().forward(x, timestep, conditioning)
        assert not isinstance(timestep, Interval), "checked by the prior"
        told = _embed_scale(guidance, self.network.config.time_cond_proj_dim).to(
            next(self.network.parameters())
        )
        output: Tensor = self.network(
            x, timestep_tensor(timestep, x), encoder_hidden_states=conditioning, timestep_cond=told.expand(len(x), -1),
            return_dict=False,
        )[0]  # fmt: skip
        return output

    def _row(self, info: ClassInfo, mapping: Mapping[str, int | str]) -> int:
        wish = mapping.get(info.wnid, mapping.get(info.name))
        if isinstance(wish, int):
            raise UserError(
                f"classes maps {info.wnid} ({info.name}) to {wish}, but a text-to-image prior has no rows; "
                "give the class's prompt as text"
            )
        prompt = self.prompt.format(name=info.name, wnid=info.wnid) if wish is None else wish
        length, longest = len(self.tokenizer(prompt).input_ids), self.tokenizer.model_max_length
        if length > longest:
            raise UserError(
                f"the prompt {prompt!r} of class {info.wnid} has {length} tokens, the text encoder reads {longest}; "
                "shorten it in classes or prompt"
            )
        return self._rows.setdefault(prompt, len(self._rows))

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Tensor:
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=self.tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        weight = next(self.text_encoder.parameters())
        tokens: Tensor = self.text_encoder(ids.to(weight.device))[0]
        return tokens.to(weight.dtype)  # under autocast it would be half precision


def _embed_scale(scale: float, width: int) -> Tensor:
    """Sinusoids of 1000 (s - 1), (1, width), as latent consistency models are told of guidance."""
    frequencies = torch.exp(torch.arange(width // 2) * (-math.log(10_000) / (width // 2 - 1)))
    angles = 1000 * (scale - 1) * frequencies
    return pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]


def _check_template(prompt: str) -> None:
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(prompt) if field is not None}
    except ValueError as error:
        raise UserError(f"prompt={prompt!r} is not a template ({error}); write e.g. {PROMPT!r}") from error
    if fields - _FIELDS:
        raise UserError(
            f"prompt={prompt!r} asks for {{{min(fields - _FIELDS)}}}; a template may hold {{name}} and {{wnid}}"
        )


def _load_text(folder: Path) -> "tuple[CLIPTokenizer, CLIPTextModel]":
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise UserError(
            f"{folder} is a text-to-image prior, whose text encoder needs the package transformers ({error}); "
            "install it with: pip install 'latentdd[text]'"
        ) from error
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    if not (encoder / "config.json").is_file():
        raise UserError(f"component 'text_encoder' is missing: no config.json in {encoder}")
    if not tokenizer.is_dir():
        raise UserError(f"component 'tokenizer' is missing: no {tokenizer}")
    kinds = read_json(encoder / "config.json").get("architectures")
    if kinds != ["CLIPTextModel"]:
        raise UserError(f"{encoder} holds a {', '.join(kinds or ['?'])}; supported here: CLIPTextModel")
    variant = find_variant(encoder, "model")
    if variant is None and not (encoder / "model.safetensors").is_file():
        raise UserError(
            f"component 'text_encoder' has no model.safetensors in {encoder}; "
            "save it with save_pretrained(safe_serialization=True)"
        )
    with reading(tokenizer):
        words = CLIPTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
    with reading(encoder):
        # The library's annotation lacks the report.
        loaded: Any = CLIPTextModel.from_pretrained(
            str(encoder), dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True,
            variant=variant,
        )  # fmt: skip
        return words, frozen(*loaded)
