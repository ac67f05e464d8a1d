"""Plain samples of a prior: latents of one class in chunks, and images of many classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ldd.errors import UserError
from ldd.images import ClassInfo, Labelled, to_bytes
from ldd.priors.base import Guide, Prior
from ldd.priors.class_table import choose_classes
from ldd.priors.latent_diffusion import LatentDiffusionPrior
from ldd.runtime.progress import tracked
from ldd.runtime.ranks import rank_zero_warn
from ldd.runtime.seeding import generator

CHUNK = 50
"""Images sampled at once: `latentdd prior sample` and all initialisers share it, so that their noise is the same."""

PURPOSE = "prior sample"

_LISTED = 5  # classes in a message


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
    ancestral: bool = False,
) -> Tensor:
    """Sample latents (n, c, h, w) of one class by `Prior.sample`, in chunks.

    Args:
        prior: what samples.
        row: the class's row, (1,).
        count: n.
        generator: of the noise, one chunk after the other.
        num_steps: DDIM steps.
        guidance_scale: of classifier-free guidance; None takes the prior's own.
        chunk_size: latents at once.
        start: clean latents (n, c, h, w), see `Prior.sample`.
        state: noisy ones, likewise.
        strength: share of the schedule from there.
        guide: places (m,) of a chunk -> what corrects its clean latents.
        ancestral: draw new noise at each step.
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
            ancestral=ancestral,
        )
        parts.append(latents)
    return torch.cat(parts)


@torch.no_grad()
def decoded(prior: Prior, latents: Tensor, name: str | None = None) -> Tensor:
    """Decode latents (n, c, h, w) of a class, or of all, in chunks to images (n, 3, H, W) uint8 on the CPU."""
    images = torch.cat([prior.decode(part).cpu() for part in latents.split(CHUNK)])
    if not images.isfinite().all():
        of_class = "" if name is None else f" of class {name!r}"
        raise UserError(
            f"the prior draws NaN or infinite values{of_class}; its weights, scaling_factor or scheduler are not those "
            "it was trained with: fetch or convert it again"
        )
    return to_bytes(images)


@dataclass(frozen=True)
class PriorSampler:
    """How images of a prior are drawn; a guidance scale of 1 means without guidance."""

    per_class: int
    num_steps: int
    guidance_scale: float
    seed: int

    @classmethod
    def suiting(
        cls,
        prior: LatentDiffusionPrior,
        per_class: int,
        seed: int,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Self:
        """Return how a prior is sampled where that is not said: 25 steps at scale 2.

        One step suits a prior that was trained for it, scale 1 one in which guidance was learned or that has none.

        Raises:
            UserError: as many steps as the prior's scheduler does not have.
        """
        if num_steps is None:
            num_steps = 1 if prior.schedule.usual_steps == 1 else 25
        if guidance_scale is None:
            guidance_scale = 2.0 if prior.learned_guidance is None and prior.denoiser.has_null else 1.0
        prior.schedule.steps(num_steps)
        return cls(per_class, num_steps, guidance_scale, seed)

    def images(self, prior: LatentDiffusionPrior, info: ClassInfo) -> Tensor:
        """Draw images (n, 3, H, W) uint8 of one class; they do not depend on the other classes drawn."""
        latents = sample_class(
            prior,
            prior.rows([info]),
            self.per_class,
            generator(self.seed, PURPOSE, info.wnid),
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
        )
        return decoded(prior, latents, info.name)

    def of_classes(self, prior: LatentDiffusionPrior, classes: Sequence[ClassInfo]) -> Labelled:
        """Draw images of all classes, class-major, labelled by their places in `classes`; show a progress bar."""
        drawn = [self.images(prior, info) for info in tracked("sampling", "classes")(classes)]
        blank = [info.name for info, images in zip(classes, drawn, strict=True) if is_blank(images)]
        if blank:
            rank_zero_warn(
                f"images of {len(blank)} of {len(classes)} classes are of one colour each "
                f"({', '.join(blank[:_LISTED])}): the prior's weights, scaling_factor or scheduler may not be "
                "those it was trained with"
            )
        return Labelled(torch.cat(drawn), torch.arange(len(classes)).repeat_interleave(self.per_class))


def classes_to_draw(prior: LatentDiffusionPrior, wanted: Sequence[str]) -> list[ClassInfo]:
    """Return the classes to draw; a prior of prompts takes any name, an unconditional one none."""
    if prior.classes:
        return choose_classes(prior.classes, wanted)
    if is_unconditional(prior) and wanted:
        raise UserError(
            f"--classes {' '.join(wanted)}: the prior is unconditional and knows no classes; leave it out"
        )
    if not is_unconditional(prior) and not wanted:
        raise UserError("--classes is needed: the prior has no table of classes; name what to draw")
    names = list(dict.fromkeys(wanted)) or ["samples"]
    return [ClassInfo(place, place, name, name) for place, name in enumerate(names)]


def is_blank(images: Tensor) -> bool:
    """Tell whether each of the images (N, 3, H, W) is of one colour."""
    pixels = images.flatten(2)
    return bool((pixels == pixels[..., :1]).all())


def is_unconditional(prior: Prior) -> bool:
    """Tell whether a prior has no class conditions."""
    return prior.null(1).shape[1] == 0
