"""Codes that start at samples whose noise has the statistics of their class."""

import math
from typing import Literal, final

import torch
from torch import Tensor

from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.initializers.base import ClassStart
from ldd.initializers.samples import SampledInitializer
from ldd.priors.reverse import check_guidance
from ldd.priors.sampling import CHUNK

Skewness = Literal["element", "released"]

_FLOATS_AT_ONCE = 2**24  # of the groups that are drawn together


@final
class InvertedStatistics(SampledInitializer):
    """Latents decoded from the best of many groups of draws at the noise end of their class (D3HR, ICML 2025).

    All encodings of a class are inverted by DDIM to where `strength` of the schedule begins, and there a Gaussian is
    fitted, element by element. Of `groups` sets of n draws from it the one is kept that has the lowest
    |mean - mu| + |deviation - sigma| + w |skewness| (norms over the elements, and over the draws for the released
    skewness). It is decoded by ordinary sampling from there. `configs/initializer/inverted_released.yaml` has the
    released settings of all options.

    Args:
        strength: share of the schedule that is inverted (published: 31 of 50 steps).
        groups: sets of draws to choose from (published: 100,000).
        skew_weight: w (published: 0.1).
        num_steps: DDIM steps of the whole schedule.
        guidance_scale: of classifier-free guidance when decoding; None takes the prior's own.
        max_images: real images of each class that are inverted, drawn at random; None takes all.
        chunk_size: images encoded and inverted, and latents sampled, at once.
        inversion_guidance: of classifier-free guidance when inverting (released: 4).
        encodings: the encoder's `mode`, or a `sample` of its posterior (released).
        ddof: subtracted from the number of images, and of draws, in deviations (released: 1).
        skewness: that of each `element` over the group, or as `released`: of each draw, the sum over its D elements of
            ((z - mean) / deviation)^3, times D / ((D - 1) (D - 2)).

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        strength: float = 0.62,
        groups: int = 100_000,
        skew_weight: float = 0.1,
        num_steps: int = 50,
        guidance_scale: float | None = None,
        max_images: int | None = None,
        chunk_size: int = CHUNK,
        inversion_guidance: float = 1.0,
        encodings: Literal["mode", "sample"] = "mode",
        ddof: int = 0,
        skewness: Skewness = "element",
    ) -> None:
        super().__init__(num_steps, guidance_scale, chunk_size, max_images)
        check_guidance(inversion_guidance, "inversion_guidance")
        if ddof not in (0, 1):
            raise UserError(f"initializer.ddof ({ddof}) must be 0 or 1")
        check_at_least(1, "initializer", groups=groups)
        check_at_least(2, "initializer", max_images=max_images)
        if not 0 < strength <= 1:
            raise UserError(f"initializer.strength ({strength}) must be above 0 and at most 1")
        check_not_negative("initializer", skew_weight=skew_weight)
        self.strength = strength
        self.groups = groups
        self.skew_weight = skew_weight
        self.inversion_guidance = inversion_guidance
        self.drawn = encodings == "sample"
        self.ddof = ddof
        self.skewness: Skewness = skewness

    def latents(self, start: ClassStart) -> Tensor:
        """Return the best group (n, c, h, w), decoded.

        Raises:
            UserError: fewer than two real images, which have no deviation, or one code a class with a `ddof` of 1.
        """
        if self.ddof >= start.count:
            raise UserError(
                f"initializer.ddof ({self.ddof}): a group of one draw has no such deviation; set 0"
            )
        start.real.require(start.info.label, 2, "the number of images to fit a Gaussian to")
        mean, deviation = self.statistics(start)
        draws = best_group(
            mean.flatten(),
            deviation.flatten(),
            start.count,
            self.groups,
            self.skew_weight,
            start.generator("groups"),
            self.ddof,
            self.skewness,
        )
        return self.sample(
            start,
            state=draws.unflatten(1, mean.shape).to(start.like),
            strength=self.strength,
        )

    def statistics(self, start: ClassStart) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the inverted encodings, each (c, h, w), float64 on the CPU."""
        prior, inverted = start.prior, []
        encodings = start.encodings(self.chunk_size, self.max_images, drawn=self.drawn)
        for latents in encodings.split(self.chunk_size):
            conditioning = prior.embed(start.rows(len(latents))).to(latents)
            noisy = prior.invert(
                latents, conditioning, self.num_steps, self.strength, self.inversion_guidance
            )
            inverted.append(noisy.double().cpu())
        everything = torch.cat(inverted)
        return everything.mean(0), everything.std(0, correction=self.ddof)


def best_group(
    mean: Tensor,
    deviation: Tensor,
    size: int,
    groups: int,
    skew_weight: float,
    generator: torch.Generator,
    ddof: int = 0,
    skewness: Skewness = "element",
) -> Tensor:
    """Return the group of draws (size, D) whose statistics are nearest to mean and deviation (D,) of their Gaussian.

    The standard normal float32 numbers (groups, size, D) are drawn one part after the other.
    """
    best, lowest = torch.empty(0), float("inf")
    at_once = max(1, _FLOATS_AT_ONCE // (size * len(mean)))
    scale = deviation.float()
    for begin in range(0, groups, at_once):
        number = min(at_once, groups - begin)
        noise = torch.randn(number, size, len(mean), generator=generator)
        centre = noise.mean(1)
        away = noise - centre[:, None]
        spread = away.square().mean(1).sqrt() * math.sqrt(size / (size - ddof))
        if skewness == "element":
            skew = torch.nan_to_num(away.pow(3).mean(1) / spread.pow(3))  # a group of one has none
        else:
            count = len(mean)
            skew = (away / spread[:, None]).pow(3).sum(2) * (count / ((count - 1) * (count - 2)))
        score = (scale * centre).norm(dim=1) + (scale * (spread - 1)).norm(dim=1)
        score += skew_weight * skew.norm(dim=1)
        if (least := float(score.min())) < lowest:
            best, lowest = noise[int(score.argmin())].clone(), least
    return mean + deviation * best.to(mean)
