"""The denoiser that `latentdd prior train` trains: its loss, its moving average, and what it draws."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from ldd.priors.reverse import check_guidance, ddim_sample, guided
from ldd.priors.schedule import Schedule


class Denoiser(nn.Module):
    """U-Net with its class table; rows 0..K-1 are the classes, row K is the null condition.

    Args:
        unet: conditioned on one token of its `cross_attention_dim`.
        num_classes: K.
    """

    def __init__(self, unet: UNet2DConditionModel, num_classes: int) -> None:
        super().__init__()
        self.unet = unet
        self.class_embedding = nn.Embedding(num_classes + 1, unet.config.cross_attention_dim)

    def forward(self, latents: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        """Predicted noise (N, c, h, w) of noisy latents (N, c, h, w) at timesteps (N,) under class rows (N,)."""
        tokens = self.class_embedding(rows)[:, None]
        noise: Tensor = self.unet(latents, timesteps, encoder_hidden_states=tokens).sample
        return noise

    @torch.no_grad()
    def sample(
        self,
        rows: Tensor,
        generator: torch.Generator,
        scheduler: DDIMScheduler,
        *,
        num_steps: int,
        guidance_scale: float,
    ) -> Tensor:
        """Ordinary DDIM generation: latents (N, c, h, w) of class rows (N,), the noise being one float32 draw.

        Raises:
            UserError: guidance_scale or num_steps out of range.
        """
        check_guidance(guidance_scale)
        config = self.unet.config
        shape = (len(rows), config.in_channels, config.sample_size, config.sample_size)
        device = self.class_embedding.weight.device
        tokens = self.class_embedding(rows.to(device))[:, None]
        null = self.class_embedding.weight[-1].expand_as(tokens)

        def network(x: Tensor, timestep: int, conditioning: Tensor) -> Tensor:
            noise: Tensor = self.unet(x, timestep, encoder_hidden_states=conditioning).sample
            return noise

        noise = torch.randn(shape, generator=generator).to(device)
        return ddim_sample(
            guided(network, tokens, null, guidance_scale), noise, Schedule(scheduler), num_steps
        )


def noise_error(
    denoiser: nn.Module,
    scheduler: DDIMScheduler,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    rows: Tensor,
) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, equation 14), 0-d.

    Args:
        denoiser: as `Denoiser`, or an average of it.
        scheduler: gives the noise levels.
        latents: clean ones (N, c, h, w).
        noise: standard normal (N, c, h, w).
        timesteps: (N,).
        rows: class rows (N,).
    """
    predicted: Tensor = denoiser(scheduler.add_noise(latents, noise, timesteps), timesteps, rows)
    return mse_loss(predicted, noise)


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """`avg_fn` of an `AveragedModel`: exponential, with decay min(decay, (1 + n) / (10 + n)) at the n-th update."""

    def average(averaged: Tensor, current: Tensor, number: Tensor | int) -> Tensor:
        now = min(decay, (1 + float(number)) / (10 + float(number)))
        return averaged.lerp(current, 1 - now)

    return average


def learning_rate(step: int, steps: int, warm_up: int = 100) -> float:
    """Share of the peak learning rate: rises over the warm-up (at most a fifth of the phase), then a half cosine."""
    warm_up = min(warm_up, max(1, steps // 5))
    if step < warm_up:
        return (step + 1) / warm_up
    angle = torch.pi * (step - warm_up) / max(1, steps - warm_up)
    return float(0.5 * (1 + torch.cos(torch.tensor(angle))))


def reconstruction_loss(
    autoencoder: AutoencoderKL, images: Tensor, noise: Tensor, kl_weight: float
) -> Tensor:
    """Mean absolute error per pixel, and the posterior's divergence from a standard normal per latent value.

    Args:
        autoencoder: the one in training.
        images: (N, 3, H, W) in [-1, 1].
        noise: standard normal (N, c, h, w), what the posterior is sampled with.
        kl_weight: of the divergence.

    Returns:
        The loss, 0-d.
    """
    posterior = autoencoder.encode(images).latent_dist
    latents = posterior.mean + posterior.std * noise.to(posterior.mean)
    reconstruction: Tensor = autoencoder.decode(latents).sample
    divergence: Tensor = posterior.kl().mean() / latents[0].numel()
    return l1_loss(reconstruction, images) + kl_weight * divergence


def encode_scaled(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior modes (N, c, h, w) of images (N, 3, H, W), in float32 and in the autoencoder's unit of measure."""
    mode: Tensor = autoencoder.encode(images).latent_dist.mode()
    scaled: Tensor = mode.float() * autoencoder.config.scaling_factor
    return scaled


def decode_scaled(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images (N, 3, H, W) of latents (N, c, h, w) in the autoencoder's unit of measure, not clamped."""
    images: Tensor = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
    return images


@torch.no_grad()
def pixel_error(autoencoder: AutoencoderKL, latents: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of images (N, 3, H, W) decoded from scaled latents (N, c, h, w), 0-d."""
    return l1_loss(decode_scaled(autoencoder, latents), images)
