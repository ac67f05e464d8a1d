"""What a denoiser learns, on Gaussian data, of which velocities and their averages are known in closed form.

Data are z ~ N(m, s^2) in every element. On the path x = (1 - t) z + t n the variance is V(t) = (1 - t)^2 s^2 + t^2, the
velocity is that of the line of conditional means, and the flow carries x - (1 - t) m along as sqrt(V).
"""

import pytest
import torch
from torch import nn

from ldd.errors import UserError
from ldd.prior_training.architectures import ClassUNet, UNetShape
from ldd.prior_training.targets import AverageVelocity, Lessons, Noise, Velocity
from ldd.priors.schedule import Interval
from ldd.runtime.seeding import generator

SHAPE, T, NULL = (2, 3, 3), 10, 2
MEANS, DEVIATIONS = torch.tensor([0.5, -1.0, 0.2]).double(), torch.tensor([0.4, 0.7, 1.1]).double()


def of_rows(rows):
    return (values[rows][:, None, None, None] for values in (MEANS, DEVIATIONS))


def wide(t):
    return t[:, None, None, None]


def variance(s, t):
    return (1 - t) ** 2 * s**2 + t**2


def velocity(x, t, rows):
    """E[n - z | x]."""
    (m, s), t = of_rows(rows), wide(t)
    return -m + (t - (1 - t) * s**2) / variance(s, t) * (x - (1 - t) * m)


def average(x, t, r, rows):
    """(x_t - x_r) / (t - r) along the flow; the velocity itself where t = r."""
    (m, s), still = of_rows(rows), wide(t == r)
    end, t, r = wide(r), wide(t), wide(r)
    there = (1 - end) * m + (variance(s, r) / variance(s, t)).sqrt() * (x - (1 - t) * m)
    here = velocity(x, t.flatten(), rows)
    return torch.where(still, here, (x - there) / torch.where(still, torch.ones_like(t), t - r))


def exact(x, told, rows):
    return average(x, told.begin / T, told.end / T, rows)


def batch(n, *key, seed=0):
    draws = generator(seed, *key)
    rows = torch.randint(2, (n,), generator=draws)
    m, s = of_rows(rows)
    return m + s * torch.randn(n, *SHAPE, generator=draws, dtype=torch.float64), rows, draws


def doubles(tensors):
    return [tensor.double() for tensor in tensors]


def test_the_exact_average_has_no_error():
    latents, rows, draws = batch(64, "exact")
    target = AverageVelocity(exact, 1.0, NULL, T)
    noise, t, r = doubles(target.draw(64, SHAPE, draws))
    assert float(target.error(exact, latents, rows, noise, t, r)) < 1e-8


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_what_is_aimed_at_is_the_identity_with_the_network_s_own_derivative(guidance):
    """v - (t - r) du/dt by central differences along the guided velocity, for a network that is wrong."""

    def network(x, told, rows):
        begin, end = wide(told.begin / T), wide(told.end / T)
        return torch.tanh(x.roll(1, -1) + begin**2 - 0.5 * end) + 0.1 * wide(rows)

    latents, rows, draws = batch(32, "identity")
    target = AverageVelocity(exact, guidance, NULL, T)
    noise, t, r = doubles(target.draw(32, SHAPE, draws))
    x = (1 - wide(t)) * latents + wide(t) * noise
    v = velocity(x, t, torch.full_like(rows, NULL))
    v = v + guidance * (velocity(x, t, rows) - v)

    def u(move):
        return network(x + move * v, Interval((t + move) * T, r * T), rows)

    wanted = v - wide(t - r) * (u(1e-5) - u(-1e-5)) / 2e-5
    squares = (network(x, Interval(t * T, r * T), rows) - wanted).square().flatten(1).mean(1)
    expected = ((squares + 1e-6).sqrt() - 1e-3).mean()
    assert float(target.error(network, latents, rows, noise, t, r)) == pytest.approx(
        float(expected), abs=1e-8
    )


def test_intervals_end_at_zero_for_half_and_are_empty_for_a_quarter():
    _, t, r = AverageVelocity(exact, 1.0, NULL, T).draw(20_000, SHAPE, generator(0))
    assert ((r >= 0) & (r <= t) & (t < 1)).all()
    assert float((r == 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((r == t).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(t.mean()) == pytest.approx(0.5, abs=0.01)


def test_one_step_is_learned_on_gaussian_data():
    """A small network, taught by the exact velocity, carries noise to data as the flow does."""
    torch.manual_seed(0)

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
            )

        def forward(self, x, told, rows):
            given = [told.begin / T, told.end / T, rows.to(x)]
            given = [wide(value).expand_as(x) for value in given]
            return self.layers(torch.stack([x, *given], -1))[..., 0]

    network = Small()
    target = AverageVelocity(exact, 1.0, NULL, T)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for step in range(400):
        latents, rows, draws = batch(32, "step", step)
        noise, *times = target.draw(32, SHAPE, draws)
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 400)
        optimizer.zero_grad()
        target.error(network, latents.float(), rows, noise, *times).backward()
        optimizer.step()
    noise, rows = torch.randn(500, *SHAPE, generator=generator(1)), torch.arange(500) % 2
    one, zero = torch.ones(500), torch.zeros(500)
    with torch.no_grad():
        made = noise - network(noise, Interval(T * one, T * zero), rows)
    m, s = of_rows(rows)
    assert (made - (m + s * noise)).abs().mean() < 0.1
    euler = noise - velocity(noise, one, rows)  # a step along the velocity ends at the mean
    assert (euler - (m + s * noise)).abs().mean() > 0.4


def test_velocity_s_error_is_least_at_the_conditional_mean():
    """There it is the variance of n - z given x, and elsewhere larger by the square of what is added."""
    latents, rows, draws = batch(20_000, "velocity")
    target = Velocity()
    noise, t = doubles(target.draw(20_000, SHAPE, draws))
    s, time = DEVIATIONS[rows], t
    spread = (1 + s**2 - (time - (1 - time) * s**2) ** 2 / variance(s, time)).mean()
    right = target.error(lambda x, told, rows: velocity(x, told / 1000, rows), latents, rows, noise, t)
    wrong = target.error(lambda x, told, rows: velocity(x, told / 1000, rows) + 0.3, latents, rows, noise, t)
    assert float(right) == pytest.approx(float(spread), abs=0.01)
    assert float(wrong - right) == pytest.approx(0.09, abs=0.01)


def test_times_of_velocities_are_logit_normal():
    _, t = Velocity().draw(20_000, SHAPE, generator(0))
    logits = t.double().logit()
    assert float(logits.mean()) == pytest.approx(0, abs=0.02)
    assert float(logits.std()) == pytest.approx(1, abs=0.02)


def test_noise_is_predicted_at_the_levels_of_the_table():
    target = Noise(0.0015, 0.0195)
    latents, rows, draws = batch(64, "noise")
    noise, timesteps = target.draw(64, SHAPE, draws)
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    abar = wide((1 - betas).cumprod(0)[timesteps])

    def network(x, told, rows):
        assert told.equal(timesteps)
        return x

    expected = (abar.sqrt() * latents + (1 - abar).sqrt() * noise - noise).square().mean()
    assert float(target.error(network, latents, rows, noise, timesteps)) == pytest.approx(
        float(expected), abs=1e-5
    )


def test_lessons_of_one_step():
    """Velocities come first; the averaged weights then teach, and each part has its own rise and fall of the rate."""
    torch.manual_seed(0)
    denoiser = ClassUNet(UNetShape((8,), (True,), 8, norm_groups=4).build(2, 4, of_intervals=True), 3)
    averaged = ClassUNet(UNetShape((8,), (True,), 8, norm_groups=4).build(2, 4, of_intervals=True), 3)
    lessons = Lessons("flow", 50, denoiser, None, 2.0, (0.001, 0.02))
    assert [type(lessons.target(step)) for step in (0, 49, 50)] == [Velocity, Velocity, AverageVelocity]
    rates = [lessons.learning_rate(step, 150) for step in range(150)]
    assert rates[9] == rates[69] == 1
    assert rates[49] < 0.01
    assert rates[149] < 0.01
    lessons.begin(49, denoiser, averaged)
    assert not denoiser.class_embedding.weight.equal(averaged.class_embedding.weight)
    lessons.begin(50, denoiser, averaged)
    for network in (denoiser, lessons.teacher):
        assert all(value.equal(averaged.state_dict()[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in lessons.teacher.parameters())
    with pytest.raises(UserError, match="guidance_scale=-1 must be"):
        Lessons("flow", 50, denoiser, None, -1, (0.001, 0.02))
