"""What a prior folder says of its training: weights in half precision, the model card, and the numbers in it."""

from collections.abc import Mapping
from copy import deepcopy
from typing import final

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ldd.images import DataSpec


def half_precision(model: ModelMixin) -> ModelMixin:
    """Return a copy of `model` in float16 on the CPU, without the path it was loaded from."""
    half = deepcopy(model).cpu().half()  # the library's own `to` warns without cause
    half.register_to_config(_name_or_path="")
    return half


def count(module: nn.Module) -> str:
    """Return the number of a module's parameters, with separators."""
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def model_card(spec: DataSpec, facts: Mapping[str, str]) -> str:
    """Return the text of `README.md`: the classes, and a line for each of `facts` (name -> text)."""
    shown = [info.name for info in spec.classes[:20]]
    more = f" and {spec.num_classes - len(shown)} more" if spec.num_classes > len(shown) else ""
    lines = [f"- **{name}**: {text}" for name, text in facts.items()]
    return "\n".join(
        [
            f"# Class-conditional latent diffusion prior, {spec.num_classes} classes at {spec.image_size} px",
            "",
            f"Classes: {', '.join(shown)}{more}.",
            "",
            *lines,
            "",
            "`unet/`, the autoencoder's folder and `scheduler/` are diffusers components (float16 safetensors);",
            "`class_embedding.safetensors` holds a row per class and the null row last; `prior.json` names the",
            'classes. Load it with `ldd.LatentDiffusionPrior("PATH OF THIS FOLDER")`.',
            "",
        ]
    )


_NAMES = ("seconds", "autoencoder_loss", "loss", "val_loss", "val_autoencoder_loss")


@final
class Measured(nn.Module):
    """Seconds, training losses as moving averages, and the latest validation losses; NaN until measured."""

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.full((len(_NAMES),), torch.nan, dtype=torch.float64))

    def add_seconds(self, seconds: float) -> None:
        """Add the seconds of one step."""
        kept = self.values[_NAMES.index("seconds")]
        kept.copy_(kept.nan_to_num() + seconds)

    def record(self, name: str, value: Tensor) -> None:
        """Keep a loss, 0-d; training losses are averaged over about 50 steps."""
        kept = self.values[_NAMES.index(name)]
        newest = name.startswith("val_") or bool(kept.isnan())
        kept.copy_(value if newest else kept.lerp(value.double(), 0.02))

    def text(self, name: str) -> str:
        """Return a number with four digits, or "not measured"."""
        value = float(self.values[_NAMES.index(name)])
        return "not measured" if value != value else f"{value:.4g}"

    def autoencoder(self, steps: int, batch: int) -> str:
        """Return how the autoencoder was trained, and what it reached."""
        return (
            f"{steps:,} steps of {batch}; loss: training {self.text('autoencoder_loss')}; mean absolute error of "
            f"pixels in [-1, 1] on the selection split {self.text('val_autoencoder_loss')}"
        )

    def duration(self, device: torch.device) -> str:
        """Return the seconds of training, and the device."""
        place = f"cpu (threads: {torch.get_num_threads()})" if device.type == "cpu" else device.type
        return f"{float(self.values[_NAMES.index('seconds')]):.0f} of training on {place}"
