"""Images of a class as products of a few small tensors and kernels."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldd.codes.located import CodeBatch, Codes
from ldd.errors import UserError, check_at_least
from ldd.runtime.seeding import generator

PARTS = frozenset({"small", "left", "right", "mixing"})
"""Names of the tensors that an artefact stores, by class and not by image."""

_FIT_STEPS = 60  # of L-BFGS, to the latents at which an initialiser wants to start
_SPREAD = 0.1  # standard deviation that tells the kernels of a class from each other before that


@final
class SpectralCodes(Codes):
    """All latents of a class from a few small tensors and kernels (after NSD, arXiv 2408.16236).

    Latent (i, j) of a class is Z = M_j (A_j T_i B_j^t): matrices multiplied channel by channel, then channels mixed.
    T_i (c, t, t) is one of its `tensors` small tensors; A_j (h, t), B_j (w, t) and M_j (c, c) are one of its kernels,
    of which there are images_per_class / `tensors`. So I + J parts give I J images, in latent or pixel space. The
    paper's shapes are not known; these are ours.

    What the set stores are the parts. Started at given latents, they are fitted to them by least squares.

    Args:
        labels: (N,), int64; every class has a multiple of `tensors`.
        latents: Z, (N, c, h, w).
        conditioning: (N, 0, D), empty.
        noise: (N, 0), empty.
        tensors: I, small tensors of a class.
        size: t; None takes half of h.
        learn_latents: optimise the parts.

    Raises:
        UserError: images of a class that are no multiple of `tensors`, a size above h, or a prior with diffusion, which
            needs a condition and noise for each image.
    """

    _class: Tensor
    _tensor: Tensor
    _kernel: Tensor
    _empty: Tensor

    def __init__(
        self,
        labels: Tensor,
        latents: Tensor,
        conditioning: Tensor,
        noise: Tensor,
        tensors: int = 4,
        size: int | None = None,
        learn_latents: bool = True,
    ) -> None:
        super().__init__()
        count, channels, height, width = latents.shape
        size = max(1, height // 2) if size is None else size
        check_at_least(1, "codes", tensors=tensors, size=size)
        classes, number = labels.unique(return_inverse=True)
        each = count // len(classes)
        if each % tensors or bool((labels.bincount()[classes] != each).any()):
            raise UserError(
                f"codes.tensors ({tensors}): images_per_class ({each}) must be a multiple of it, so that each tensor "
                "meets each kernel"
            )
        if size > min(height, width):
            raise UserError(
                f"codes.size ({size}) must be at most the size of the latents ({min(height, width)})"
            )
        if noise.numel() or conditioning.numel():
            raise UserError(
                "codes: SpectralCodes have no condition and no noise for each image; set the prior's num_steps to 0, "
                "or choose PixelPrior or AutoencoderPrior"
            )
        kernels = each // tensors
        self.register_buffer("labels", labels.clone())
        place = torch.arange(count, device=labels.device) - number * each
        self.register_buffer("_class", number, persistent=False)
        self.register_buffer("_tensor", place // kernels, persistent=False)
        self.register_buffer("_kernel", place % kernels, persistent=False)
        self.register_buffer("_empty", conditioning.clone(), persistent=False)
        like, spread = latents.new_zeros(len(classes), kernels, 1, 1), generator(0, "spectral codes")

        def kernel(grown: Tensor) -> nn.Parameter:
            noise = torch.randn(len(classes), kernels, *grown.shape, generator=spread).to(like)
            started = (like + grown.to(like) + _SPREAD * noise).contiguous()
            return nn.Parameter(started, requires_grad=learn_latents)

        blank = latents.new_zeros(len(classes), tensors, channels, size, size)
        self.small = nn.Parameter(blank, requires_grad=learn_latents)
        self.left, self.right = kernel(_growing(size, height)), kernel(_growing(size, width))
        self.mixing = kernel(torch.eye(channels))

    def forward(self, rows: Tensor, generator: torch.Generator | None = None) -> CodeBatch:
        """Return the latents of `rows`; products have no spread, so `generator` draws nothing."""
        latents = _product(self._parts(), self._class[rows], self._tensor[rows], self._kernel[rows])
        return CodeBatch(latents, self._empty[rows], latents.new_zeros(len(rows), 0), self.labels[rows])

    def set_latents(self, rows: Tensor, latents: Tensor) -> None:
        """Fit the parts of the classes of `rows` (n,) to `latents` (n, c, h, w), by least squares over these rows."""
        classes, number = self._class[rows].unique(return_inverse=True)
        tensor, kernel, wanted = self._tensor[rows], self._kernel[rows], latents.detach().to(self.left)
        parts = [part.detach()[classes].clone() for part in self._parts()]
        parts[0][number, tensor] = F.adaptive_avg_pool2d(wanted, parts[0].shape[-1])
        leaves = [part.requires_grad_() for part in parts]
        optimizer = torch.optim.LBFGS(leaves, max_iter=_FIT_STEPS, line_search_fn="strong_wolfe")

        def miss() -> Tensor:
            optimizer.zero_grad()
            loss = (_product(leaves, number, tensor, kernel) - wanted).square().mean()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(miss)
        with torch.no_grad():
            for part, fitted in zip(self._parts(), leaves, strict=True):
                part[classes] = fitted

    def _parts(self) -> list[nn.Parameter]:
        return [self.small, self.left, self.right, self.mixing]

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parts, if they are learned, as `latents`."""
        learned = [part for part in self._parts() if part.requires_grad]
        return {"latents": learned} if learned else {}


def _product(parts: Sequence[Tensor], number: Tensor, tensor: Tensor, kernel: Tensor) -> Tensor:
    """Return latents (n, c, h, w) of classes, tensors and kernels (n,) by their numbers."""
    small, left, right, mixing = parts
    grown = left[number, kernel][:, None] @ small[number, tensor] @ right[number, kernel][:, None].mT
    return torch.einsum("ncd,ndhw->nchw", mixing[number, kernel], grown)


def _growing(small: int, large: int) -> Tensor:
    """Return the matrix (large, small) by which a line of small is grown linearly."""
    grown = F.interpolate(torch.eye(small)[None], size=large, mode="linear", align_corners=False)
    return grown[0].T
