"""What a teacher says of a batch as a student sees it, in the form in which labels are stored."""

import torch
from torch import Tensor, nn

from ldd import soft_labels
from ldd.soft_labels import Precision


class CropTeacher(nn.Module):
    """Probabilities that a teacher gives network inputs, as they come back from storage.

    Args:
        network: inputs (n, 3, H, H) -> logits (n, K).
        temperature: T of softmax(logits / T).
        top_k: probabilities kept of each label; None keeps all.
        precision: of the stored probabilities.
    """

    def __init__(
        self, network: nn.Module, temperature: float, top_k: int | None, precision: Precision
    ) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.top_k = top_k
        self.precision: Precision = precision

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """(n, K) float32."""
        return soft_labels.quantise(self._probabilities(inputs), self.top_k, self.precision).float()

    @torch.no_grad()
    def packed(self, inputs: Tensor) -> dict[str, Tensor]:
        """The tensors that hold what `forward` gives."""
        return soft_labels.packed(self._probabilities(inputs), self.top_k, self.precision)

    def _probabilities(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return (logits.float() / self.temperature).softmax(1)

    def extra_repr(self) -> str:
        """What tells one teacher from another of the same weights."""
        return f"temperature={self.temperature}, top_k={self.top_k}, precision={self.precision}"
