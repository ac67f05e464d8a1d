"""The reverse process as functions: grids, prediction types and clipping against diffusers, in float64."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_prior import PUBLISHED, SCHEDULER

from ldd.errors import UserError
from ldd.priors.reverse import ddim_invert, ddim_sample, modified_reverse, posterior
from ldd.priors.schedule import DiffusionSchedule
from ldd.runtime.seeding import generator

SHAPE = (2, 4, 8, 8)


def scheduler(**config) -> DDIMScheduler:
    """The published noise schedule, its table widened as `DiffusionSchedule` does."""
    made = DDIMScheduler(**SCHEDULER | config)
    made.alphas_cumprod, made.final_alpha_cumprod = (
        made.alphas_cumprod.double(),
        made.final_alpha_cumprod.double(),
    )
    return made


def normal(*key: object) -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator(0, *key), dtype=torch.float64)


def network(x: torch.Tensor, timestep: int) -> torch.Tensor:
    """A smooth stand-in for a U-Net that knows its timestep and mixes neighbours and channels."""
    return torch.tanh(x.roll(1, -1) - 0.3 * x.roll(1, 1) + math.sin(timestep))


def library_loop(made: DDIMScheduler, num_steps: int, x: torch.Tensor) -> torch.Tensor:
    made.set_timesteps(num_steps)
    for timestep in made.timesteps[:num_steps]:
        x = made.step(network(x, int(timestep)), int(timestep), x, eta=0.0).prev_sample
    return x


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 5, 7, 10, 61, 999])
def test_grid_is_the_library_s(spacing, num_steps):
    made = scheduler(timestep_spacing=spacing)
    steps = DiffusionSchedule(made).steps(num_steps)
    made.set_timesteps(num_steps)
    assert (
        len(steps) == num_steps
    )  # the library gives 62 timesteps for 61 "trailing" ones, the last of them -1
    assert [step.timestep for step in steps] == made.timesteps[:num_steps].tolist()
    for step in steps:
        previous = step.timestep - 1000 // num_steps
        end = made.alphas_cumprod[previous] if previous >= 0 else made.final_alpha_cumprod
        for level, abar in ((step.level, float(made.alphas_cumprod[step.timestep])), (step.end, float(end))):
            assert level == (math.sqrt(abar), math.sqrt(1 - abar))


@pytest.mark.parametrize("num_steps", [1, 7, 10, 30, 60, 70, 80, 90, 334])
def test_grid_of_compvis(num_steps):
    """Its `make_ddim_timesteps` and `make_ddim_sampling_parameters`, written out."""
    made = scheduler()
    abar = made.alphas_cumprod.tolist()
    steps = DiffusionSchedule(made, "compvis").steps(num_steps)
    timesteps = [t + 1 for t in range(0, 1000, 1000 // num_steps)]
    assert [step.timestep for step in steps] == timesteps[::-1]
    before = [abar[0], *(abar[t] for t in timesteps[:-1])][::-1]
    for step, start, end in zip(steps, timesteps[::-1], before, strict=True):
        assert step.level == (math.sqrt(abar[start]), math.sqrt(1 - abar[start]))
        assert step.end == (math.sqrt(end), math.sqrt(1 - end))


def test_a_grid_of_compvis_has_more_steps_where_they_do_not_divide_the_table():
    counts = {n: len(DiffusionSchedule(scheduler(), "compvis").steps(n)) for n in (10, 30, 60, 70, 80, 90)}
    assert counts == {10: 10, 30: 31, 60: 63, 70: 72, 80: 84, 90: 91}
    schedule = DiffusionSchedule(scheduler(), "compvis")
    x = modified_reverse(network, normal("Z"), normal("n"), schedule, 30)  # w runs over all 31
    assert x.isfinite().all()
    with pytest.raises(UserError, match="leads to timestep 1000"):
        schedule.steps(1000)
    with pytest.raises(UserError, match="grid='even' is unknown"):
        DiffusionSchedule(scheduler(), "even")


@pytest.mark.parametrize(("spacing", "num_steps"), [("trailing", 30), ("linspace", 10), ("leading", 30)])
def test_joined_steps_have_no_gaps(spacing, num_steps):
    made = scheduler(timestep_spacing=spacing)
    plain, joined = (DiffusionSchedule(made, grid).steps(num_steps) for grid in ("diffusers", "joined"))
    assert [step.timestep for step in plain] == [step.timestep for step in joined]
    assert all(one.end == other.level for one, other in itertools.pairwise(joined))
    gaps = [one.end != other.level for one, other in itertools.pairwise(plain)]
    assert any(gaps) == (spacing != "leading")


@pytest.mark.parametrize("num_steps", [4, 10])
def test_ancestral_steps_are_the_library_s(num_steps):
    """`DDIMScheduler.step` with eta 1, which is DDPM with the smaller variance; absolute error 1e-9."""
    made = scheduler()
    draws = [normal("fresh", k) for k in range(num_steps)]
    x = start = normal("n")
    made.set_timesteps(num_steps)
    for k, timestep in zip(range(num_steps - 1, -1, -1), made.timesteps, strict=True):
        noise = draws[k] if k else torch.zeros(SHAPE, dtype=torch.float64)
        output = network(x, int(timestep))
        x = made.step(output, int(timestep), x, eta=1.0, variance_noise=noise).prev_sample
    fresh = iter(draws[:0:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, generator: next(fresh))
        schedule = DiffusionSchedule(made)
        found = ddim_sample(network, start, schedule, num_steps, ancestral=generator(0))
    assert (found - x).abs().max() < 1e-9


def test_the_posterior_of_ddpm():
    """beta~ = (1 - abar') / (1 - abar) (1 - abar / abar'), and the mean's two coefficients (Ho et al. 2020, eq. 7)."""
    for step in DiffusionSchedule(scheduler()).steps(10):
        abar, end = step.level.signal**2, step.end.signal**2
        beta = 1 - abar / end
        deviation, kept = posterior(step)
        assert deviation**2 == pytest.approx((1 - end) / (1 - abar) * beta, abs=1e-12)
        x0, e = 0.7, -1.3
        x = step.level.signal * x0 + step.level.noise * e
        mean = math.sqrt(end) * beta / (1 - abar) * x0 + math.sqrt(1 - beta) * (1 - end) / (1 - abar) * x
        assert step.end.signal * x0 + kept * e == pytest.approx(mean, abs=1e-12)


def test_published_grid():
    """Values printed for the released ImageNet model at 10 steps."""
    steps = DiffusionSchedule(scheduler()).steps(10)
    printed = [
        0.000858,
        0.004120,
        0.015483,
        0.046502,
        0.114005,
        0.232975,
        0.405216,
        0.612443,
        0.821146,
        0.996994,
    ]
    assert [step.timestep for step in steps] == list(range(901, 0, -100))
    assert [step.level.signal**2 for step in steps] == pytest.approx(printed, abs=5e-7)
    assert steps[-1].end.signal ** 2 == pytest.approx(0.9985, abs=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("num_steps", [1, 7, 10])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"set_alpha_to_one": True},
        {"clip_sample": True, "clip_sample_range": 0.8},
        {"timestep_spacing": "trailing"},
    ],
    ids=["plain", "alpha to one", "clipped", "trailing"],
)
def test_skip_none_and_sampling_equal_the_library(prediction, num_steps, config):
    made = scheduler(prediction_type=prediction, **config)
    latents, noise = normal("latents"), normal("noise")
    made.set_timesteps(num_steps)
    noised = made.add_noise(latents, noise, made.timesteps[:1])
    schedule = DiffusionSchedule(scheduler(prediction_type=prediction, **config))
    ours = modified_reverse(network, latents, noise, schedule, num_steps, skip="none")
    torch.testing.assert_close(ours, library_loop(made, num_steps, noised), rtol=0, atol=1e-9)
    sampled = ddim_sample(network, noise, schedule, num_steps)
    torch.testing.assert_close(sampled, library_loop(made, num_steps, noise), rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_steps", [2, 10])
def test_zero_terminal_signal(num_steps):
    """At abar = 0 `v_prediction` equals the library; `epsilon` determines nothing and is refused."""
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    made = scheduler(prediction_type="v_prediction", **config)
    assert made.alphas_cumprod[-1] == 0
    ours = ddim_sample(network, normal("noise"), DiffusionSchedule(made), num_steps)
    torch.testing.assert_close(ours, library_loop(made, num_steps, normal("noise")), rtol=0, atol=1e-9)
    with pytest.raises(
        UserError, match=r"prediction_type='epsilon' is undefined at the noise level abar=0\.0"
    ):
        DiffusionSchedule(scheduler(**config)).steps(num_steps)


@pytest.mark.parametrize("skip", ["clean", "none"])
@pytest.mark.parametrize("num_steps", [1, 10, 20])
def test_gradient_of_latents_with_the_output_held_constant(skip, num_steps):
    """It telescopes to sqrt(abar_0) = 0.9992 on the published betas, whatever the number of steps."""
    latents = normal("latents").requires_grad_()
    held = normal("output")
    result = modified_reverse(
        lambda x, t: held, latents, normal("noise"), DiffusionSchedule(scheduler()), num_steps, skip=skip
    )
    (gradient,) = torch.autograd.grad(result.sum(), latents)
    torch.testing.assert_close(gradient, torch.full(SHAPE, math.sqrt(1 - 0.0015)).double(), rtol=0, atol=1e-7)
    assert round(gradient[0, 0, 0, 0].item(), 4) == 0.9992


@pytest.mark.parametrize(("strength", "run"), [(1.0, 10), (0.6, 6), (0.58, 6), (0.01, 1)])
def test_start_and_strength(strength, run):
    made = scheduler()
    start, noise = normal("start"), normal("noise")
    made.set_timesteps(10)
    x = made.add_noise(start, noise, made.timesteps[10 - run : 11 - run])
    for timestep in made.timesteps[10 - run :]:
        x = made.step(network(x, int(timestep)), int(timestep), x).prev_sample
    ours = ddim_sample(network, noise, DiffusionSchedule(scheduler()), 10, start=start, strength=strength)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)


def test_guide_is_added_to_the_clean_latents():
    """A guide that replaces the prediction decides the result of a schedule that ends at abar = 1."""
    asked = []
    target = normal("target")

    def guide(x0: torch.Tensor, k: int) -> torch.Tensor:
        asked.append(k)
        return target - x0

    schedule = DiffusionSchedule(scheduler(set_alpha_to_one=True))
    sampled = ddim_sample(network, normal("noise"), schedule, 5, guide=guide)
    assert asked == [4, 3, 2, 1, 0]
    torch.testing.assert_close(sampled, target, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_inversion_converges_with_the_steps(prediction):
    """The way there and back misses by O(1 / S)."""
    schedule = DiffusionSchedule(scheduler(prediction_type=prediction, set_alpha_to_one=True))
    noise = normal("noise")
    # A denoiser that is right about data with variance one: E[x0 | x] = sqrt(abar) x.
    table = scheduler().alphas_cumprod

    def predict(x: torch.Tensor, timestep: int) -> torch.Tensor:
        abar = table[timestep]
        x0, e = abar.sqrt() * x, (1 - abar).sqrt() * x
        return {"epsilon": e, "sample": x0, "v_prediction": abar.sqrt() * e - (1 - abar).sqrt() * x0}[
            prediction
        ]

    def miss(num_steps: int) -> float:
        back = ddim_invert(predict, ddim_sample(predict, noise, schedule, num_steps), schedule, num_steps)
        return ((back - noise).norm() / noise.norm()).item()

    assert miss(200) < 0.02
    assert miss(200) < 0.6 * miss(100)


def test_inversion_is_exact_where_the_noise_is_known():
    schedule, held, noise = DiffusionSchedule(scheduler()), normal("output"), normal("noise")
    sampled = ddim_sample(lambda x, t: held, noise, schedule, 10)
    inverted = ddim_invert(lambda x, t: held, sampled, schedule, 10)
    torch.testing.assert_close(inverted, noise, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("num_steps", "config", "message"),
    [
        (0, {}, "num_steps=0 must be at least 1"),
        (-3, {}, "num_steps=-3 must be at least 1"),
        (1001, {}, "num_steps=1001 exceeds the 1000 timesteps"),
        (
            1000,
            {},
            r"num_steps=1000 leads to timestep 1000, outside 0\.\.999 \(spacing 'leading', steps_offset 1\)",
        ),
    ],
)
def test_bad_number_of_steps(num_steps, config, message):
    with pytest.raises(UserError, match=message):
        DiffusionSchedule(scheduler(**config)).steps(num_steps)


def test_thousand_steps_without_offset():
    assert len(DiffusionSchedule(scheduler(steps_offset=0)).steps(1000)) == 1000


def test_unsupported_schedules():
    with pytest.raises(UserError, match=r"thresholding=True .* not supported; set it to false"):
        DiffusionSchedule(DDIMScheduler(**PUBLISHED, thresholding=True))
    with pytest.raises(
        UserError, match="prediction_type='flow' is unknown; it must be one of epsilon, v_pred"
    ):
        DiffusionSchedule(DDIMScheduler(**PUBLISHED, prediction_type="flow"))


def test_unknown_skip():
    with pytest.raises(UserError, match="skip='linear' is unknown; choose one of clean, noised, none"):
        modified_reverse(network, normal("z"), normal("n"), DiffusionSchedule(scheduler()), 5, skip="linear")


@pytest.mark.parametrize("strength", [0.0, 1.5, math.nan])
def test_bad_strength(strength):
    with pytest.raises(UserError, match=r"strength=\S+ must lie in \(0, 1\]"):
        ddim_sample(
            network, normal("n"), DiffusionSchedule(scheduler()), 5, start=normal("z"), strength=strength
        )


def test_strength_without_start():
    with pytest.raises(UserError, match=r"strength=0\.5 needs start"):
        ddim_sample(network, normal("n"), DiffusionSchedule(scheduler()), 5, strength=0.5)


@pytest.mark.parametrize(("strength", "run"), [(1.0, 10), (0.6, 6), (0.01, 1)])
def test_partial_inversion_and_the_way_back(strength, run):
    """Exact where the noise is known; the state lies at the noise level where the last steps begin."""
    schedule, held, clean = DiffusionSchedule(scheduler()), normal("output"), normal("clean")
    state = ddim_invert(lambda x, t: held, clean, schedule, 10, strength)
    back = ddim_sample(lambda x, t: held, normal("unused"), schedule, 10, state=state, strength=strength)
    torch.testing.assert_close(back, clean, rtol=0, atol=1e-9)
    made = scheduler()
    made.set_timesteps(10)
    first, final = made.alphas_cumprod[made.timesteps[10 - run]], made.final_alpha_cumprod
    x0 = (clean - (1 - final).sqrt() * held) / final.sqrt()
    expected = first.sqrt() * x0 + (1 - first).sqrt() * held
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-9)


def test_two_places_to_begin():
    with pytest.raises(UserError, match=r"start \(clean latents\) and state \(noisy ones\)"):
        ddim_sample(
            network,
            normal("n"),
            DiffusionSchedule(scheduler()),
            5,
            start=normal("z"),
            state=normal("z"),
            strength=0.5,
        )
    with pytest.raises(UserError, match=r"strength=0 must lie in \(0, 1\]"):
        ddim_invert(network, normal("z"), DiffusionSchedule(scheduler()), 5, 0)
