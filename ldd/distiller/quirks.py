"""Defects of the released LD3M code that its numbers were made with, by name; all off by default."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldd.images import DataSpec
from ldd.runtime import seeding

RELEASED_MEAN = (0.4377, 0.4438, 0.4728)
"""What the released code (as GLaD's) subtracts from synthetic images; real ones get ImageNet's mean."""


@dataclass(frozen=True)
class Quirks:
    """What training steps do as the released code does; the artefact is always made without them.

    Other parts hold the other quirks: `RealEncodings(normalised_input)`, `TrajectoryMatching(halved_gradient)`, and
    the evaluation protocol `ld3m-released`.

    Attributes:
        redrawn_noise: new noise for all codes in every step, in place of each code's own.
        mismatched_mean: synthetic images normalised with `RELEASED_MEAN` instead of the real images' mean.
        hard_clamp: pixels outside [-1, 1] get no gradient.
    """

    redrawn_noise: bool = False
    mismatched_mean: bool = False
    hard_clamp: bool = False

    def noise(self, own: Tensor, rows: Tensor, num_codes: int, seed: int, step: int) -> Tensor:
        """Noise (n, c, h, w) of code `rows` (n,) in one step.

        Args:
            own: their own noise, (n, c, h, w).
            rows: (n,).
            num_codes: N; noise is drawn for all of them, so that chunks and ranks make no difference.
            seed: of the run.
            step: training step.
        """
        if not self.redrawn_noise:
            return own
        shape = (num_codes, *own.shape[1:])
        drawn = torch.randn(shape, generator=seeding.generator(seed, "redrawn noise", step))
        return drawn.to(own)[rows]

    def clamp(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) clamped to [-1, 1] as stored, by default with a gradient where saturated."""
        clamped = images.clamp(-1, 1)
        # The straight-through form lets a saturated pixel come back.
        return clamped if self.hard_clamp else images + (clamped - images).detach()

    def shift(self, images: Tensor, spec: DataSpec) -> Tensor:
        """Images (n, 3, H, W) in [-1, 1], so shifted that `spec.normalise` of them subtracts `RELEASED_MEAN`."""
        if not self.mismatched_mean:
            return images
        return images + 2 * (images.new_tensor(spec.mean) - images.new_tensor(RELEASED_MEAN)).view(-1, 1, 1)


NO_QUIRKS = Quirks()
