"""Which schedulers of diffusers are read, and which of their settings would mean something else than what is done."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldd.errors import UserError

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

Not among them: flow matching, latent and trajectory consistency (LCM, TCD), which are read as what they are, EDM and
other consistency models.
"""
FLOW = "FlowMatchEulerDiscreteScheduler"
EULER = "EulerDiscreteScheduler"
DISTILLED = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}
"""Samplers of models that were distilled for them."""
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
