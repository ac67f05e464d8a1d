"""The autoencoder that `latentdd prior train` trains: its loss, its latents, its error."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import l1_loss


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
