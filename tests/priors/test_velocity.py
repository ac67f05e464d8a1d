"""Velocities along the straight path, of priors that have learned another one: closed forms of Gaussian data."""

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from tiny_prior import SCHEDULER

from ldd.errors import UserError
from ldd.priors.consistency import ConsistencySchedule
from ldd.priors.schedule import DiffusionSchedule, FlowSchedule
from ldd.runtime.seeding import generator

MEAN, DEVIATION = 0.7, 0.6  # of clean latents, in every element


def means(x, a, b):
    """E[z | x] and E[n | x] of x = a z + b n, by the formula of a Gaussian posterior."""
    left = (x - a * MEAN) / (a**2 * DEVIATION**2 + b**2)
    return MEAN + a * DEVIATION**2 * left, b * left


def wide(values):
    return values[:, None, None, None]


def answer(kind, z, n, a, b):
    return {"epsilon": n, "sample": z, "v_prediction": a * n - b * z, "flow": n - z}[kind]


def points(n=6):
    draws = generator(0)
    return torch.randn(n, 2, 3, 3, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_of_a_diffusion_model_at_its_own_timesteps(kind):
    """It is asked at the timestep with the same ratio of noise to signal, and at latents of that size."""
    scheduler = DDIMScheduler(**(SCHEDULER | {"prediction_type": kind}))
    steps = torch.tensor([0, 1, 20, 400, 700, len(scheduler.alphas_cumprod) - 1])
    abar = scheduler.alphas_cumprod.double()[steps]
    t = (1 - abar).sqrt() / (abar.sqrt() + (1 - abar).sqrt())
    asked = []

    def predict(x, timestep):
        asked.append(timestep)
        a, b = wide(abar.sqrt()), wide((1 - abar).sqrt())
        return answer(kind, *means(x, a, b), a, b)

    x = points()
    found = DiffusionSchedule(scheduler).velocity(predict, x, t)
    z, n = means(x, 1 - wide(t), wide(t))
    assert (asked[0] - steps).abs().max() < 1e-6
    assert (found - (n - z)).abs().max() < 1e-6


def test_of_a_diffusion_model_between_and_beyond_its_timesteps():
    scheduler = DDIMScheduler(**SCHEDULER)
    schedule, abar, asked = DiffusionSchedule(scheduler), scheduler.alphas_cumprod.double(), []

    def predict(x, timestep):
        asked.append(timestep)
        return torch.zeros_like(x)

    schedule.velocity(predict, points(3), torch.tensor([0.0, 0.5, 1.0]).double())
    first, middle, last = asked[0].tolist()
    assert (first, last) == (0, len(abar) - 1)
    below, above = abar[int(middle)], abar[int(middle) + 1]
    assert below > 0.5 > above  # as much noise as signal


@pytest.mark.parametrize("kind", ["flow", "epsilon", "sample"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_of_a_flow(kind, shift):
    """The path is its own; a shift moves the steps of a grid and not the path."""
    t = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.97, 0.99]).double()

    def predict(x, timestep):
        a, b = 1 - wide(timestep / 1000), wide(timestep / 1000)
        return answer(kind, *means(x, a, b), a, b)

    x = points()
    found = FlowSchedule(shift, prediction_type=kind).velocity(predict, x, t)
    z, n = means(x, 1 - wide(t), wide(t))
    assert (found - (n - z)).abs().max() < 1e-10


@pytest.mark.parametrize(
    "schedule",
    [
        FlowSchedule(prediction_type="average_velocity"),
        ConsistencySchedule(),
        DiffusionSchedule(LCMScheduler(), method="lcm"),
        DiffusionSchedule(LCMScheduler(), method="tcd"),
    ],
    ids=["average", "consistency", "lcm", "tcd"],
)
def test_priors_of_few_steps_know_none(schedule):
    assert schedule.takes_few_steps
    with pytest.raises(UserError, match="a prior of one or few steps knows none between them"):
        schedule.velocity(lambda x, t: x, points(2), torch.tensor([0.2, 0.4]))
