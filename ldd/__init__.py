"""Dataset distillation through frozen latent diffusion models.

Notation, declared once:
    N codes, K classes, IPC images per class; N = K x IPC in class-major order.
    C, H, W of an image; c, h, w of a latent; L tokens of width D of a conditioning.
    S steps of the reverse process, K_S = S - 1 its last index k; abar the cumulative product of 1 - beta.
    Z latents, c conditions, n noise; e the predicted noise, x0 the predicted clean latents.
    Images are RGB float32 in [-1, 1] in memory and uint8 on disk; networks see them normalised by
    `DataSpec.normalise`, real and synthetic ones alike.
    Latents are in the denoiser's scaled space.
    Labels are 0..K-1 inside a run; `ClassInfo` travels with them. A prior's own class-table rows are a third
    thing: `Prior.rows` maps classes to them.
    Accuracy is top-1 in [0, 1].
    Random draws are stateless: derived from (seed, step, purpose, class), see `ldd.runtime.seeding`.
"""

from ldd.runtime.lazy import attach

__version__ = "0.1.0"

__all__, __getattr__ = attach(__name__, __file__)  # names and homes: `__init__.pyi`
