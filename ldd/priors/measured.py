"""How long and how well a prior was trained: kept in checkpoints, told by the model card."""

from typing import final

import torch
from torch import Tensor, nn

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
