"""Flow matching as a path of the reverse process: its grid, its steps and its inversion, in float64 against Euler."""

import json
import math
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ldd.errors import UserError
from ldd.priors import LatentDiffusionPrior
from ldd.priors.reverse import ddim_invert, ddim_sample, modified_reverse
from ldd.priors.schedule import DiffusionSchedule, FlowSchedule
from ldd.priors.scheduler_config import load_schedule
from ldd.runtime.seeding import generator
from tests.priors.test_reverse import scheduler

SHAPE = (2, 4, 8, 8)


def normal(*key):
    return torch.randn(SHAPE, generator=generator(0, *key), dtype=torch.float64)


def velocity(x, timestep):
    """A smooth stand-in for a network that predicts n - z and knows its timestep."""
    return torch.tanh(x.roll(1, -1) - 0.3 * x.roll(1, 1) + math.sin(timestep / 200))


def shares(num_steps, shift=1.0, start=1.0):
    even = [k / num_steps for k in range(num_steps, -1, -1)]
    return [start * shift * s / (1 + (shift - 1) * s) for s in even]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_sampling_is_euler_s_method(num_steps, shift):
    """By hand in float64, and as the library steps on the same shares (it computes in float32)."""
    x = theirs = normal("noise")
    sigmas = shares(num_steps, shift)
    library = FlowMatchEulerDiscreteScheduler(shift=shift)
    library.set_timesteps(sigmas=[k / num_steps for k in range(num_steps, 0, -1)])
    for sigma, end, timestep in zip(sigmas, sigmas[1:], library.timesteps, strict=False):
        x = x + (end - sigma) * velocity(x, 1000 * sigma)
        theirs = library.step(velocity(theirs, float(timestep)), timestep, theirs).prev_sample.double()
    ours = ddim_sample(velocity, normal("noise"), FlowSchedule(shift), num_steps)
    assert (ours - x).abs().max() < 1e-12
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("start", [1.0, 0.6])
@pytest.mark.parametrize("skip", ["clean", "noised", "none"])
def test_modified_reverse_process(skip, start):
    """The formulas of the module's docstring, written with sigma."""
    steps, latents, noise = 5, normal("latents"), normal("noise")
    sigmas = shares(steps, 2.0, start)
    x = first = (1 - sigmas[0]) * latents + sigmas[0] * noise
    for k, (sigma, end) in zip(range(steps - 1, -1, -1), pairwise(sigmas), strict=True):
        v, w = velocity(x, 1000 * sigma), k / (steps - 1)
        x0, e = x - sigma * v, x + (1 - sigma) * v
        x0 = (1 - w) * x0 + w * latents if skip == "clean" else x0
        x = (1 - end) * x0 + end * e
        x = (1 - w) * x + w * first if skip == "noised" else x
    ours = modified_reverse(velocity, latents, noise, FlowSchedule(2.0), steps, start=start, skip=skip)
    assert (ours - x).abs().max() < 1e-12


@pytest.mark.parametrize("prediction", ["flow", "v_prediction", "sample", "epsilon"])
def test_prediction_types_mean_the_same(prediction):
    """A network that is right says the same of the two ends of the line, whichever way it says it."""
    schedule = FlowSchedule(prediction_type=prediction)
    z, n = normal("latents"), normal("noise")
    for step in schedule.steps(4, start=0.9):
        a, b = step.level
        said = {"flow": n - z, "v_prediction": a * n - b * z, "sample": z, "epsilon": n}[prediction]
        x0, e = schedule.split(said, a * z + b * n, step)
        assert (x0 - z).abs().max() < 1e-12
        assert (e - n).abs().max() < 1e-12


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_inversion_is_euler_backwards(strength):
    steps, x = 8, normal("latents")
    sigmas = shares(steps)[-round(strength * steps) - 1 :]
    for sigma, end in reversed(list(pairwise(sigmas))):
        x = x + (sigma - end) * velocity(x, 1000 * sigma)
    ours = ddim_invert(velocity, normal("latents"), FlowSchedule(), steps, strength)
    assert (ours - x).abs().max() < 1e-12


def test_there_and_back():
    state = ddim_invert(velocity, normal("latents"), FlowSchedule(), 1000)
    back = ddim_sample(velocity, state, FlowSchedule(), 1000, state=state)
    assert (back - normal("latents")).abs().max() < 0.02


def test_one_step_learns_latents_from_a_start_on_the_way():
    """From pure noise the latents leave no trace; from half the way half of them is in the first state."""
    for start, share in ((1.0, 0.0), (0.5, 0.5)):
        latents = normal("latents").requires_grad_()
        made = modified_reverse(lambda x, t: 0 * x, latents, normal("noise"), FlowSchedule(), 1, start=start)
        (gradient,) = torch.autograd.grad(made.sum(), latents)
        assert (gradient - share).abs().max() < 1e-12


def test_diffusion_from_a_start_on_the_way():
    """Timesteps are multiplied and each step ends where the next begins; all of the path is as before."""
    schedule = DiffusionSchedule(scheduler())
    steps = schedule.steps(4, start=0.5)
    assert [step.timestep for step in steps] == [int(0.5 * step.timestep) for step in schedule.steps(4)]
    assert [step.end for step in steps[:-1]] == [step.level for step in steps[1:]]
    assert steps[-1].end == schedule.steps(4)[-1].end


def test_what_the_library_saves_is_read(tmp_path):
    FlowMatchEulerDiscreteScheduler(shift=3.0, num_train_timesteps=500).save_pretrained(tmp_path)
    schedule = load_schedule(tmp_path)
    assert isinstance(schedule, FlowSchedule)
    assert (schedule.shift, schedule.num_train_timesteps, schedule.prediction_type) == (3.0, 500, "flow")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("use_dynamic_shifting", True, "use_dynamic_shifting=True .*follows from the image size"),
        ("use_karras_sigmas", True, "use_karras_sigmas"),
        ("invert_sigmas", True, "from clean latents to noise"),
        ("shift_terminal", 0.1, "ends before clean latents"),
        ("stochastic_sampling", True, "added in every step"),
        ("shift", 0, "shift=0 must be a positive number"),
        ("shift", "wide", "cannot be used as FlowMatchEulerDiscreteScheduler"),
        ("prediction_type", "velocity", "prediction_type='velocity' is unknown"),
        ("num_train_timesteps", 0, "num_train_timesteps is 0"),
    ],
)
def test_what_would_be_another_path_is_refused(tmp_path, setting, value, message):
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(UserError, match=message):
        load_schedule(tmp_path)


def test_noise_cannot_be_split_where_there_is_nothing_else():
    with pytest.raises(UserError, match=r"'epsilon' is undefined .*begin below the noise end"):
        FlowSchedule(prediction_type="epsilon").steps(4)
    for start in (0, 1.5, math.nan):
        with pytest.raises(UserError, match=r"start=.* must lie in"):
            FlowSchedule().steps(4, start)


def test_a_prior_folder_with_a_flow(tiny_prior_folder, tmp_path):
    """The same network on the straight path: guided chain and samples by hand, gradients for codes and conditions."""
    folder = tiny_prior_folder(tmp_path / "prior")
    FlowMatchEulerDiscreteScheduler(shift=1.5).save_pretrained(folder / "scheduler")
    prior = LatentDiffusionPrior(str(folder), num_steps=3, guidance_scale=2.0).double()
    conditioning = prior.embed(torch.tensor([3, 4])).detach().requires_grad_()
    latents, noise = normal("latents").requires_grad_(), normal("noise")

    def guided(x, sigma):
        timestep = torch.tensor(1000 * sigma, dtype=torch.float32)
        tokens = torch.cat([prior.null(2), conditioning])
        out = prior.unet(torch.cat([x, x]), timestep, encoder_hidden_states=tokens).sample
        without, given = out.chunk(2)
        return without + 2 * (given - without)

    sigmas, x = shares(3, 1.5), noise
    for k, (sigma, end) in zip((2, 1, 0), pairwise(sigmas), strict=True):
        v = guided(x, sigma)
        x0, e = (1 - k / 2) * (x - sigma * v) + k / 2 * latents, x + (1 - sigma) * v
        x = (1 - end) * x0 + end * e
    made = prior.denoise(latents, conditioning, noise)
    assert (made - x).abs().max() < 1e-9
    for one, other in zip(
        torch.autograd.grad(made.square().sum(), (latents, conditioning)),
        torch.autograd.grad(x.square().sum(), (latents, conditioning)),
        strict=True,
    ):
        assert other.abs().max() > 0
        assert (one - other).abs().max() < 1e-9
