"""Text-to-image U-Nets (Stable Diffusion 1.5, 2.x and XL) as denoisers: conditions start from a prompt per class."""

import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import pad

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.autoencoder import autoencoder_folder, pixels_per_latent
from ldd.priors.denoisers.base import Denoiser, check_inputs, timestep_tensor
from ldd.priors.loading import Init, find_variant, frozen, load_model, read_json, reading
from ldd.priors.schedule import Interval, Time, Times

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

PROMPT = "a photo of a {name}"
_FIELDS = {"name", "wnid"}
_POOLED = "text_time"  # what a config calls a pooled embedding and sizes


@final
class TextToImageUNet(Denoiser):
    """A U-Net with cross-attention to the tokens of a prompt; the text encoder is frozen like everything else.

    Rows number the prompts in the order in which `rows` met them; a class keeps its row for the lifetime of the prior.
    `prompt` is a template with `{name}` and `{wnid}`; the null condition is the empty prompt.

    Stable Diffusion XL has two text encoders: a token is what the last layer but one of both says of it, and the pooled
    embedding of the second is one more, its end filled with zeros. The null condition is zero where `model_index.json`
    does not say otherwise, and the network is told that images are neither scaled nor cropped.
    """

    null_tokens: Tensor

    def __init__(self, folder: Path, prompt: str = PROMPT, init: Init = "pretrained") -> None:
        super().__init__()
        _check_template(prompt)
        self.prompt = prompt
        self.network = load_model(folder / "unet", (UNet2DConditionModel,), init=init)
        known = {"time_cond_proj_dim": None, "addition_embed_type": _POOLED}
        check_inputs(self.network, "the tokens of a prompt", known)
        self.embeds_guidance = self.network.config.get("time_cond_proj_dim") is not None
        self.tokenizer, self.text_encoder = _load_text(folder)
        width = self.text_encoder.config.hidden_size
        self.two = self.network.config.get("addition_embed_type") == _POOLED
        if self.two:
            self.tokenizer_2, self.text_encoder_2 = _load_text(folder, "_2")
            width += self.text_encoder_2.config.hidden_size
            self._pooled = self.text_encoder_2.config.projection_dim
            self._pixels = pixels_per_latent(read_json(autoencoder_folder(folder) / "config.json"))
        if width != self.network.config.cross_attention_dim:
            raise UserError(
                f"component 'text_encoder' makes tokens of width {width}; the U-Net's cross_attention_dim asks for "
                f"{self.network.config.cross_attention_dim}; both must be from one prior"
            )
        self.classes: list[ClassInfo] = []
        self._rows: dict[str, int] = {}
        null = self._encode([""])
        self.register_buffer("null_tokens", null.zero_() if self.two and _zero_null(folder) else null)

    def rows(self, classes: Sequence[ClassInfo], mapping: Mapping[str, int | str]) -> Tensor:
        """Return the numbers (K,) int64 of the classes' prompts: from `mapping`, else the filled template."""
        return torch.tensor([self._row(info, mapping) for info in classes], dtype=torch.int64)

    def embed(self, rows: Tensor) -> Tensor:
        """Return text embeddings (N, L, D) of the prompts, without gradient; L is the text encoder's length.

        With a pooled embedding L is one more.
        """
        prompts = list(self._rows)
        kept, place = rows.cpu().unique(return_inverse=True)
        return self._encode([prompts[row] for row in kept.tolist()])[place.to(self.null_tokens.device)]

    def null(self, n: int) -> Tensor:
        """Return the text embedding of the empty prompt, (n, L, D)."""
        return self.null_tokens.expand(n, -1, -1)

    def forward(
        self, x: Tensor, timestep: Time | Times, conditioning: Tensor, guidance: float = 1.0
    ) -> Tensor:
        """See `Denoiser.forward`; `guidance` is a scale that the network is told, if it takes one."""
        assert not isinstance(timestep, Interval), "checked by the prior"
        if self.two:
            return self._call_with_pooled(x, timestep, conditioning)
        if not self.embeds_guidance:
            return super().forward(x, timestep, conditioning)
        told = _embed_scale(guidance, self.network.config.time_cond_proj_dim).to(
            next(self.network.parameters())
        )
        output: Tensor = self.network(
            x, timestep_tensor(timestep, x), encoder_hidden_states=conditioning, timestep_cond=told.expand(len(x), -1),
            return_dict=False,
        )[0]  # fmt: skip
        return output

    def _call_with_pooled(self, x: Tensor, timestep: float | Tensor, conditioning: Tensor) -> Tensor:
        height, width = (self._pixels * side for side in x.shape[-2:])
        told = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=x.device)
        pooled = conditioning[:, -1, : self._pooled]
        output: Tensor = self.network(
            x, timestep_tensor(timestep, x), encoder_hidden_states=conditioning[:, :-1],
            added_cond_kwargs={"text_embeds": pooled, "time_ids": told.expand(len(x), -1)}, return_dict=False,
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
        weight = next(self.text_encoder.parameters())

        def said(tokenizer: "CLIPTokenizer", encoder: nn.Module) -> Any:  # noqa: ANN401 - the library's
            length = tokenizer.model_max_length
            ids = tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids
            return encoder(ids.to(weight.device), output_hidden_states=self.two)

        first = said(self.tokenizer, self.text_encoder)
        if not self.two:
            tokens: Tensor = first[0]
            return tokens.to(weight.dtype)  # under autocast it would be half precision
        second = said(self.tokenizer_2, self.text_encoder_2)
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        pooled = pad(second.text_embeds, (0, tokens.shape[-1] - self._pooled))
        return torch.cat([tokens, pooled[:, None]], 1).to(weight.dtype)


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


def _zero_null(folder: Path) -> bool:
    """Whether the null condition is zero, as pipelines of Stable Diffusion XL say, or have by default."""
    index = folder / "model_index.json"
    return bool(read_json(index).get("force_zeros_for_empty_prompt", True)) if index.is_file() else True


def _load_text(folder: Path, number: str = "") -> "tuple[CLIPTokenizer, CLIPTextModel]":
    """Load a tokenizer and a text encoder; the second of two (`_2`) has a projection of the pooled embedding."""
    try:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    except ImportError as error:
        raise UserError(
            f"{folder} is a text-to-image prior, whose text encoder needs the package transformers ({error}); "
            "install it with: pip install 'latentdd[text]'"
        ) from error
    encoder, tokenizer = folder / f"text_encoder{number}", folder / f"tokenizer{number}"
    kind: Any = CLIPTextModelWithProjection if number else CLIPTextModel
    if not (encoder / "config.json").is_file():
        raise UserError(f"component {encoder.name!r} is missing: no config.json in {encoder}")
    if not tokenizer.is_dir():
        raise UserError(f"component {tokenizer.name!r} is missing: no {tokenizer}")
    kinds = read_json(encoder / "config.json").get("architectures")
    if kinds != [kind.__name__]:
        raise UserError(f"{encoder} holds a {', '.join(kinds or ['?'])}; supported here: {kind.__name__}")
    variant = find_variant(encoder, "model")
    if variant is None and not (encoder / "model.safetensors").is_file():
        raise UserError(
            f"component {encoder.name!r} has no model.safetensors in {encoder}; "
            "save it with save_pretrained(safe_serialization=True)"
        )
    with reading(tokenizer):
        words = CLIPTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
    with reading(encoder):
        # The library's annotation lacks the report.
        loaded = kind.from_pretrained(
            str(encoder), dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True,
            variant=variant,
        )  # fmt: skip
        return words, frozen(*loaded)
