"""Figures of a prior: what its samples look like beside real images, and what samples and steps cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from ldd.codes import PointCodes
from ldd.data import DistillationData
from ldd.distiller.memory import kept_mib, peak_mib
from ldd.distiller.module import Distiller
from ldd.evaluation.checks.neighbours import COPY_RATIO, Neighbours, by_pixels, nearest_real
from ldd.evaluation.checks.spectrum import high_frequency_gap
from ldd.evaluation.checks.spread import spread_of
from ldd.evaluation.features import FeatureNetwork
from ldd.images import ClassInfo, Labelled
from ldd.objectives import DistributionMatching
from ldd.priors import LatentDiffusionPrior
from ldd.priors.sampling import PriorSampler

REAL_BATCH = 32
"""Real images per class in the step that is timed; of smaller classes all."""

_REPETITIONS, _LONG = 5, 60.0  # of a step, which slow priors repeat for a minute at most


@dataclass(frozen=True)
class Likeness:
    """How like the real training images a set of samples is.

    Attributes:
        coverage: share of real images with a sample among their neighbours, see `Spread`.
        density: real neighbourhoods around a sample, see `Spread`; real images have about 1.
        high_frequency_gap: in decibels, see `ldd.evaluation.checks.spectrum`.
        features: of which network.
        copies_by_pixels: share of samples that are nearer to a training image than half the usual distance from one
            of these to the next of its class; None for the training images themselves.
        copies_by_features: the same between features.
    """

    coverage: float
    density: float
    high_frequency_gap: float
    features: str
    copies_by_pixels: float | None = None
    copies_by_features: float | None = None


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn, and what one of them takes.

    Attributes:
        num_steps: of DDIM or Euler.
        guidance_scale: of classifier-free guidance, 1: none.
        image_size: at which the prior draws, before images are resized to the data's.
        seconds: of an image, drawn with the others of its class.
        cpu_seconds: likewise, of all cores of the process: what other programs do does not count.
        peak_mib: the most that tensors hold at one time while one is drawn, weights left out.
    """

    num_steps: int
    guidance_scale: float
    image_size: int
    seconds: float
    cpu_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Step:
    """What a step of distillation through the prior takes, one image of each class by distribution matching.

    Attributes:
        num_steps: S of the reverse process.
        guidance_scale: of its classifier-free guidance.
        learned: what of the codes is learned: `latents` (or `noise`, where the chain keeps nothing of them) and
            `conditioning`.
        seconds: of the fastest of five, or of as many as a minute has; all take the same real images.
        cpu_seconds: likewise, of all cores of the process.
        peak_mib: the most that tensors hold at one time, weights left out; the real images' part may be most of it.
        kept_mib: what the graph of one image keeps for backward, from its code to its pixels, weights left out.
        checkpointed: parts that backward computes again here, which the free memory decides; none for `kept_mib`.
    """

    num_steps: int
    guidance_scale: float
    learned: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    peak_mib: float
    kept_mib: float
    checkpointed: int


@dataclass(frozen=True)
class Figures:
    """All figures of a prior but the accuracies of students."""

    sampling: Sampling
    likeness: Likeness
    step: Step


class RealFeatures:
    """The real training images and their features, worked out once, with which samples are compared."""

    def __init__(self, data: DistillationData, features: FeatureNetwork) -> None:
        self._data = data
        self._features = features

    @cached_property
    def _points(self) -> torch.Tensor:
        return self._features(self._data.train_images.images)

    def likeness(self, samples: Labelled, *, real: bool = False) -> Likeness:
        """Compare samples (N, 3, H, H) uint8 with the training images; `real` ones are some of these."""
        truth, points = self._data.train_images, self._features(samples.images)
        spread = spread_of(points, samples.labels, self._points, truth.labels)
        gap = high_frequency_gap(*samples, truth.images, truth.labels)
        found = spread.coverage, spread.density, gap, self._features.name
        if real:
            return Likeness(*found)
        copies = (
            by_pixels(*samples, truth),
            nearest_real(points, samples.labels, self._points, truth),
        )
        return Likeness(*found, *map(_copies, copies))


def _copies(found: Neighbours) -> float:
    return float((found.ratios < COPY_RATIO).float().mean())


def sampling_cost(prior: LatentDiffusionPrior, sampler: PriorSampler, info: ClassInfo) -> Sampling:
    """Draw the samples of a class once more, and one by itself, and measure that."""
    device = next(prior.parameters()).device
    wall, cores = _least_times(partial(sampler.images, prior, info), device, 1)
    peak = peak_mib(partial(replace(sampler, per_class=1).images, prior, info), device)
    times = wall / sampler.per_class, cores / sampler.per_class
    return Sampling(sampler.num_steps, sampler.guidance_scale, prior.image_size, *times, peak)


def step_cost(prior: LatentDiffusionPrior, data: DistillationData, seed: int, device: torch.device) -> Step:
    """Take the first step of a distillation a few times, and measure it.

    Codes learn their latents and conditions; where the chain begins at the noise alone, the noise in place of latents.
    """
    real = data.core_set.to(device)
    objective = DistributionMatching(real_batch=min(REAL_BATCH, *real.counts))
    at_noise = not prior.reads_latents
    codes = partial(PointCodes, learn_latents=not at_noise, learn_noise=at_noise)
    model = Distiller(prior, objective, data.spec, images_per_class=1, codes=codes, seed=seed).to(device)
    optimizers = objective.optimizers(model.codes, model.prior)

    def step() -> None:
        for term in objective.terms(model.context(real, 0)):
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            term.value.backward()
            for name in term.optimizers:
                optimizers[name].step()

    step()  # plans memory, and warms up
    first = torch.zeros(1, dtype=torch.int64, device=device)
    return Step(
        prior.num_steps,
        prior.guidance_scale,
        tuple(model.codes.groups()),
        *_least_times(step, device, _REPETITIONS),
        peak_mib(step, device),
        kept_mib(partial(model.synthesis, first), prior.parameters()),
        max(plan.checkpointed for plan in model.planner.plans.values()),
    )


def _least_times(run: Callable[[], object], device: torch.device, most: int) -> tuple[float, float]:
    """Return the fewest seconds, and seconds of the process's cores, of at most so many runs, a minute in all."""
    times = list[tuple[float, float]]()
    while len(times) < most and sum(wall for wall, _ in times) < _LONG:
        before = _clocks(device)
        run()
        now = _clocks(device)
        times.append((now[0] - before[0], now[1] - before[1]))
    return min(wall for wall, _ in times), min(cores for _, cores in times)


def _clocks(device: torch.device) -> tuple[float, float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()
