"""Writing a prior folder: diffusers components in half precision, class table, `prior.json` and a model card."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import final

import torch
from diffusers import DDIMScheduler, ModelMixin, UNet2DConditionModel, VQModel
from safetensors.torch import save_file
from torch import Tensor, nn

from ldd.disk.files import atomic_folder, write_json
from ldd.images import DataSpec


def write_prior(
    folder: Path | str,
    *,
    unet: UNet2DConditionModel,
    autoencoder: ModelMixin,
    scheduler: DDIMScheduler,
    class_embedding: Tensor,
    spec: DataSpec,
    licence: str,
    facts: Mapping[str, str],
) -> Path:
    """Write a folder that `LatentDiffusionPrior` reads; an existing one is replaced once the new one is complete.

    Args:
        folder: where to.
        unet: the denoiser; stored, as the autoencoder, in float16.
        autoencoder: a diffusers autoencoder.
        scheduler: the DDIM schedule the U-Net was trained on.
        class_embedding: (K + 1, D), the null row last.
        spec: classes and image size.
        licence: terms of the weights.
        facts: lines of the model card, name -> text.

    Raises:
        UserError: the folder cannot be written.
    """
    with atomic_folder(folder) as beside:
        name = "vqvae" if isinstance(autoencoder, VQModel) else "vae"
        for part, model in (("unet", unet), (name, autoencoder)):
            half = deepcopy(model).cpu().half()  # the library's own `to` warns without cause
            half.register_to_config(_name_or_path="")  # a path on this machine, otherwise
            half.save_pretrained(beside / part, safe_serialization=True)
        scheduler.save_pretrained(beside / "scheduler")
        table = class_embedding.detach().to("cpu", torch.float16).contiguous()
        save_file({"weight": table}, beside / "class_embedding.safetensors")
        write_json(
            beside / "prior.json",
            {
                "classes": [{"id": c.id, "wnid": c.wnid, "name": c.name} for c in spec.classes],
                "null_class": len(table) - 1,
                "image_size": spec.image_size,
                "licence": licence,
            },
        )
        (beside / "README.md").write_text(_model_card(spec, {"licence of the weights": licence, **facts}))
    return Path(folder)


def count(module: nn.Module) -> str:
    """Number of a module's parameters, with separators."""
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _model_card(spec: DataSpec, facts: Mapping[str, str]) -> str:
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
        """Seconds of one step."""
        kept = self.values[_NAMES.index("seconds")]
        kept.copy_(kept.nan_to_num() + seconds)

    def record(self, name: str, value: Tensor) -> None:
        """A loss, 0-d; those of the training are averaged over about 50 steps."""
        kept = self.values[_NAMES.index(name)]
        newest = name.startswith("val_") or bool(kept.isnan())
        kept.copy_(value if newest else kept.lerp(value.double(), 0.02))

    def text(self, name: str) -> str:
        """A number with four digits, or "not measured"."""
        value = float(self.values[_NAMES.index(name)])
        return "not measured" if value != value else f"{value:.4g}"

    def duration(self, device: torch.device) -> str:
        """Seconds of training, and on what."""
        place = f"cpu (threads: {torch.get_num_threads()})" if device.type == "cpu" else device.type
        return f"{float(self.values[_NAMES.index('seconds')]):.0f} of training on {place}"
