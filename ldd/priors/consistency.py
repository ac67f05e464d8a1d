"""The path of consistency models in pixel space, which lead from any noise level to its image in one step."""

import math
from typing import final

from torch import Tensor

from ldd.errors import UserError
from ldd.priors.schedule import Level, Schedule, Step, check_grid


@final
class ConsistencySchedule(Schedule):
    """The path of consistency models (arXiv:2303.01469), as `CMStochasticIterativeScheduler` samples from them.

    Noise is added to images of full size, z + sigma n, and the network sees that divided by sqrt(sigma^2 + d^2), with
    d = `sigma_data`: this is x here, so that a = 1 / sqrt(sigma^2 + d^2) and b = sigma a. The T noise levels are those
    of EDM (arXiv:2206.00364, equation 5); S steps visit every (T // S)-th of them from sigma_max on. What the network
    puts out is joined to x by the boundary condition (appendix C), and then noised anew to the next level (algorithm
    1), with the chain's own noise, where diffusers draws another.

    Args:
        num_train_timesteps: T.
        sigma_min: the least noise level, where the model returns what it is given.
        sigma_max: the greatest.
        sigma_data: deviation of the data.
        s_noise: factor of the noise that steps after the first begin with.
        rho: how the levels crowd towards sigma_min.
        clip_denoised: clamp the predicted images to [-1, 1] before they are noised anew. That of the last step is left,
            so that pixels beyond keep their gradient; decoding clamps it.

    Raises:
        UserError: a setting out of range.
    """

    prediction_type = "consistency"
    usual_steps = 1
    renoised = True

    def __init__(
        self,
        num_train_timesteps: int = 40,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        s_noise: float = 1.0,
        rho: float = 7.0,
        clip_denoised: bool = True,
    ) -> None:
        if num_train_timesteps < 2:
            raise UserError(
                f"scheduler: num_train_timesteps={num_train_timesteps} must be at least 2 noise levels"
            )
        if not 0 < sigma_min < sigma_max < math.inf:
            raise UserError(
                f"scheduler: sigma_min={sigma_min} and sigma_max={sigma_max} must be positive and rise"
            )
        for name, value in (("sigma_data", sigma_data), ("rho", rho), ("s_noise", s_noise)):
            if not 0 < value < math.inf:
                raise UserError(f"scheduler: {name}={value} must be a positive number")
        self.num_train_timesteps = num_train_timesteps
        self.clip = 1.0 if clip_denoised else None
        self._bounds = (float(sigma_min), float(sigma_max))
        self._sigma_data, self._s_noise, self._rho = float(sigma_data), float(s_noise), float(rho)

    def steps(self, num_steps: int, start: float = 1.0) -> tuple[Step, ...]:
        """Return the grid of `CMStochasticIterativeScheduler.set_timesteps`.

        A `start` below 1 multiplies the number of levels below each, rounded down.
        """
        check_grid(num_steps, start)
        last = self.num_train_timesteps - 1
        if num_steps > last + 1:
            raise UserError(
                f"num_steps={num_steps} exceeds the {last + 1} noise levels the prior was trained with"
            )
        below = [last - k * ((last + 1) // num_steps) for k in range(num_steps)]
        sigmas = [self._sigma(int(start * count)) for count in below]
        ends = [self._level(sigma, self._noised(sigma)) for sigma in sigmas[1:]]
        return tuple(
            Step(250 * math.log(sigma), self._level(sigma, sigma), end)
            for sigma, end in zip(sigmas, [*ends, Level(1.0, 0.0)], strict=True)
        )

    def first_state(self, noise: Tensor, step: Step) -> Tensor:
        """Return the noise at the greatest level, as the network sees it."""
        return step.level.noise * noise

    def split(self, output: Tensor, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Return images and noise; images that are noised anew are clipped if the config says so."""
        x0, e = self._implied(output.to(x.dtype), x, step.level)
        return (x0.clamp(-self.clip, self.clip) if self.clip and step.end.noise else x0), e

    def _of_velocity(self, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        signal, noise = level
        squared, above = self._sigma_data**2, noise / signal - self._bounds[0]
        joined = squared / (above**2 + squared) / signal  # of x, which is divided by the root
        x0 = above * self._sigma_data * signal * output + joined * x
        return x0, (x - signal * x0) / noise

    def _sigma(self, below: int) -> float:
        """The noise level that has so many below it."""
        least, most = (bound ** (1 / self._rho) for bound in self._bounds)
        return math.pow(least + below / (self.num_train_timesteps - 1) * (most - least), self._rho)

    def _noised(self, sigma: float) -> float:
        """How much noise leads to a level from an image, which counts as one of sigma_min."""
        return self._s_noise * math.sqrt(max(0.0, sigma**2 - self._bounds[0] ** 2))

    def _level(self, sigma: float, noise: float) -> Level:
        root = math.hypot(sigma, self._sigma_data)
        return Level(1 / root, noise / root)
