"""The noise schedule of a prior: which timesteps its steps visit, and what a network's output means there.

`ldd.priors.reverse` asks a schedule for its grid (`steps`) and for the clean latents and noise that an output implies
(`split`); only this file knows where the noise levels come from.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, final, get_args

from diffusers import DDIMScheduler
from torch import Tensor

from ldd.errors import UserError
from ldd.priors.loading import read_json

_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
AVERAGE = "average_velocity"
"""Prediction type of a network that is told both ends of a step: n - z averaged over the path between (MeanFlow)."""

_FAMILY = {
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "LMSDiscrete", "EulerDiscrete",
        "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep",
        "DPMSolverMultistepInverse", "DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep", "UniPCMultistep",
        "SASolver",
    )
}  # fmt: skip
"""Samplers of diffusers for models that were trained with a table of betas, which their configs hold.

Not among them: flow matching (`FlowMatchEulerDiscreteScheduler` is read as what it is), EDM, consistency models and
those distilled for a sampler of their own (LCM, TCD).
"""
_FLOW = "FlowMatchEulerDiscreteScheduler"
_EULER = "EulerDiscreteScheduler"
_OTHER_GRIDS = {
    "use_dynamic_shifting": "a shift that follows from the image size: save the shift that it gives, as `shift`",
    "use_karras_sigmas": "a grid of its own",
    "use_exponential_sigmas": "a grid of its own",
    "use_beta_sigmas": "a grid of its own",
    "invert_sigmas": "a path from clean latents to noise",
    "shift_terminal": "a path that ends before clean latents",
    "stochastic_sampling": "noise that is added in every step",
}
"""Settings of the flow scheduler that would make another path or grid, and what they mean."""
_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
_MOST_TIMESTEPS = 100_000
_OTHER_NOISE = ("use_flow_sigmas",)
Grid = Literal["diffusers", "joined", "compvis"]  # see `DiffusionSchedule`


class Level(NamedTuple):
    """Shares of clean latents z and noise n in noisy latents x = signal z + noise n.

    Attributes:
        signal: sqrt(abar) of a diffusion model, 1 - sigma of a flow.
        noise: sqrt(1 - abar) of a diffusion model, sigma of a flow.
    """

    signal: float
    noise: float


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


class Schedule(ABC):
    """The path from noise to clean latents: its grids, and what a network's output means at each noise level.

    Coefficients stay Python floats until they are multiplied with tensors, so that a chain is as exact as its tensors.

    Attributes:
        num_train_timesteps: T, what the timestep of pure noise is counted in.
        prediction_type: what the network predicts: `epsilon` (n), `sample` (z), `v_prediction` (signal n - noise z),
            `flow` (n - z) or `average_velocity` (n - z averaged over a step).
        clip: bound on the predicted clean latents, or None.
    """

    num_train_timesteps: int
    prediction_type: str
    clip: float | None = None

    @property
    def of_intervals(self) -> bool:
        """Whether the network is told both ends of a step."""
        return self.prediction_type == AVERAGE

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
        return self._implied(output.to(x.dtype), x, step.level)[1]

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
        joined: each step ends where the next one begins, and the last at clean latents, as Euler's method steps.
        grid: `diffusers`: steps end T // S below their timesteps, as there; `joined`: where the next begins; `compvis`,
            as LD3M's code: every (T // S)-th timestep from 1 on, more than S if S does not divide T (31 for 30).

    Raises:
        UserError: thresholding is on, the prediction type or the grid is unknown, or noise levels are none.
    """

    def __init__(self, scheduler: DDIMScheduler, grid: Grid = "diffusers", *, joined: bool = False) -> None:
        if grid not in get_args(Grid):
            raise UserError(f"grid={grid!r} is unknown; choose one of {', '.join(get_args(Grid))}")
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
        self._joined = joined
        self._final_abar = 1.0 if joined else float(scheduler.final_alpha_cumprod)
        if not all(0 <= level <= 1 for level in (*self._abar, self._final_abar)):
            raise UserError(
                "scheduler: its betas lead to noise levels outside [0, 1]; restore scheduler_config.json"
            )

    def steps(self, num_steps: int, start: float = 1.0) -> tuple[Step, ...]:
        """Return the grid as in `DDIMScheduler.set_timesteps` and `.step`.

        A `start` below 1 multiplies its timesteps, rounded down, and lets each step end where the next one begins.
        """
        table = self.num_train_timesteps
        _check_grid(num_steps, start)
        if num_steps > table:
            raise UserError(f"num_steps={num_steps} exceeds the {table} timesteps the prior was trained with")
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
        if start < 1 or self._joined or self.grid != "diffusers":
            ends = [*(self._abar[t] for t in timesteps[1:]), self._final_abar]
        steps = tuple(
            Step(t, _variance_kept(self._abar[t]), _variance_kept(end))
            for t, end in zip(timesteps, ends, strict=True)
        )
        cure = "use another timestep_spacing or a v_prediction model"
        return self._checked(steps, num_steps, f"the spacing is {self._spacing!r}; {cure}")

    def first_state(self, noise: Tensor, step: Step) -> Tensor:
        """Return the noise, which Euler's method scales to its share of the first level."""
        return step.level.noise * noise if self._joined else noise

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

    def steps(self, num_steps: int, start: float = 1.0) -> tuple[Step, ...]:
        """Return the grid of even shares, moved by the shift."""
        _check_grid(num_steps, start)
        even = [k / num_steps for k in range(num_steps, -1, -1)]
        shares = [start * self.shift * sigma / (1 + (self.shift - 1) * sigma) for sigma in even]
        steps = tuple(
            Step(self._told(sigma, end), Level(1 - sigma, sigma), Level(1 - end, end))
            for sigma, end in pairwise(shares)
        )
        return self._checked(
            steps, num_steps, "begin below the noise end (start), or take a model that predicts flow"
        )

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


def _check_grid(num_steps: int, start: float) -> None:
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be at least 1")
    if not 0 < start <= 1:
        raise UserError(f"start={start} must lie in (0, 1]: the share of the path to go, 1 from pure noise")


def load_schedule(folder: Path, grid: Grid = "diffusers") -> Schedule:
    """Load the schedule in `folder`: of a flow, or read as DDIM, whichever scheduler of that family saved it.

    Euler's method with trailing timesteps, under which SD-Turbo was distilled, is read as that.
    """
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise UserError(f"component {folder.name!r} is missing: no scheduler_config.json in {folder}")
    config = read_json(path, infinite=True)  # diffusers writes -Infinity, of settings that DDIM does not have
    flow = config.get("_class_name") == _FLOW
    euler = config.get("_class_name") == _EULER and config.get("timestep_spacing") == "trailing"
    if euler:  # which never clips
        config = {**config, "clip_sample": False}
    _check_flow(path, config) if flow else _check_family(path, config)
    timesteps = config.get("num_train_timesteps", 1)
    if type(timesteps) is not int or not 1 <= timesteps <= _MOST_TIMESTEPS:
        raise UserError(
            f"{path}: num_train_timesteps is {timesteps!r}; it must be a number up to {_MOST_TIMESTEPS}"
        )
    try:
        if flow:
            if grid != "diffusers":
                raise UserError(f"grid={grid!r} is for tables of betas; {path} is a flow: leave it out")
            known = {name: config[name] for name in ("shift", "prediction_type") if name in config}
            return FlowSchedule(num_train_timesteps=timesteps, **known)
        return DiffusionSchedule(DDIMScheduler.from_config(config), grid, joined=euler)
    except UserError:
        raise
    except Exception as error:  # of values of any kind
        raise UserError(f"{path} cannot be used as {_FLOW if flow else 'DDIMScheduler'}: {error}") from error


def _check_flow(path: Path, config: Mapping[str, Any]) -> None:
    """Raise for a setting that makes another path of flow matching."""
    for name, meaning in _OTHER_GRIDS.items():
        if config.get(name):
            raise UserError(
                f"{path} says {name}={config[name]!r} ({meaning}), which is not supported; set it to its default there "
                "if the model works without it"
            )


def _check_family(path: Path, config: Mapping[str, Any]) -> None:
    """Raise for a scheduler whose noise levels no table of betas gives, or that does not say them."""
    saved_by = config.get(
        "_class_name", "DDIMScheduler" if "beta_schedule" in config else "unnamed scheduler"
    )
    cure = (
        "if the model was trained with a table of betas, save a DDIMScheduler with that table there; else take another "
        "prior"
    )
    if saved_by not in _FAMILY:
        raise UserError(
            f"{path} is the config of a {saved_by}, whose noise levels are not a DDIMScheduler's; {cure}"
        )
    if saved_by == "DDIMScheduler":
        return
    if any(config.get(name) for name in _OTHER_NOISE):
        flag = next(name for name in _OTHER_NOISE if config.get(name))
        raise UserError(f"{path} says {flag}={config[flag]!r}: a model of another kind of noise; {cure}")
    if missing := [name for name in _BETAS if name not in config]:
        raise UserError(f"{path} is the config of a {saved_by} and lacks {', '.join(missing)}; {cure}")
    if "clip_sample" not in config:
        raise UserError(
            f"{path} is the config of a {saved_by} and does not say clip_sample; read as DDIM it would clip "
            'latents to [-1, 1]. Add "clip_sample": false (or true, if meant), or save a DDIMScheduler there'
        )
