"""The noise schedule of a prior: which timesteps its steps visit, and what a network's output means there.

`ldd.priors.reverse` asks a schedule for its grid (`steps`) and for the clean latents and noise that an output implies
(`split`); only this file knows where the noise levels come from.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

from diffusers import DDIMScheduler
from torch import Tensor

from ldd.errors import UserError
from ldd.priors.loading import read_json

_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

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

Not among them: flow matching, EDM, consistency models and those distilled for a sampler of their own (LCM, TCD).
"""
_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
_MOST_TIMESTEPS = 100_000
_OTHER_NOISE = ("use_flow_sigmas",)


class Step(NamedTuple):
    """One step of the grid.

    Attributes:
        timestep: what the network is told.
        abar: noise level where the step begins.
        abar_prev: noise level where it ends.
    """

    timestep: int
    abar: float
    abar_prev: float


@final
class Schedule:
    """Timesteps and noise levels of a DDIM scheduler, with its prediction type and clipping.

    The table is the scheduler's own, widened to float64. Coefficients stay Python floats until they are multiplied
    with tensors, so that a chain is as exact as its tensors.

    Args:
        scheduler: the prior's scheduler; only its config and its table are used.

    Attributes:
        num_train_timesteps: T, length of the table.
        prediction_type: what the network predicts: `epsilon`, `v_prediction` or `sample`.
        clip: bound on the predicted clean latents, or None.

    Raises:
        UserError: thresholding is on, the prediction type is unknown, or noise levels are none.
    """

    def __init__(self, scheduler: DDIMScheduler) -> None:
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
        self.num_train_timesteps: int = config.num_train_timesteps
        self.prediction_type: str = config.prediction_type
        self.clip: float | None = config.clip_sample_range if config.clip_sample else None
        self._spacing: str = config.timestep_spacing
        self._scheduler = scheduler
        self._abar: list[float] = scheduler.alphas_cumprod.double().tolist()
        self._final_abar = float(scheduler.final_alpha_cumprod)
        if not all(0 <= level <= 1 for level in (*self._abar, self._final_abar)):
            raise UserError(
                "scheduler: its betas lead to noise levels outside [0, 1]; restore scheduler_config.json"
            )

    def steps(self, num_steps: int) -> tuple[Step, ...]:
        """Return the grid of `num_steps` steps, noisiest first, as in `DDIMScheduler.set_timesteps` and `.step`.

        Raises:
            UserError: fewer than one step, more than the table has, a grid that leaves the table, or a noise
                level at which the prediction type determines nothing.
        """
        table = self.num_train_timesteps
        if num_steps < 1:
            raise UserError(f"num_steps={num_steps} must be at least 1")
        if num_steps > table:
            raise UserError(f"num_steps={num_steps} exceeds the {table} timesteps the prior was trained with")
        self._scheduler.set_timesteps(num_steps)
        # For some numbers of steps rounding gives "trailing" spacing one timestep too many: -1.
        timesteps: list[int] = self._scheduler.timesteps.tolist()[:num_steps]
        assert len(timesteps) == num_steps
        outside = [t for t in timesteps if not 0 <= t < table]
        if outside:
            raise UserError(
                f"num_steps={num_steps} leads to timestep {outside[0]}, outside 0..{table - 1} (spacing "
                f"{self._spacing!r}, steps_offset {self._scheduler.config.steps_offset}); take fewer steps"
            )
        stride = table // num_steps
        steps = tuple(
            Step(t, self._abar[t], self._abar[t - stride] if t >= stride else self._final_abar)
            for t in timesteps
        )
        # v_prediction is defined at every noise level; the others divide by one of the two signal shares.
        forbidden = {"epsilon": 0.0, "sample": 1.0}.get(self.prediction_type)
        if any(step.abar == forbidden for step in steps):
            raise UserError(
                f"scheduler: prediction_type={self.prediction_type!r} is undefined at the noise level "
                f"abar={forbidden} that num_steps={num_steps} visits with spacing {self._spacing!r}; "
                "use another timestep_spacing or a v_prediction model"
            )
        return steps

    def split(self, output: Tensor, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Return the clean latents x0 (clipped if the config says so) and the noise e that an output at x implies."""
        output = output.to(x.dtype)  # under autocast the network answers in half precision
        signal, spread = math.sqrt(step.abar), math.sqrt(1 - step.abar)
        if self.prediction_type == "epsilon":
            x0, e = (x - spread * output) / signal, output
        elif self.prediction_type == "v_prediction":
            x0, e = signal * x - spread * output, signal * output + spread * x
        else:
            x0, e = output, (x - signal * output) / spread
        return (x0 if self.clip is None else x0.clamp(-self.clip, self.clip)), e


def load_schedule(folder: Path) -> Schedule:
    """Load the schedule in `folder`: read as DDIM, whichever scheduler of the family saved it."""
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise UserError(f"component {folder.name!r} is missing: no scheduler_config.json in {folder}")
    config = read_json(path, infinite=True)  # diffusers writes -Infinity, of settings that DDIM does not have
    _check_family(path, config)
    timesteps = config.get("num_train_timesteps", 1)
    if type(timesteps) is not int or not 1 <= timesteps <= _MOST_TIMESTEPS:
        raise UserError(
            f"{path}: num_train_timesteps is {timesteps!r}; it must be a number up to {_MOST_TIMESTEPS}"
        )
    try:
        return Schedule(DDIMScheduler.from_config(config))
    except UserError:
        raise
    except Exception as error:  # of values of any kind
        raise UserError(f"{path} cannot be used as DDIMScheduler: {error}") from error


def _check_family(path: Path, config: Mapping[str, Any]) -> None:
    """Raise for a scheduler whose noise levels are not those of a table of betas, or that does not say them."""
    saved_by = config.get(
        "_class_name", "DDIMScheduler" if "beta_schedule" in config else "unnamed scheduler"
    )
    cure = (
        "if the model was trained with a table of betas, save a DDIMScheduler with that table there; else take another "
        "prior"
    )
    if saved_by not in _FAMILY:
        raise UserError(
            f"{path} is the config of a {saved_by}, whose noise levels are not those of a DDIMScheduler; {cure}"
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
