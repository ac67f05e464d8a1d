"""Schedulers by name: those of DDIM's family are read, all others refused; values that diffusers itself writes."""

import json
import shutil
from inspect import signature

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from tiny_prior import SCHEDULER

from ldd.errors import UserError
from ldd.priors.consistency import ConsistencySchedule
from ldd.priors.schedule import FlowSchedule
from ldd.priors.scheduler_config import load_schedule

BETAS = {name: SCHEDULER[name] for name in ("beta_start", "beta_end", "beta_schedule")}
ALL = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax"))
DISTILLED_OR_SHIFTED = ("RePaint", "Cog")
"""With betas in their configs, for models or tasks of their own all the same."""


def saved(folder, name):
    """The config that diffusers writes for a scheduler, with these betas where it has them; None where it cannot be."""
    try:
        kind = getattr(diffusers, name)
        shutil.rmtree(folder, ignore_errors=True)
        known = signature(kind).parameters
        kind(**{key: value for key, value in BETAS.items() if key in known}).save_pretrained(folder)
    except (ImportError, TypeError, ValueError, AttributeError, RuntimeError):
        return None  # needs another package
    path = folder / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"clip_sample": False}))  # most samplers do not have it
    return config


def test_each_scheduler_of_diffusers_is_right_or_refused(tmp_path):
    """Read are those whose config, as diffusers writes it, holds betas."""
    expected = DDIMScheduler(**SCHEDULER).alphas_cumprod.double().tolist()
    read = set()
    for name in ALL:
        config = saved(tmp_path / "s", name)
        if config is None:
            continue
        if config.keys() >= BETAS.keys() and not name.startswith(DISTILLED_OR_SHIFTED):
            assert load_schedule(tmp_path / "s")._abar == expected
            read.add(name)
        elif name == "FlowMatchEulerDiscreteScheduler":
            assert isinstance(load_schedule(tmp_path / "s"), FlowSchedule)
        elif name == "CMStochasticIterativeScheduler":
            assert isinstance(load_schedule(tmp_path / "s"), ConsistencySchedule)
        else:
            with pytest.raises(UserError, match=f"config of a {name}, whose noise levels"):
                load_schedule(tmp_path / "s")
    assert len(read) >= 15


def test_infinite_settings_that_diffusers_writes(tmp_path):
    saved(tmp_path, "DPMSolverMultistepScheduler")
    assert "-Infinity" in (tmp_path / "scheduler_config.json").read_text()
    torch.testing.assert_close(
        torch.tensor(load_schedule(tmp_path)._abar), DDIMScheduler(**SCHEDULER).alphas_cumprod, atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_flow_sigmas": True}, "says use_flow_sigmas=True: a model of another kind of noise"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction' is unknown"),
        ({"beta_end": None}, "lacks beta_end"),
        ({"num_train_timesteps": None}, "lacks num_train_timesteps"),
        ({"_class_name": 3}, "config of a 3, whose noise levels"),
        ({"_class_name": "os.system"}, "config of a os.system, whose noise levels"),
        ({"beta_start": float("nan")}, "noise levels"),
        ({"beta_start": "x"}, "cannot be used as DDIMScheduler"),
        ({"num_train_timesteps": -5}, "num_train_timesteps is -5"),
        ({"num_train_timesteps": 2**40}, "num_train_timesteps is 1099511627776"),
    ],
)
def test_a_config_that_cannot_be_right(tmp_path, changes, message):
    saved(tmp_path, "DPMSolverMultistepScheduler")
    path = tmp_path / "scheduler_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=message):
        load_schedule(tmp_path)
