"""DDIM written out with diffusers' table and the prior's bare U-Net, in float64; and a world of three classes."""

import initializer_conformance
import torch
from diffusers import DDIMScheduler
from small_world import CLASSES
from tiny_prior import SCHEDULER

from ldd.runtime.seeding import generator

SEED = 5


def draws_seed() -> int:
    """The number from which all draws of an initialiser follow, given `generator(SEED)`."""
    return int(torch.randint(2**62, (), generator=generator(SEED)))


def started(initializer, prior, per_class=2, real=None):
    """Latents that the initialiser sets, (K, n, c, h, w)."""
    codes = initializer_conformance.codes_for(prior, per_class=per_class)
    real = initializer_conformance.core_set() if real is None else real
    initializer(codes, prior, real, generator(SEED))
    return codes.latents.detach().unflatten(0, (len(CLASSES), per_class))


class Hand:
    """One class's chain.

    Args:
        prior: the tiny one, in float64.
        row: of its class table.
        scale: of guidance.
        num_steps: S.
    """

    def __init__(self, prior, row, scale, num_steps):
        self.prior, self.row, self.scale = prior, row, scale
        scheduler = DDIMScheduler(**SCHEDULER)
        self.table = scheduler.alphas_cumprod.double()
        scheduler.set_timesteps(num_steps)
        self.timesteps = scheduler.timesteps.tolist()
        self.stride = 1000 // num_steps

    def abar(self, timestep):
        return self.table[max(timestep, 0)]  # below 0: the table's first, since set_alpha_to_one is off

    def noise(self, x, timestep, scale):
        table = self.prior.denoiser.class_embedding
        tokens = {row: table[row].expand(len(x), 1, -1) for row in (self.row, 10)}
        with torch.no_grad():
            e = {
                row: self.prior.unet(x, timestep, encoder_hidden_states=t).sample for row, t in tokens.items()
            }
        return e[10] + scale * (e[self.row] - e[10])

    def down(self, x, last, correct=lambda x0, k: 0.0):
        """The last so many steps from noisy x; `correct(x0, k)` is added to the predicted clean latents."""
        timesteps = self.timesteps[len(self.timesteps) - last :]
        for k, t in zip(range(last - 1, -1, -1), timesteps, strict=True):
            e = self.noise(x, t, self.scale)
            x0 = (x - (1 - self.abar(t)).sqrt() * e) / self.abar(t).sqrt()
            x0 = x0 + correct(x0, k)
            after = self.abar(t - self.stride)
            x = after.sqrt() * x0 + (1 - after).sqrt() * e
        return x

    def up(self, x, last):
        """The way back without guidance, by the noise predicted at the state that a step starts from."""
        for t in self.timesteps[::-1][:last]:
            e, before = self.noise(x, t, 1.0), self.abar(t - self.stride)
            x0 = (x - (1 - before).sqrt() * e) / before.sqrt()
            x = self.abar(t).sqrt() * x0 + (1 - self.abar(t)).sqrt() * e
        return x
