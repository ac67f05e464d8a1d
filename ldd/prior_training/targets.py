"""What a denoiser learns to predict: noise, velocities along a straight path, or their averages over a part of it.

A target draws a batch's noise and times, measures the error of a network there, and names the scheduler under which
the trained network samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import Literal, final

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss

from ldd.prior_training.architectures import ClassUNet
from ldd.prior_training.losses import learning_rate
from ldd.prior_training.teacher import FrozenTeacher
from ldd.priors.reverse import check_guidance
from ldd.priors.schedule import AVERAGE, DiffusionSchedule, FlowSchedule, Interval, Schedule, Times
from ldd.runtime.precision import without_autocast

Network = Callable[[Tensor, Times, Tensor], Tensor]
"""`network(x, times, rows)` -> prediction (N, c, h, w) for noisy latents x under class rows (N,)."""

TIMESTEPS = 10  # of averages: derivatives in time need slow sinusoids (arXiv:2410.11081, section 4.1)
_AT_ZERO = 0.5  # share of the intervals that end at clean latents, as one step does
_EMPTY = 0.25  # share of the intervals without a length, where the average is the velocity itself
_SOFT = 1e-3  # of the pseudo-Huber error, below which it is a square


class Target(ABC):
    """What a denoiser learns. Subclasses are final.

    Attributes:
        error_name: what its error is called in a model card.
        scheduler: what the prior folder gets.
        schedule: the same, as samples are drawn.
    """

    error_name: str
    scheduler: SchedulerMixin
    schedule: Schedule

    @abstractmethod
    def draw(self, n: int, shape: tuple[int, ...], draws: torch.Generator) -> tuple[Tensor, ...]:
        """Return standard normal noise (n, c, h, w) of `shape` (c, h, w), and times (n,)."""

    @abstractmethod
    def error(self, network: Network, latents: Tensor, rows: Tensor, noise: Tensor, *times: Tensor) -> Tensor:
        """Return the network's error, 0-d, a mean over clean latents (N, c, h, w) under class rows (N,)."""


@final
class Noise(Target):
    """The noise of a diffusion model (Ho et al. 2020, equation 14), at timesteps of a scaled-linear table."""

    error_name = "noise error"

    def __init__(self, beta_start: float, beta_end: float) -> None:
        self.scheduler = DDIMScheduler(
            num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=beta_start, beta_end=beta_end,
            prediction_type="epsilon", timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False,
            clip_sample=False,
        )  # fmt: skip
        self.schedule = DiffusionSchedule(self.scheduler)

    def draw(self, n: int, shape: tuple[int, ...], draws: torch.Generator) -> tuple[Tensor, ...]:
        """Return noise and whole timesteps, all equally likely."""
        noise = torch.randn(n, *shape, generator=draws)
        return noise, torch.randint(self.scheduler.config.num_train_timesteps, (n,), generator=draws)

    def error(self, network: Network, latents: Tensor, rows: Tensor, noise: Tensor, *times: Tensor) -> Tensor:
        """Return the mean squared error of the predicted noise."""
        noisy = self.scheduler.add_noise(latents, noise, times[0])
        predicted = network(noisy, times[0], rows)
        return mse_loss(predicted, noise)


@final
class Velocity(Target):
    """The velocity n - z of the straight path x = (1 - t) z + t n (flow matching, arXiv:2210.02747).

    Times are logit-normal (arXiv:2403.03206, equation 19, with mean 0 and deviation 1): most of them in the middle.

    Args:
        timesteps: T; the network is told t T.
        of_intervals: the network is told both ends of an interval, which are the same here.
    """

    error_name = "error of the velocity"

    def __init__(self, timesteps: int = 1000, *, of_intervals: bool = False) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=timesteps)
        self.schedule = FlowSchedule(num_train_timesteps=timesteps)
        self._timesteps, self._of_intervals = timesteps, of_intervals

    def draw(self, n: int, shape: tuple[int, ...], draws: torch.Generator) -> tuple[Tensor, ...]:
        """Return noise and times in (0, 1)."""
        return torch.randn(n, *shape, generator=draws), torch.randn(n, generator=draws).sigmoid()

    def error(self, network: Network, latents: Tensor, rows: Tensor, noise: Tensor, *times: Tensor) -> Tensor:
        """Return the mean squared error of the predicted velocity."""
        told = times[0] * self._timesteps
        predicted = network(
            mixture(latents, noise, times[0]), Interval(told, told) if self._of_intervals else told, rows
        )
        return mse_loss(predicted, noise - latents)


@final
class AverageVelocity(Target):
    """The average of the velocity v over times r to t (MeanFlow, arXiv:2505.13447), which takes one step from t to r.

    It is u(x, r, t) = v(x, t) - (t - r) du/dt, with the derivative along the path (their equation 6) taken in forward
    mode. Here v, there that of one pair of latents and noise, is what a `teacher` predicts under guidance: guidance is
    learned in, and what is learned varies with latents and noise alone.

    Args:
        teacher: knows velocities, as `Velocity` teaches them to networks of intervals.
        guidance: scale of the teacher's guidance; 1: none.
        null: row of the null condition.
        timesteps: T; the network is told r T and t T.
    """

    error_name = "error of the average velocity"

    def __init__(self, teacher: Network, guidance: float, null: int, timesteps: int) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=timesteps)
        self.scheduler.register_to_config(prediction_type=AVERAGE)
        self.schedule = FlowSchedule(num_train_timesteps=timesteps, prediction_type=AVERAGE)
        self._teacher, self._guidance, self._null, self._timesteps = teacher, guidance, null, timesteps

    def draw(self, n: int, shape: tuple[int, ...], draws: torch.Generator) -> tuple[Tensor, ...]:
        """Return noise, times t in [0, 1) and their ends r <= t: 0 for a half, t itself for a quarter."""
        noise = torch.randn(n, *shape, generator=draws)
        t, share, kind = torch.rand(3, n, generator=draws).unbind()
        share = share.where(kind >= _AT_ZERO, 0.0).where(kind < 1 - _EMPTY, 1.0)
        return noise, t, t * share

    def error(self, network: Network, latents: Tensor, rows: Tensor, noise: Tensor, *times: Tensor) -> Tensor:
        """Return the mean over latents of the root mean squared error (pseudo-Huber, arXiv:2310.14189)."""
        t, r = times
        x = mixture(latents, noise, t)
        with torch.no_grad():
            wanted = self._average(network, x, rows, t, r)
        error = (network(x, self._told(t, r), rows) - wanted).square().flatten(1).mean(1)
        return ((error + _SOFT**2).sqrt() - _SOFT).mean()

    def _told(self, t: Tensor, r: Tensor) -> Interval[Tensor]:
        return Interval(t * self._timesteps, r * self._timesteps)

    def _average(self, network: Network, x: Tensor, rows: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Return what the identity says of the average where the network's own derivative is put in."""
        velocity = self._velocity(x, rows, t)
        moving = (t > r).nonzero().flatten()
        if not len(moving):
            return velocity
        x, rows, t, r = x[moving], rows[moving], t[moving], r[moving]
        # Only this attention has derivatives in forward mode, and not in half precision everywhere.
        with without_autocast(), sdpa_kernel(SDPBackend.MATH):
            derivative = torch.func.jvp(
                lambda x, t: network(x, self._told(t, r), rows),
                (x, t),
                (velocity[moving].float(), torch.ones_like(t)),
            )[1]
        length = (t - r)[:, None, None, None]
        return velocity.index_put((moving,), velocity[moving] - (length * derivative).to(velocity))

    def _velocity(self, x: Tensor, rows: Tensor, t: Tensor) -> Tensor:
        given = self._teacher(x, self._told(t, t), rows)
        if self._guidance == 1:
            return given
        without = self._teacher(x, self._told(t, t), torch.full_like(rows, self._null))
        return without + self._guidance * (given - without)


def mixture(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return (1 - t) z + t n for times (N,)."""
    t = t[:, None, None, None]
    return (1 - t) * latents + t * noise


@final
class Lessons(nn.Module):
    """What a denoiser learns, one target after the other: noise, velocities, or velocities and then their averages.

    Args:
        path: of `diffusion` or of a `flow`.
        velocity_steps: training steps of the first of two targets; 0 where there is one.
        denoiser: of intervals, where averages are learned; its averaged weights become the teacher's.
        frozen: a teacher that is there already; None where there is none or the denoiser's averaged weights are it.
        guidance: see `AverageVelocity`.
        betas: ends of the noise schedule of a diffusion.
    """

    def __init__(
        self,
        path: Literal["diffusion", "flow"],
        velocity_steps: int,
        denoiser: ClassUNet,
        frozen: FrozenTeacher | None,
        guidance: float,
        betas: tuple[float, float],
    ) -> None:
        super().__init__()
        check_guidance(guidance)
        self.velocity_steps = velocity_steps
        self.guidance: float | None = None
        self.first: Target = Velocity() if path == "flow" else Noise(*betas)
        self.last: Target = self.first
        own = frozen is None and velocity_steps > 0
        self.teacher: ClassUNet | None = deepcopy(denoiser).requires_grad_(False) if own else None
        if (teacher := frozen or self.teacher) is not None:
            null = denoiser.class_embedding.num_embeddings - 1
            left = guidance if own else 1.0  # a frozen teacher is guided already
            self.first = self.last = AverageVelocity(teacher, left, null, TIMESTEPS)
            self.guidance = guidance
        if velocity_steps:
            self.first = Velocity(TIMESTEPS, of_intervals=True)

    def target(self, step: int) -> Target:
        """Return what is learned in a step of the denoiser."""
        return self.first if step < self.velocity_steps else self.last

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the share of the peak in one of the denoiser's `steps`: it rises and falls for each target."""
        begin, end = (0, self.velocity_steps) if step < self.velocity_steps else (self.velocity_steps, steps)
        return learning_rate(step - begin, end - begin)

    def begin(self, step: int, denoiser: ClassUNet, averaged: nn.Module) -> None:
        """Where averages come next, let averaged weights be the teacher's, and those that the denoiser goes on with."""
        if self.velocity_steps and step == self.velocity_steps:
            if self.teacher is not None:
                self.teacher.load_state_dict(averaged.state_dict())
            denoiser.load_state_dict(averaged.state_dict())

    def facts(self) -> dict[str, str]:
        """Return what a model card says of them."""
        if self.guidance is None:
            return {}
        first = f"the denoiser's first {self.velocity_steps:,} steps learned velocities, the others their averages"
        return {
            "one step": f"{first if self.velocity_steps else 'the denoiser learned averages of velocities'} under "
            f"guidance {self.guidance:g}, which is learned in: num_steps=1, guidance_scale=1"
        }
