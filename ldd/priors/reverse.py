"""The modified reverse process of LD3M, ordinary DDIM, and its inversion.

Everything here is a function of a denoiser's output: `predict(x, timestep)` returns what the network predicts
for noisy latents x (N, c, h, w), with guidance and conditioning already in it. Steps are deterministic (DDIM with
eta 0, which on the straight path of a flow is Euler's method) unless sampling is asked to be ancestral.

Notation:
    in the code     symbol     meaning
    num_steps       S          steps of the reverse process
    k               k          index of a step, from S - 1 (noisiest) down to 0
    step.timestep   t_k        timestep the network is told (both ends of the step, if it predicts an average)
    step.level      a_k, b_k   shares of signal and noise where step k begins: x = a z + b n. A diffusion model has
                               a = sqrt(abar_k), b = sqrt(1 - abar_k), with abar_k the product of 1 - beta up to t_k; a
                               flow has a = 1 - sigma, b = sigma
    step.end        a', b'     the same where step k ends: at t_k - T // S, below 0 at the scheduler's final level
    latents         Z          clean latents (N, c, h, w) in the denoiser's scaled space: what is learned
    noise           n          standard normal (N, c, h, w), one fixed tensor per code
    noised          x_S        a_S Z + b_S n, at the level of the first step
    x               x          noisy latents on their way down
    x0, e           x0, e      clean latents and noise that the network's output implies for x
    quantise        Q          nearest code with straight-through gradient (VQ autoencoders), or the identity
    w               w          k / (S - 1), 0 if S = 1: share of the linearly decaying skip

Sources: DDIM is equation 12 of arXiv:2010.02502. The skip `clean` comes from the code released with LD3M
(arXiv:2403.03881), `noised` the one printed in its equation 7.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ldd.errors import UserError
from ldd.priors.schedule import Level, Schedule, Step, Time, Times

Skip = Literal["clean", "noised", "none"]
Predict = Callable[[Tensor, Time | Times], Tensor]
"""`predict(x, timestep)` -> network output (N, c, h, w), of the schedule's prediction type."""


class Moment(NamedTuple):
    """What is known when a step of sampling has ended, before its state is moved.

    Attributes:
        state: noisy latents (N, c, h, w) in which it ends.
        before: those in which it began.
        clean: the clean latents that it predicted, corrected by a guide if there is one.
        step: the step.
        k: its index.
    """

    state: Tensor
    before: Tensor
    clean: Tensor
    step: Step
    k: int


Move = Callable[[Moment], Tensor]
"""`move(moment)` -> what is added to the state (N, c, h, w)."""

Network = Callable[[Tensor, Time | Times, Tensor], Tensor]
"""`network(x, timestep, conditioning)` -> output (N, c, h, w) under conditioning (N, L, D)."""


def guided(
    network: Network, conditioning: Tensor, null: Tensor, scale: float, channels: int | None = None
) -> Predict:
    """Return a network under classifier-free guidance, e = e_u + s (e_c - e_u) (Ho and Salimans 2022, equation 6).

    Both halves are one batch of 2N; at scales 0 and 1 only the half that counts is run. With `channels` only the first
    so many are guided, and the others are e_c.
    """

    def predict(x: Tensor, timestep: Time | Times) -> Tensor:
        twice = torch.cat([timestep, timestep]) if isinstance(timestep, Tensor) else timestep
        output = network(torch.cat([x, x]), twice, torch.cat([null, conditioning]))
        without, given = output.to(x.dtype).chunk(2)  # the difference of two answers has few digits in common
        mixed = without + scale * (given - without)
        return mixed if channels is None else torch.cat([mixed[:, :channels], given[:, channels:]], 1)

    whole = scale == 0 and channels is None
    if scale == 1 or whole or not conditioning.shape[1]:
        return lambda x, timestep: network(x, timestep, conditioning if scale else null)
    return predict


def check_guidance(scale: float, name: str = "guidance_scale") -> None:
    """Raise unless a guidance scale, an argument of this name, is finite and at least 0."""
    if not 0 <= scale < math.inf:
        raise UserError(f"{name}={scale} must be a finite number of at least 0 (1: no guidance)")


def add_noise(clean: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Return the mixture of clean latents and noise (N, c, h, w) at a noise level."""
    return level.signal * clean + level.noise * noise


def check_skip(skip: str) -> None:
    """Raise unless `skip` is one of `Skip`."""
    if skip not in get_args(Skip):
        raise UserError(f"skip={skip!r} is unknown; choose one of {', '.join(get_args(Skip))}")


def modified_reverse(
    predict: Predict,
    latents: Tensor,
    noise: Tensor,
    schedule: Schedule,
    num_steps: int,
    *,
    start: float = 1.0,
    skip: Skip = "clean",
    quantise: Callable[[Tensor], Tensor] = lambda latents: latents,
    checkpointed: int = 0,
) -> Tensor:
    """Return the latents (N, c, h, w) that the reverse process makes of Z and n, differentiable in Z and `predict`.

    With the prediction held constant, the result's gradient in Z is sqrt(final abar) for `clean` and `none` on the path
    of a diffusion model. A flow begins at pure noise: Z enters through the skip alone, or through a `start` below 1.

    Args:
        predict: the guided network.
        latents: Z (N, c, h, w).
        noise: n (N, c, h, w).
        schedule: the prior's noise levels.
        num_steps: S.
        start: share of the path at which the chain begins, in (0, 1]; 1 is its noise end.
        skip: `clean` mixes Q(Z) into the predicted clean latents with share w (the released code); `noised`
            mixes x_S into the next state with share w (the paper's equation, without its added noise); `none`
            is plain DDIM.
        quantise: Q, used by `clean`.
        checkpointed: how many calls of the network, from the first, backward makes again instead of keeping their
            activations: it goes through the last ones first, so that theirs are gone when it reaches these.

    Raises:
        UserError: unknown `skip`, or a number of steps the schedule does not allow.
    """
    check_skip(skip)
    steps = schedule.steps(num_steps, start)
    noised = add_noise(latents, noise, steps[0].level)
    clean = quantise(latents) if skip == "clean" else latents
    last = len(steps) - 1
    x = noised
    for k, step in zip(range(last, -1, -1), steps, strict=True):
        w = k / last if last else 0.0
        if k > last - checkpointed:
            output = checkpoint(predict, x, step.timestep, use_reentrant=False, preserve_rng_state=False)
        else:
            output = predict(x, step.timestep)
        x0, e = schedule.split(output, x, step)
        e = noise if schedule.renoised else e
        if skip == "clean":
            x0 = (1 - w) * x0 + w * clean
        x = add_noise(x0, e, step.end)
        if skip == "noised":
            x = (1 - w) * x + w * noised
    return x


def ddim_sample(
    predict: Predict,
    noise: Tensor,
    schedule: Schedule,
    num_steps: int,
    *,
    start: Tensor | None = None,
    state: Tensor | None = None,
    strength: float = 1.0,
    guide: Callable[[Tensor, int], Tensor] | None = None,
    move: Move | None = None,
    ancestral: torch.Generator | None = None,
) -> Tensor:
    """Generate latents (N, c, h, w) from noise of that shape by ordinary DDIM.

    Args:
        predict: the guided network.
        noise: standard normal (N, c, h, w).
        schedule: the prior's noise levels.
        num_steps: S, steps of the whole grid.
        start: clean latents (N, c, h, w); they are noised and only the last `strength` of the grid is run (to
            the nearest step, at least one).
        state: noisy latents (N, c, h, w) at which the last `strength` of the grid begins, as `ddim_invert` of the
            same strength returns them; the noise is not used.
        strength: share of the grid in (0, 1]; only with `start` or `state`.
        guide: `guide(x0, k)` -> correction added to the predicted clean latents at step k.
        move: adds to the state in which a step ends.
        ancestral: draws new noise in every step but the last (eta 1, the sampler of DDPM); the guide's correction is
            then multiplied by that noise's deviation, see `posterior`, and added to the state.

    Raises:
        UserError: `strength` out of range or given without `start` or `state`, both of these, or a number of steps
            the schedule does not allow.
    """
    if start is None and state is None and strength != 1:
        raise UserError(f"strength={strength} needs start: without start latents the whole schedule is run")
    if start is not None and state is not None:
        raise UserError(
            "start (clean latents) and state (noisy ones) are two places to begin at; give one of them"
        )
    steps = _last_steps(schedule, num_steps, strength)
    x = schedule.first_state(noise, steps[0]) if state is None else state
    if start is not None:
        x = add_noise(start, noise, steps[0].level)
    for k, step in zip(range(len(steps) - 1, -1, -1), steps, strict=True):
        x0, e = schedule.split(predict(x, step.timestep), x, step)
        e = noise if schedule.renoised else e
        correction = None if guide is None else guide(x0, k)
        if ancestral is None and correction is not None:
            x0 = x0 + correction
        before = x
        if ancestral is None:
            x = add_noise(x0, e, step.end)
        else:
            x = _drawn(x0, e, step, ancestral if k else None, correction)
        if move is not None:
            x = x + move(Moment(x, before, x0, step, k))
    return x


def _drawn(
    x0: Tensor, e: Tensor, step: Step, generator: torch.Generator | None, correction: Tensor | None
) -> Tensor:
    """The state at a step's end by the posterior: its mean, new noise if there is a generator, and the correction."""
    deviation, kept = posterior(step)
    x = step.end.signal * x0 + kept * e
    if generator is not None:
        x = x + deviation * torch.randn(x.shape, generator=generator).to(x)
    return x if correction is None else x + deviation * correction


def posterior(step: Step) -> tuple[float, float]:
    """Return the deviation of the state at a step's end, given its start and x0, and the share of e in its mean.

    With a, b and a', b' the shares of signal and noise at start and end, the variance is
    b'^2 / b^2 (b^2 - (a / a')^2 b'^2) (DDPM, Ho et al. 2020, equation 7; DDIM with eta 1), which leaves
    sqrt(b'^2 - variance) for e.
    """
    (a, b), (end_a, end_b) = step.level, step.end
    variance = (end_b / b) ** 2 * (b**2 - (a / end_a) ** 2 * end_b**2)
    return math.sqrt(max(0.0, variance)), math.sqrt(max(0.0, end_b**2 - variance))


def ddim_invert(
    predict: Predict, latents: Tensor, schedule: Schedule, num_steps: int, strength: float = 1.0
) -> Tensor:
    """Return the noisy latents (N, c, h, w) from which `ddim_sample` would lead back to clean `latents`.

    They lie at the noise end or, with a `strength` below 1, where the last `strength` of the grid begins. Each step of
    the grid is run backwards with the network's output at the state it starts from, so that the way there and back is
    exact only in the limit of many steps. Clipping has no inverse and is left out.

    Raises:
        UserError: a number of steps the schedule does not allow, or `strength` outside (0, 1].
    """
    x = latents
    for step in reversed(_last_steps(schedule, num_steps, strength)):
        e = schedule.noise_on_the_way_back(predict(x, step.timestep), x, step)
        x0 = (x - step.end.noise * e) / step.end.signal
        x = add_noise(x0, e, step.level)
    return x


def _last_steps(schedule: Schedule, num_steps: int, strength: float) -> tuple[Step, ...]:
    """Return the last `strength` of the grid, to the nearest step and at least one."""
    if not 0 < strength <= 1:
        raise UserError(f"strength={strength} must lie in (0, 1]")
    steps = schedule.steps(num_steps)
    return steps[len(steps) - max(1, round(strength * len(steps))) :]
