"""What the priors without a diffusion model share: no class condition, no reverse process."""

from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor

from ldd.classes import ClassInfo
from ldd.errors import UserError
from ldd.priors.base import Guide, Prior


class DirectPrior(Prior, ABC):
    """A prior that only encodes and decodes: `denoise` returns its latents, conditioning is empty (N, 0, 0).

    Its final subclasses implement `encode` (or refuse it, with `can_encode` False) and `decode`.
    """

    num_steps = 0
    can_sample = False

    def rows(self, classes: Sequence[ClassInfo]) -> Tensor:
        """The labels, (K,) int64: without a class table every class is known and its own row."""
        return torch.tensor([info.label for info in classes], dtype=torch.int64)

    def embed(self, rows: Tensor) -> Tensor:
        """Empty conditioning (N, 0, 0)."""
        return self.null(len(rows)).to(rows.device)

    def null(self, n: int) -> Tensor:
        """Empty conditioning (n, 0, 0)."""
        return torch.zeros(n, 0, 0)

    def denoise(self, latents: Tensor, conditioning: Tensor, noise: Tensor) -> Tensor:
        """The latents themselves."""
        return latents

    def sample(
        self,
        rows: Tensor,
        generator: torch.Generator,
        *,
        num_steps: int = 50,
        guidance_scale: float | None = None,
        start: Tensor | None = None,
        state: Tensor | None = None,
        strength: float = 1.0,
        guide: Guide | None = None,
    ) -> Tensor:
        """Refused.

        Raises:
            UserError: always; there is nothing to sample from.
        """
        raise UserError(self._no_diffusion("sample"))

    def invert(self, latents: Tensor, conditioning: Tensor, num_steps: int, strength: float = 1.0) -> Tensor:
        """Refused.

        Raises:
            UserError: always; there is no noise end.
        """
        raise UserError(self._no_diffusion("invert"))

    def _no_encoder(self) -> str:
        return (
            f"{type(self).__name__} has no encoder; start codes with ldd.initializers.GaussianLatents, or choose "
            "another prior"
        )

    def _no_diffusion(self, wish: str) -> str:
        return (
            f"{type(self).__name__} has no diffusion model and cannot {wish}; choose a LatentDiffusionPrior"
        )
