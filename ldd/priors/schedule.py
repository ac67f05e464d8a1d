"""The noise schedule of a prior: which timesteps its steps visit, and what a network's output means there.

`ldd.priors.reverse` asks a schedule for its grid (`steps`) and for the clean latents and noise that an output implies
(`split`); only this file knows where the noise levels come from.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Generic, Literal, NamedTuple, TypeVar, final, get_args

import torch
from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler
from torch import Tensor

from ldd.errors import UserError

_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
AVERAGE = "average_velocity"
"""Prediction type of a network that is told both ends of a step: n - z averaged over the path between (MeanFlow)."""

Grid = Literal["diffusers", "joined", "compvis"]  # see `DiffusionSchedule`


class Level(NamedTuple):
    """Shares of clean latents z and noise n in noisy latents x = signal z + noise n.

    Attributes:
        signal: sqrt(abar) of a diffusion model, 1 - sigma of a flow.
        noise: sqrt(1 - abar) of a diffusion model, sigma of a flow.
    """

    signal: float
    noise: float


Method = Literal["ddim", "euler", "lcm", "tcd"]
"""How a diffusion model steps: as DDIM, or as the samplers of distilled models, see `DiffusionSchedule`."""

Number = TypeVar("Number", float, Tensor)


class Interval(NamedTuple, Generic[Number]):
    """The part of the path that a step goes, as a network is told that predicts an average over it.

    Attributes:
        begin: timestep of its noisier end.
        end: of its cleaner end.
    """

    begin: Number
    end: Number


Time = float | Interval[float]
"""What a network is told of the time."""
Times = Tensor | Interval[Tensor]
"""The same of each latent, (N,)."""


class Step(NamedTuple):
    """One step of the grid.

    Attributes:
        timestep: what the network is told: a number of the table, or sigma times its length for a flow; for one that
            predicts averages the interval of two such numbers.
        level: noise level where the step begins.
        end: noise level where it ends.
    """

    timestep: Time
    level: Level
    end: Level


class Points(NamedTuple):
    """Timesteps (N,) that the network is told; shares of signal and noise (N, 1, 1, 1)."""

    timestep: Tensor
    signal: Tensor
    noise: Tensor


class Schedule(ABC):
    """The path from noise to clean latents: its grids, and what a network's output means at each noise level.

    Coefficients stay Python floats until they are multiplied with tensors, so that a chain is as exact as its tensors.

    Attributes:
        num_train_timesteps: T, what the timestep of pure noise is counted in.
        prediction_type: what the network predicts: `epsilon` (n), `sample` (z), `v_prediction` (signal n - noise z),
            `flow` (n - z), `average_velocity` (n - z averaged over a step) or `consistency` (what is joined to x by the
            boundary condition).
        usual_steps: S where nobody says it.
        clip: bound on the predicted clean latents, or None.
        renoised: whether each step takes the noise that the chain began with, in the place of what is predicted.
    """

    num_train_timesteps: int
    prediction_type: str
    usual_steps: int = 10
    clip: float | None = None
    renoised: bool = False

    @property
    def of_intervals(self) -> bool:
        """Whether the network is told both ends of a step."""
        return self.prediction_type == AVERAGE

    @property
    def takes_few_steps(self) -> bool:
        """Whether the prior was made for one or few steps, and knows no velocities between them."""
        return self.of_intervals or self.renoised

    @abstractmethod
    def steps(self, num_steps: int, start: float = 1.0) -> tuple[Step, ...]:
        """Return the grid of `num_steps` steps, noisiest first.

        Args:
            num_steps: S.
            start: share of the path to go, in (0, 1]: 1 begins at its noise end.

        Raises:
            UserError: a number of steps or a start out of range, or a noise level at which the prediction type
                determines nothing.
        """

    def first_state(self, noise: Tensor, step: Step) -> Tensor:
        """Return the noisy latents at which sampling begins, given standard normal noise."""
        return noise

    def split(self, output: Tensor, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Return the clean latents x0 (clipped if the config says so) and the noise e that an output at x implies."""
        x0, e = self._implied(output.to(x.dtype), x, step.level)  # a network may answer in half precision
        return (x0 if self.clip is None else x0.clamp(-self.clip, self.clip)), e

    def noise_on_the_way_back(self, output: Tensor, x: Tensor, step: Step) -> Tensor:
        """Return the noise e that an output implies for x, which lies where the step ends: to run it backwards."""
        if self.renoised:
            raise UserError(
                "scheduler: a consistency model (LCM for instance) leads from any noise to its image in one step, and "
                "cannot be inverted; take an initialiser without inversion, or another prior"
            )
        return self._implied(output.to(x.dtype), x, step.level)[1]

    def velocity(self, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity n - z (N, c, h, w) at x = (1 - t) z + t n, whichever path the network has learned.

        It is asked where clean latents and noise stand to each other as they do in x.

        Args:
            predict: the guided network.
            x: points of the straight path, (N, c, h, w).
            t: shares of noise, (N,) in [0, 1].
        """
        points, share = self._beside(t.clamp(1e-4, 1 - 1e-4)), t[:, None, None, None]
        size = (points.signal**2 + points.noise**2).sqrt() / ((1 - share) ** 2 + share**2).sqrt()
        there = x * size.to(x)
        level = Level(points.signal.to(x), points.noise.to(x))  # type: ignore[arg-type] # of each latent
        clean, noise = self._implied(predict(there, points.timestep).to(x.dtype), there, level)
        return noise - clean

    def _beside(self, t: Tensor) -> Points:
        """Points of this path with the noise-to-signal ratios t / (1 - t), or the nearest that it has."""
        raise UserError("velocity: a prior of one or few steps knows none between them; take one of many")

    def _implied(self, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        signal, noise = level
        if self.prediction_type == "epsilon":
            return (x - noise * output) / signal, output
        if self.prediction_type == "sample":
            return output, (x - signal * output) / noise
        return self._of_velocity(output, x, level)

    @abstractmethod
    def _of_velocity(self, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Clean latents and noise of a mixture x and an output that is another mixture of them."""

    def _checked(self, steps: tuple[Step, ...], num_steps: int, cure: str) -> tuple[Step, ...]:
        """Return the steps; raises where the prediction type would divide by nothing."""
        for step in steps:
            share = {"epsilon": step.level.signal, "sample": step.level.noise}.get(self.prediction_type)
            if share == 0:
                raise UserError(
                    f"scheduler: prediction_type={self.prediction_type!r} is undefined at the noise level "
                    f"abar={step.level.signal**2} that num_steps={num_steps} visits; {cure}"
                )
        return steps


@final
class DiffusionSchedule(Schedule):
    """Timesteps and noise levels of a DDIM scheduler: x = sqrt(abar) z + sqrt(1 - abar) n.

    The table is the scheduler's own, widened to float64.

    Args:
        scheduler: the prior's scheduler; only its config and its table are used.
        grid: `diffusers`: steps end T // S below their timesteps, as there; `joined`: where the next begins; `compvis`,
            as LD3M's code: every (T // S)-th timestep from 1 on, more than S if S does not divide T (31 for 30).
        method: `ddim`, or a sampler of distilled models, whose steps end where the next one begins: `euler`; `lcm`
            (arXiv:2310.04378), where what is predicted is joined to x by the boundary condition and then noised anew
            (with the chain's own noise, where diffusers draws another); `tcd` (arXiv:2402.19159) without randomness
            (gamma 0). The last two take timesteps of their training.

    Raises:
        UserError: thresholding is on, the prediction type or the grid is unknown, or noise levels are none.
    """

    def __init__(
        self,
        scheduler: DDIMScheduler | LCMScheduler | TCDScheduler,
        grid: Grid = "diffusers",
        *,
        method: Method = "ddim",
    ) -> None:
        if grid not in get_args(Grid):
            raise UserError(f"grid={grid!r} is unknown; choose one of {', '.join(get_args(Grid))}")
        if grid != "diffusers" and method in ("lcm", "tcd"):
            raise UserError(
                f"grid={grid!r} is not for {method.upper()}, whose training chose the timesteps; leave it out"
            )
        self.grid: Grid = grid
        config = scheduler.config
        if config.thresholding:
            raise UserError(
                "scheduler: thresholding=True rescales latents by a quantile, which is not supported; "
                "set it to false in scheduler_config.json"
            )
        if config.prediction_type not in _PREDICTION_TYPES:
            raise UserError(
                f"scheduler: prediction_type={config.prediction_type!r} is unknown; "
                f"it must be one of {', '.join(_PREDICTION_TYPES)}"
            )
        self.num_train_timesteps = config.num_train_timesteps
        self.prediction_type = config.prediction_type
        self.clip = config.clip_sample_range if config.clip_sample else None
        self._spacing: str = config.timestep_spacing
        self._scheduler = scheduler
        self._abar: list[float] = scheduler.alphas_cumprod.double().tolist()
        self._method = method
        last = {"ddim": float(scheduler.final_alpha_cumprod), "tcd": self._abar[0]}
        self._final_abar = last.get(method, 1.0)
        self.renoised = method == "lcm"
        if not all(0 <= level <= 1 for level in (*self._abar, self._final_abar)):
            raise UserError(
                "scheduler: its betas lead to noise levels outside [0, 1]; restore scheduler_config.json"
            )

    def steps(self, num_steps: int, start: float = 1.0) -> tuple[Step, ...]:
        """Return the grid as in `DDIMScheduler.set_timesteps` and `.step`.

        A `start` below 1 multiplies its timesteps, rounded down, and lets each step end where the next one begins.
        """
        table = self.num_train_timesteps
        check_grid(num_steps, start)
        if num_steps > table:
            raise UserError(f"num_steps={num_steps} exceeds the {table} timesteps the prior was trained with")
        most = self._scheduler.config.get("original_inference_steps", table)
        if num_steps > most:
            raise UserError(f"num_steps={num_steps} exceeds the {most} steps of the scheduler's training")
        timesteps = self._timesteps(num_steps)
        if outside := [t for t in timesteps if not 0 <= t < table]:
            raise UserError(
                f"num_steps={num_steps} leads to timestep {outside[0]}, outside 0..{table - 1} (spacing "
                f"{self._spacing!r}, steps_offset {self._scheduler.config.steps_offset}); take fewer steps"
            )
        stride = table // num_steps
        ends = [self._abar[t - stride] if t >= stride else self._final_abar for t in timesteps]
        if start < 1:
            timesteps = [int(start * t) for t in timesteps]
        if start < 1 or self._method != "ddim" or self.grid != "diffusers":
            ends = [*(self._abar[t] for t in timesteps[1:]), self._final_abar]
        steps = tuple(
            Step(t, _variance_kept(self._abar[t]), _variance_kept(end))
            for t, end in zip(timesteps, ends, strict=True)
        )
        cure = "use another timestep_spacing or a v_prediction model"
        return self._checked(steps, num_steps, f"the spacing is {self._spacing!r}; {cure}")

    @property
    def takes_few_steps(self) -> bool:  # noqa: D102 - as above; Euler's method serves models of many steps, too
        return self._method in ("lcm", "tcd")

    def first_state(self, noise: Tensor, step: Step) -> Tensor:
        """Return the noise, which Euler's method scales to its share of the first level."""
        return step.level.noise * noise if self._method == "euler" else noise

    def split(self, output: Tensor, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Return clean latents and noise; those of `lcm` are joined to x (diffusers' scalings, sigma_data 0.5)."""
        x0, e = super().split(output, x, step)
        if self._method != "lcm":
            return x0, e
        assert not isinstance(step.timestep, Interval)
        scaled = step.timestep * self._scheduler.config.timestep_scaling
        norm = scaled**2 + 0.25
        return scaled / math.sqrt(norm) * x0 + 0.25 / norm * x, e

    def _beside(self, t: Tensor) -> Points:
        """Between the whole timesteps the logarithm of the ratio is taken to be linear."""
        if self.takes_few_steps:
            return super()._beside(t)
        abar = self._scheduler.alphas_cumprod.double().clamp(min=1e-8)
        ratios = ((1 - abar) / abar).sqrt().log().to(t)  # of noise to signal, rising; in float64 here alone
        wanted = t.logit().clamp(ratios[0], ratios[-1])
        after = torch.searchsorted(ratios, wanted).clamp(1, len(ratios) - 1)
        low, high = ratios[after - 1], ratios[after]
        signal, noise = ((2 * sign * wanted).sigmoid().sqrt()[:, None, None, None] for sign in (-1, 1))
        return Points(after - 1 + (wanted - low) / (high - low), signal, noise)

    def _timesteps(self, num_steps: int) -> list[int]:
        if self.grid == "compvis":
            stride = self.num_train_timesteps // num_steps
            return [t + 1 for t in reversed(range(0, self.num_train_timesteps, stride))]
        self._scheduler.set_timesteps(num_steps)
        # For some numbers of steps rounding gives "trailing" spacing one timestep too many: -1.
        return list(map(int, self._scheduler.timesteps.tolist()[:num_steps]))

    def _of_velocity(self, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        signal, noise = level  # of squares that sum to one
        return signal * x - noise * output, signal * output + noise * x


@final
class FlowSchedule(Schedule):
    """The straight path of flow matching: x = (1 - sigma) z + sigma n (rectified flow, arXiv:2209.03003).

    S steps begin at the noise shares 1, (S - 1) / S, ..., 1 / S and end at 0, each share sigma moved to
    shift sigma / (1 + (shift - 1) sigma); a `start` multiplies the moved shares.

    Args:
        shift: of the noise shares towards noise, as large images want it; 1 leaves them even.
        num_train_timesteps: T; the network is told sigma T.
        prediction_type: see `Schedule`; models of flow matching predict `flow`, those of few steps
            `average_velocity` (MeanFlow, arXiv:2505.13447).

    Raises:
        UserError: a shift that is not positive, or an unknown prediction type.
    """

    def __init__(
        self, shift: float = 1.0, num_train_timesteps: int = 1000, prediction_type: str = "flow"
    ) -> None:
        if not 0 < shift < math.inf:
            raise UserError(f"scheduler: shift={shift} must be a positive number")
        if prediction_type not in (known := (*_PREDICTION_TYPES, "flow", AVERAGE)):
            raise UserError(
                f"scheduler: prediction_type={prediction_type!r} is unknown; it must be one of {', '.join(known)}"
            )
        self.shift = shift
        self.num_train_timesteps = num_train_timesteps
        self.prediction_type = prediction_type
        self.usual_steps = 1 if self.of_intervals else Schedule.usual_steps

    def steps(self, num_steps: int, start: float = 1.0) -> tuple[Step, ...]:
        """Return the grid of even shares, moved by the shift."""
        check_grid(num_steps, start)
        even = [k / num_steps for k in range(num_steps, -1, -1)]
        shares = [start * self.shift * sigma / (1 + (self.shift - 1) * sigma) for sigma in even]
        steps = tuple(
            Step(self._told(sigma, end), Level(1 - sigma, sigma), Level(1 - end, end))
            for sigma, end in pairwise(shares)
        )
        return self._checked(
            steps, num_steps, "begin below the noise end (start), or take a model that predicts flow"
        )

    def _beside(self, t: Tensor) -> Points:
        if self.of_intervals:
            return super()._beside(t)
        share = t[:, None, None, None]
        return Points(t * self.num_train_timesteps, 1 - share, share)

    def _told(self, sigma: float, end: float) -> Time:
        begin, end = sigma * self.num_train_timesteps, end * self.num_train_timesteps
        return Interval(begin, end) if self.of_intervals else begin

    def noise_on_the_way_back(self, output: Tensor, x: Tensor, step: Step) -> Tensor:
        """Return the noise e: a velocity is one of the whole line, so x is split where it lies, at the step's end."""
        return self._implied(output.to(x.dtype), x, step.end)[1]

    def _of_velocity(self, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        signal, noise = level
        if self.prediction_type in ("flow", AVERAGE):
            return x - noise * output, x + signal * output
        norm = signal**2 + noise**2
        return (signal * x - noise * output) / norm, (noise * x + signal * output) / norm


def _variance_kept(abar: float) -> Level:
    return Level(math.sqrt(abar), math.sqrt(1 - abar))


def check_grid(num_steps: int, start: float) -> None:
    """Raise unless a grid can have so many steps and begin there."""
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be at least 1")
    if not 0 < start <= 1:
        raise UserError(f"start={start} must lie in (0, 1]: the share of the path to go, 1 from pure noise")
