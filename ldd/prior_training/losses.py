"""What the autoencoder minimises, and how its learning rate and averaged weights follow the steps."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import l1_loss

_Tensors = tuple[Tensor, ...] | list[Tensor]


def reconstruction_loss(
    autoencoder: AutoencoderKL, images: Tensor, noise: Tensor, kl_weight: float
) -> Tensor:
    """Return the mean absolute error per pixel plus `kl_weight` times the divergence per latent value, 0-d.

    Images are (N, 3, H, W) in [-1, 1]; standard normal `noise` (N, c, h, w) samples the posterior, whose divergence is
    that from a standard normal distribution.
    """
    posterior = autoencoder.encode(images).latent_dist
    latents = posterior.mean + posterior.std * noise.to(posterior.mean)
    reconstruction: Tensor = autoencoder.decode(latents).sample
    divergence: Tensor = posterior.kl().mean() / latents[0].numel()
    return l1_loss(reconstruction, images) + kl_weight * divergence


def moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Return `multi_avg_fn` of an exponential `AveragedModel`, which asks the device once for all weights.

    Its n-th update decays by min(decay, (1 + n) / (10 + n)).
    """

    def average(averaged: _Tensors, current: _Tensors, number: Tensor | int) -> None:
        n = float(number)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return average


def learning_rate(step: int, steps: int, warm_up: int = 100) -> float:
    """Return the share of the peak: rising over the warm-up (at most a fifth of the phase), then half a cosine."""
    warm_up = min(warm_up, max(1, steps // 5))
    if step < warm_up:
        return (step + 1) / warm_up
    angle = torch.pi * (step - warm_up) / max(1, steps - warm_up)
    return float(0.5 * (1 + torch.cos(torch.tensor(angle))))
