"""Codes that start at plain samples of the prior."""

from collections.abc import Callable
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ldd.initializers.base import ClassInitializer, ClassStart, check_at_least
from ldd.initializers.guidance import LossGuidance
from ldd.priors import Guide, Prior
from ldd.priors.reverse import check_guidance

CHUNK = 50
"""Images sampled at once: `latentdd prior sample` and all initialisers, whose noise is then the same."""

PURPOSE = "prior sample"


def sample_class(
    prior: Prior,
    row: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    num_steps: int,
    guidance_scale: float | None,
    chunk_size: int = CHUNK,
    start: Tensor | None = None,
    state: Tensor | None = None,
    strength: float = 1.0,
    guide: Callable[[Tensor], Guide] | None = None,
) -> Tensor:
    """Latents (n, c, h, w) of one class by `Prior.sample`, in chunks.

    Args:
        prior: samples.
        row: the class's row, (1,).
        count: n.
        generator: of the noise, one chunk after the other.
        num_steps: DDIM steps.
        guidance_scale: of classifier-free guidance; None takes the prior's own.
        chunk_size: latents at once.
        start: clean latents (n, c, h, w), see `Prior.sample`.
        state: noisy ones, likewise.
        strength: share of the schedule from there.
        guide: given the places (m,) of a chunk, what corrects its clean latents.
    """
    parts = []
    for places in torch.arange(count).split(chunk_size):
        latents = prior.sample(
            row.expand(len(places)),
            generator,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            start=None if start is None else start[places.to(start.device)],
            state=None if state is None else state[places.to(state.device)],
            strength=strength,
            guide=None if guide is None else guide(places),
        )
        parts.append(latents)
    return torch.cat(parts)


@final
class PriorSamples(ClassInitializer):
    """Each latent is an ordinary sample of its class: the training-free baseline of every method that guides.

    `ModeGuidance` with the same generator, steps and guidance scale starts from the same noise.

    Args:
        num_steps: DDIM steps.
        guidance_scale: of classifier-free guidance; None takes the prior's own.
        guidance: an objective's loss that corrects the samples on their way; None for none. It sees all latents of a
            class at once, whatever `chunk_size` is.
        sample_seed: of the noise; with it, the samples are those of `latentdd prior sample --seed` at these settings.
            None follows the run's seed.
        chunk_size: latents sampled at once.

    Raises:
        UserError: a number out of range, or guided steps that are none of `num_steps`.
    """

    encodes = False

    def __init__(
        self,
        num_steps: int = 50,
        guidance_scale: float | None = None,
        guidance: LossGuidance | None = None,
        sample_seed: int | None = None,
        chunk_size: int = CHUNK,
    ) -> None:
        check_sampling(num_steps, guidance_scale, chunk_size)
        if guidance is not None:
            guidance.check_steps(num_steps)
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.guidance = guidance
        self.sample_seed = sample_seed
        self.chunk_size = chunk_size

    def latents(self, start: ClassStart) -> Tensor:
        """Samples (n, c, h, w)."""
        if self.sample_seed is not None:
            start = replace(start, seed=self.sample_seed)
        guide = None if self.guidance is None else self.guidance.guide(start)
        return sample_class(
            start.prior,
            start.rows(1),
            start.count,
            start.generator(PURPOSE),
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
            chunk_size=self.chunk_size if guide is None else start.count,
            guide=None if guide is None else lambda places: guide,
        )


def check_sampling(num_steps: int, guidance_scale: float | None, chunk_size: int) -> None:
    """Refuse settings of a sampler that are out of range; the schedule may allow fewer steps still.

    Raises:
        UserError: names the argument.
    """
    check_at_least(1, num_steps=num_steps, chunk_size=chunk_size)
    if guidance_scale is not None:
        check_guidance(guidance_scale)
