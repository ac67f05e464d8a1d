"""Points: the codes of LD3M."""

from typing import final

import torch
from torch import Tensor

from ldd.codes.base import CodeBatch, LocatedCodes


@final
class PointCodes(LocatedCodes):
    """One latent, one condition and one fixed noise tensor per image (LD3M, arXiv 2403.03881, section 3).

    The noise is drawn once and kept, so the distilled set is a fixed artefact.

    Args:
        labels: (N,), int64.
        latents: Z, (N, c, h, w).
        conditioning: c, (N, L, D); every image has its own copy of its class's row.
        noise: n, (N, c, h, w), or (N, 0) for a prior without diffusion.
        learn_latents: optimise Z.
        learn_conditioning: optimise c (without effect on an unconditional prior, where L = 0).
    """

    def forward(self, rows: Tensor, generator: torch.Generator | None = None) -> CodeBatch:
        """Codes of `rows`; points have no spread, so `generator` draws nothing."""
        return self.centres(rows)
