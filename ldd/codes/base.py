"""What all codes have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class CodeBatch(NamedTuple):
    """What the reverse process takes for n codes.

    Attributes:
        latents: Z, (n, c, h, w), in the denoiser's scaled space.
        conditioning: (n, L, D).
        noise: (n, c, h, w), standard normal; (n, 0) for a prior without diffusion.
        labels: (n,), int64.
    """

    latents: Tensor
    conditioning: Tensor
    noise: Tensor
    labels: Tensor


class Codes(nn.Module, ABC):
    """N codes in class-major order. Subclasses are final.

    Every subclass is built from (labels, latents, conditioning, noise), the starting point for all N codes, and
    further arguments of its own.

    Attributes:
        labels: (N,), int64, a buffer.
        stochastic: whether draws of one code differ.
    """

    labels: Tensor
    stochastic: bool = False

    @abstractmethod
    def forward(self, rows: Tensor, generator: torch.Generator | None = None) -> CodeBatch:
        """Codes of `rows` (n,) with graph; `generator` draws from a distribution, None takes its mean.

        What a row draws follows from the generator's state and the row alone, not from the rows beside it, so that
        chunks and ranks make no difference. A later call with the same generator draws anew.
        """

    @abstractmethod
    def set_latents(self, rows: Tensor, latents: Tensor) -> None:
        """Start `rows` (n,) at `latents` (n, c, h, w); what initialisers call."""

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by what they are ("latents", "spread", "conditioning"), those that are learned only."""

    def tensors(self) -> dict[str, Tensor]:
        """What an artefact stores of them, on the CPU: all but the labels, which it has, and empty tensors."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        return {name: value for name, value in state.items() if name != "labels" and value.numel()}

    def statistics(self) -> dict[str, Tensor]:
        """Numbers to log as `train/<name>`, without graph."""
        return {}

    @property
    def dtype(self) -> torch.dtype:
        """Of everything computed from these codes."""
        return next(self.parameters()).dtype

    def __len__(self) -> int:
        return len(self.labels)


CodesFactory = Callable[[Tensor, Tensor, Tensor, Tensor], Codes]
"""Builds codes from (labels, latents, conditioning, noise)."""


class LocatedCodes(Codes, ABC):
    """Codes that each have a latent of their own, a condition and fixed noise.

    Args:
        labels: (N,), int64.
        latents: Z, (N, c, h, w).
        conditioning: c, (N, L, D); every code has its own copy of its class's row.
        noise: n, (N, c, h, w), or (N, 0) for a prior without diffusion. Drawn once and kept.
        learn_latents: optimise Z.
        learn_conditioning: optimise c (without effect on an unconditional prior, where L = 0).
    """

    def __init__(
        self,
        labels: Tensor,
        latents: Tensor,
        conditioning: Tensor,
        noise: Tensor,
        learn_latents: bool = True,
        learn_conditioning: bool = True,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(latents.clone(), requires_grad=learn_latents)
        self.conditioning = nn.Parameter(conditioning.clone(), requires_grad=learn_conditioning)
        self.noise: Tensor
        self.register_buffer("noise", noise.clone())
        self.register_buffer("labels", labels.clone())

    def centres(self, rows: Tensor) -> CodeBatch:
        """The codes of `rows` (n,) at their latents, with graph."""
        return CodeBatch(self.latents[rows], self.conditioning[rows], self.noise[rows], self.labels[rows])

    def set_latents(self, rows: Tensor, latents: Tensor) -> None:
        """Start `rows` (n,) at `latents` (n, c, h, w)."""
        with torch.no_grad():
            self.latents[rows] = latents.to(self.latents)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The learned ones of `latents` and `conditioning`."""
        named = {"latents": self.latents, "conditioning": self.conditioning}
        return {name: [value] for name, value in named.items() if value.requires_grad and value.numel()}
