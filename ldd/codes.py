"""Synthetic codes: what is optimised instead of pixels."""

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
        noise: (n, c, h, w), standard normal.
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
    """

    labels: Tensor

    @abstractmethod
    def forward(self, rows: Tensor, generator: torch.Generator | None = None) -> CodeBatch:
        """Codes of `rows` (n,) with graph; `generator` draws from a distribution, None takes its mean."""

    @abstractmethod
    def set_latents(self, rows: Tensor, latents: Tensor) -> None:
        """Start `rows` (n,) at `latents` (n, c, h, w); what initialisers call."""

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by what they are ("latents", "conditioning", ...), those that are learned only."""

    @property
    def dtype(self) -> torch.dtype:
        """Of everything computed from these codes."""
        return next(self.parameters()).dtype

    def __len__(self) -> int:
        return len(self.labels)


CodesFactory = Callable[[Tensor, Tensor, Tensor, Tensor], Codes]
"""Builds codes from (labels, latents, conditioning, noise)."""


class PointCodes(Codes):
    """One latent, one condition and one fixed noise tensor per image (LD3M, arXiv 2403.03881, section 3).

    The noise is drawn once and kept, so the distilled set is a fixed artefact.

    Args:
        labels: (N,), int64.
        latents: Z, (N, c, h, w).
        conditioning: c, (N, L, D); every image has its own copy of its class's row.
        noise: n, (N, c, h, w).
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

    def forward(self, rows: Tensor, generator: torch.Generator | None = None) -> CodeBatch:
        """Codes of `rows`; points have no spread, so `generator` draws nothing."""
        return CodeBatch(self.latents[rows], self.conditioning[rows], self.noise[rows], self.labels[rows])

    def set_latents(self, rows: Tensor, latents: Tensor) -> None:
        """Start `rows` (n,) at `latents` (n, c, h, w)."""
        with torch.no_grad():
            self.latents[rows] = latents.to(self.latents)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The learned ones of `latents` and `conditioning`."""
        named = {"latents": self.latents, "conditioning": self.conditioning}
        return {name: [value] for name, value in named.items() if value.requires_grad and value.numel()}
