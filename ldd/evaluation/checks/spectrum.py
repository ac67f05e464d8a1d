"""How much of the finest detail of real images a set has: the power of its highest frequencies."""

import math

import torch
from torch import Tensor

_ROUNDING = 1 / 12
"""Variance of rounding to bytes: the power in every frequency of an image that has none of its own."""

_CHUNK = 256  # images at once


def high_frequency_gap(images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> float:
    """Return by how many decibels images have more power at high frequencies than real ones; below 0 they are smoother.

    The power |F|^2 / (H W) of the discrete Fourier transform of each channel, in grey levels squared, is averaged over
    the frequencies above half the Nyquist frequency (more than H / 4 cycles an image, in any direction), over channels
    and images of a class, then over the classes that the set has. Networks that enlarge latents miss the real spectrum
    there (Durall et al., arXiv 2003.01826, whose azimuthal spectrum this sums up in one number).

    Args:
        images: (N, 3, H, H) uint8.
        labels: (N,).
        real: (M, 3, H, H) uint8.
        real_labels: (M,).
    """
    classes = labels.unique().tolist()
    own, theirs = (
        sum(_power(some[of == label]) for label in classes) / len(classes)
        for some, of in ((images, labels), (real, real_labels))
    )
    return 10 * math.log10(max(own, _ROUNDING) / max(theirs, _ROUNDING))


def _power(images: Tensor) -> float:
    size = images.shape[-1]
    cycles = torch.fft.fftfreq(size) * size
    high = torch.hypot(cycles[:, None], cycles[None, :]) > size / 4
    powers = [
        torch.fft.fft2(part.float())[..., high].abs().square().mean((1, 2)) / size**2
        for part in images.split(_CHUNK)
    ]
    return float(torch.cat(powers).mean())
