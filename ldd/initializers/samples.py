"""Codes that start at plain samples of the prior."""

from collections.abc import Callable
from dataclasses import replace
from typing import final

from torch import Tensor

from ldd.errors import check_at_least
from ldd.images import DataSpec
from ldd.initializers.base import ClassInitializer, ClassStart
from ldd.initializers.guidance import Guidance, LossGuidance
from ldd.priors import Guide
from ldd.priors.reverse import check_guidance
from ldd.priors.sampling import CHUNK, PURPOSE, sample_class


class SampledInitializer(ClassInitializer):
    """Latents that the prior samples, from wherever a subclass lets it start and however it guides it."""

    def __init__(
        self, num_steps: int, guidance_scale: float | None, chunk_size: int, max_images: int | None = None
    ) -> None:
        check_at_least(1, "initializer", num_steps=num_steps, chunk_size=chunk_size, max_images=max_images)
        if guidance_scale is not None:
            check_guidance(guidance_scale)
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.chunk_size = chunk_size
        self.max_images = max_images

    def sample(
        self,
        start: ClassStart,
        *,
        clean: Tensor | None = None,
        state: Tensor | None = None,
        strength: float = 1.0,
        guide: Callable[[Tensor], Guide] | None = None,
        chunk_size: int | None = None,
        ancestral: bool = False,
    ) -> Tensor:
        """Return the class's n latents, see `sample_class`, whose `start` is here called `clean`."""
        return sample_class(
            start.prior,
            start.rows(1),
            start.count,
            start.generator(PURPOSE),
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
            chunk_size=self.chunk_size if chunk_size is None else chunk_size,
            start=clean,
            state=state,
            strength=strength,
            guide=guide,
            ancestral=ancestral,
        )


@final
class PriorSamples(SampledInitializer):
    """Each latent is an ordinary sample of its class: the training-free baseline of every method that guides.

    `ModeGuidance` with the same generator, steps and guidance scale starts from the same noise.

    Args:
        num_steps: DDIM steps.
        guidance_scale: of classifier-free guidance; None takes the prior's own.
        guidance: what corrects the samples on their way; None for none. It decides how many latents of a class it sees
            at once, whatever `chunk_size` is.
        sample_seed: of the noise; with it, `latentdd prior sample --seed` draws the same samples at these settings.
            None follows the run's seed.
        chunk_size: latents sampled at once.

    Raises:
        UserError: a number out of range, or guided steps that are none of `num_steps`.
    """

    def __init__(
        self,
        num_steps: int = 50,
        guidance_scale: float | None = None,
        guidance: LossGuidance | Guidance | None = None,
        sample_seed: int | None = None,
        chunk_size: int = CHUNK,
    ) -> None:
        super().__init__(num_steps, guidance_scale, chunk_size)
        if guidance is not None:
            guidance.check_steps(num_steps)
        self.encodes = guidance is not None and guidance.encodes
        self.guidance = guidance
        self.sample_seed = sample_seed

    def networks(self, spec: DataSpec) -> set[str]:
        """Return those of the guidance."""
        return set() if self.guidance is None else self.guidance.networks(spec)

    def latents(self, start: ClassStart) -> Tensor:
        """Return samples (n, c, h, w)."""
        if self.sample_seed is not None:
            start = replace(start, seed=self.sample_seed)
        if self.guidance is None:
            return self.sample(start)
        guide = self.guidance.guide(start)
        return self.sample(start, guide=lambda places: guide, chunk_size=self.guidance.at_once or start.count)
