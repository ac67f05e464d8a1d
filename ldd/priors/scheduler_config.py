"""Read the config of one of diffusers' schedulers: which are known, and which settings would mean something else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

from ldd.errors import UserError
from ldd.priors.consistency import ConsistencySchedule
from ldd.priors.loading import read_json
from ldd.priors.schedule import DiffusionSchedule, FlowSchedule, Grid, Method, Schedule

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

Not among them: flow matching and consistency models (LCM, TCD, those of pixels), which are read as what they are, and
EDM.
"""
FLOW = "FlowMatchEulerDiscreteScheduler"
EULER = "EulerDiscreteScheduler"
CONSISTENCY = "CMStochasticIterativeScheduler"
DISTILLED = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}
"""Samplers of models that were distilled for them."""
_CONSISTENCY = (
    "num_train_timesteps",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "s_noise",
    "rho",
    "clip_denoised",
)
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
MOST_TIMESTEPS = 100_000
_OTHER_NOISE = ("use_flow_sigmas",)


def check_flow(path: Path, config: Mapping[str, Any]) -> None:
    """Raise for a setting that makes another path of flow matching."""
    for name, meaning in _OTHER_GRIDS.items():
        if config.get(name):
            raise UserError(
                f"{path} says {name}={config[name]!r} ({meaning}), which is not supported; set it to its default there "
                "if the model works without it"
            )


def check_family(path: Path, config: Mapping[str, Any]) -> None:
    """Raise for a scheduler whose noise levels no table of betas gives, or that does not say them."""
    saved_by = config.get(
        "_class_name", "DDIMScheduler" if "beta_schedule" in config else "unnamed scheduler"
    )
    cure = (
        "if the model was trained with a table of betas, save a DDIMScheduler with that table there; else take another "
        "prior"
    )
    if saved_by not in (*_FAMILY, *DISTILLED):
        raise UserError(
            f"{path} is the config of a {saved_by}, whose noise levels are not a DDIMScheduler's; {cure}"
        )
    if saved_by == "DDIMScheduler":
        return
    if saved_by in DISTILLED:
        if missing := [name for name in (*_BETAS, "clip_sample") if name not in config]:
            raise UserError(f"{path} is the config of a {saved_by} and lacks {', '.join(missing)}; {cure}")
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


def load_schedule(folder: Path, grid: Grid = "diffusers") -> Schedule:
    """Load the schedule in `folder`: of a flow, or read as DDIM, whichever scheduler of that family saved it.

    Samplers for which models were distilled are read as what they are: LCM, TCD, Euler's method with trailing timesteps
    (SD-Turbo), and that of consistency models.
    """
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise UserError(f"component {folder.name!r} is missing: no scheduler_config.json in {folder}")
    config = read_json(path, infinite=True)  # diffusers writes -Infinity, of settings that DDIM does not have
    name = config.get("_class_name")
    method = DISTILLED.get(str(name), "ddim")
    if name == EULER and config.get("timestep_spacing") == "trailing":
        method, config = "euler", {**config, "clip_sample": False}  # it never clips
    if name == FLOW:
        check_flow(path, config)
    elif name != CONSISTENCY:
        check_family(path, config)
    timesteps = config.get("num_train_timesteps", 1)
    if type(timesteps) is not int or not 1 <= timesteps <= MOST_TIMESTEPS:
        raise UserError(
            f"{path}: num_train_timesteps is {timesteps!r}; it must be a number up to {MOST_TIMESTEPS}"
        )
    if grid != "diffusers" and name in (FLOW, CONSISTENCY):
        raise UserError(f"grid={grid!r} is for tables of betas; {path} has none: leave it out")
    kind = {"lcm": LCMScheduler, "tcd": TCDScheduler}.get(method, DDIMScheduler)
    try:
        if name == FLOW:
            known = {name: config[name] for name in ("shift", "prediction_type") if name in config}
            return FlowSchedule(num_train_timesteps=timesteps, **known)
        if name == CONSISTENCY:
            return ConsistencySchedule(**{key: config[key] for key in _CONSISTENCY if key in config})
        return DiffusionSchedule(kind.from_config(config), grid, method=cast(Method, method))
    except UserError:
        raise
    except Exception as error:  # of values of any kind
        used = name if name in (FLOW, CONSISTENCY) else kind.__name__
        raise UserError(f"{path} cannot be used as {used}: {error}") from error
