"""Codes that start at samples which are pulled to the modes of their class."""

from typing import final

from torch import Tensor

from ldd.errors import UserError
from ldd.initializers.base import ClassStart
from ldd.initializers.kmeans import class_modes
from ldd.initializers.samples import CHUNK, PURPOSE, SampledInitializer
from ldd.priors import Guide


@final
class ModeGuidance(SampledInitializer):
    """Each latent is a sample pulled to a mode of its class: a k-means centroid of its encodings (MGD3, ICML 2025).

    At step k (S - 1 is the noisiest) the predicted clean latents become x0 + lambda (m - x0) while k >= `stop_step`,
    and are left alone from there. MGD3 adds lambda sigma (m - x0) to the state of an ancestral sampler; sigma is 0 in
    our deterministic one, so that the pull is on the prediction itself.

    Args:
        pull: lambda, share of the way to the mode at each guided step, in [0, 1] (published: 0.1, times sigma).
        num_steps: S, DDIM steps.
        stop_step: the last guided step, 0 to S - 1; None takes half of them (published: 25 of 50).
        guidance_scale: of classifier-free guidance; None takes the prior's own (published for DiT-XL/2: 4).
        max_images: real images of each class that are clustered, drawn at random; None takes all.
        chunk_size: images encoded, and latents sampled, at once.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        pull: float = 0.1,
        num_steps: int = 50,
        stop_step: int | None = None,
        guidance_scale: float | None = None,
        max_images: int | None = None,
        chunk_size: int = CHUNK,
    ) -> None:
        super().__init__(num_steps, guidance_scale, chunk_size, max_images)
        if not 0 <= pull <= 1:
            raise UserError(f"initializer.pull ({pull}) must lie in [0, 1]")
        if stop_step is not None and not 0 <= stop_step < num_steps:
            raise UserError(
                f"initializer.stop_step ({stop_step}) must be a step from 0 (the last) to {num_steps - 1} (the first)"
            )
        self.pull = pull
        self.stop_step = num_steps // 2 if stop_step is None else stop_step

    def latents(self, start: ClassStart) -> Tensor:
        """One sample (c, h, w) for each of the class's n modes."""
        modes = class_modes(start, self.chunk_size, self.max_images)

        def guide(places: Tensor) -> Guide:
            wanted = modes[places.to(modes.device)]

            def correction(x0: Tensor, k: int, rows: Tensor) -> Tensor:
                return self.pull * (wanted - x0) if k >= self.stop_step else x0.new_zeros(())

            return correction

        return self.sample(start, start.generator(PURPOSE), guide=guide)
