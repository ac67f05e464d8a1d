"""A point or a Gaussian in latent space for each image, and what all codes offer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from ldd.errors import UserError, check_at_least
from ldd.runtime.precision import without_autocast
from ldd.runtime.seeding import normal_rows


class Codes(nn.Module, ABC):
    """N codes in class-major order. Subclasses are final.

    Every subclass is built from (labels, latents, conditioning, noise), the starting point for all N codes, and
    further arguments of its own.

    Attributes:
        labels: (N,), int64, a buffer.
        stochastic: whether draws of one code differ.
        packing: columns and rows of the grid of codes that share a stored image; 1 where each has its own.
    """

    labels: Tensor
    stochastic: bool = False
    packing: int = 1

    @abstractmethod
    def forward(self, rows: Tensor, generator: torch.Generator | None = None) -> "CodeBatch":
        """Return codes of `rows` (n,) with graph; `generator` draws from a distribution, None takes its mean.

        What a row draws follows from the generator's state and the row alone, whichever rows come with it, so that
        chunks and ranks make no difference. A later call with the same generator draws anew.
        """

    @abstractmethod
    def set_latents(self, rows: Tensor, latents: Tensor) -> None:
        """Set the latents of `rows` (n,) to `latents` (n, c, h, w); initialisers call this."""

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the learned parameters by what they are: "latents", "spread", "conditioning", "noise"."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what an artefact stores, on the CPU: all but empty tensors and the labels, which it has."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        return {name: value for name, value in state.items() if name != "labels" and value.numel()}

    def statistics(self) -> dict[str, Tensor]:
        """Return numbers to log as `train/<name>`, without graph."""
        return {}

    @property
    def dtype(self) -> torch.dtype:
        """Type of everything that is computed from these codes."""
        return next(self.parameters()).dtype

    def __len__(self) -> int:
        return len(self.labels)


class CodeBatch(NamedTuple):
    """What the reverse process takes for n codes.

    Attributes:
        latents: Z, (n, c, h, w), in the denoiser's scaled space.
        conditioning: (n, L, D).
        noise: (n, c, h, w), standard normal unless it is learned; (n, 0) for a prior without diffusion.
        labels: (n,), int64.
    """

    latents: Tensor
    conditioning: Tensor
    noise: Tensor
    labels: Tensor


CodesFactory = Callable[[Tensor, Tensor, Tensor, Tensor], Codes]
"""Builds codes from (labels, latents, conditioning, noise)."""


class _LocatedCodes(Codes, ABC):
    """Codes that each have a latent, a condition and noise; arguments as of `PointCodes`."""

    def __init__(
        self,
        labels: Tensor,
        latents: Tensor,
        conditioning: Tensor,
        noise: Tensor,
        learn_latents: bool = True,
        learn_conditioning: bool = True,
        learn_noise: bool = False,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(latents.clone(), requires_grad=learn_latents)
        self.conditioning = nn.Parameter(conditioning.clone(), requires_grad=learn_conditioning)
        self.noise = nn.Parameter(noise.clone(), requires_grad=learn_noise)
        self.register_buffer("labels", labels.clone())

    def forward(self, rows: Tensor, generator: torch.Generator | None = None) -> CodeBatch:
        """Return the codes of `rows`; points have no spread, so `generator` draws nothing."""
        return self._centres(rows)

    def _centres(self, rows: Tensor) -> CodeBatch:
        return CodeBatch(self.latents[rows], self.conditioning[rows], self.noise[rows], self.labels[rows])

    def set_latents(self, rows: Tensor, latents: Tensor) -> None:
        """Set the latents of `rows` (n,) to `latents` (n, c, h, w)."""
        with torch.no_grad():
            self.latents[rows] = latents.to(self.latents)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the learned ones of `latents`, `conditioning` and `noise`."""
        named = {"latents": self.latents, "conditioning": self.conditioning, "noise": self.noise}
        return {name: [value] for name, value in named.items() if value.requires_grad and value.numel()}


@final
class PointCodes(_LocatedCodes):
    """One latent, one condition and one noise tensor per image (LD3M, arXiv 2403.03881, section 3).

    The noise is drawn once and kept, or learned from there, so that the distilled set is a fixed artefact.

    Args:
        labels: (N,), int64.
        latents: Z, (N, c, h, w).
        conditioning: c, (N, L, D); every image has its own copy of its class's row.
        noise: n, (N, c, h, w), or (N, 0) for a prior without diffusion.
        learn_latents: optimise Z.
        learn_conditioning: optimise c (without effect on an unconditional prior, where L = 0).
        learn_noise: optimise n (without effect on a prior without diffusion); for chains of one step.
    """


@final
class PackedCodes(_LocatedCodes):
    """Points, `packing`^2 of which share one stored image: a grid of small images, each made from a code of its own.

    What is matched, and what students see, is each code's image shrunk to its part of the grid and grown again, so that
    the set holds `packing`^2 times as many images, of as many times fewer pixels, in the same bytes. NCFM (released as
    `factor: 2`), IDC (arXiv 2205.14959) and Grid Distillation store images so; papers count each grid as one image.
    The stored set is the grids; codes are not kept.

    Args:
        labels: (N,), int64, of codes: `packing`^2 for each stored image.
        latents: Z, (N, c, h, w).
        conditioning: c, (N, L, D).
        noise: n, (N, c, h, w), or (N, 0) for a prior without diffusion.
        packing: columns and rows of the grid, 2 or more.
        learn_latents: optimise Z.
        learn_conditioning: optimise c.
        learn_noise: optimise n.

    Raises:
        UserError: a packing below 2.
    """

    def __init__(
        self,
        labels: Tensor,
        latents: Tensor,
        conditioning: Tensor,
        noise: Tensor,
        packing: int = 2,
        learn_latents: bool = True,
        learn_conditioning: bool = True,
        learn_noise: bool = False,
    ) -> None:
        super().__init__(labels, latents, conditioning, noise, learn_latents, learn_conditioning, learn_noise)
        check_at_least(2, "codes", packing=packing)
        self.packing = packing


Variance = Literal["diagonal", "channel", "none"]
"""How many log-variances a code has: one per element of its latent, one per channel, none."""


@final
class GaussianCodes(_LocatedCodes):
    """A Gaussian over latents per code (D3, arXiv 2403.00999, as released), with a condition and noise each.

    A draw is z = mean + exp(l / 2) * e + sum_j F_j f_j with e and f standard normal: l the log-variances, F the
    `rank` factors. The mean decodes to one fixed image; the noise of the reverse process is never drawn anew, so
    that codes without variance are `PointCodes` bit for bit. Of the options, D3 has the diagonal variance; a
    low-rank one on a frozen generator's latents is after arXiv 2505.06647.

    Log-variances are clamped to `log_variance_range`. A value outside keeps the gradients that lead back.

    Args:
        labels: (N,), int64; several codes of a class are its mixture, in equal parts.
        latents: means, (N, c, h, w).
        conditioning: c, (N, L, D); every code has its own copy of its class's row.
        noise: n, (N, c, h, w), or (N, 0) for a prior without diffusion.
        variance: `diagonal` (one number per element of the latent), `channel` (one per channel) or `none`.
        rank: number of factors in addition; they start at zero.
        log_variance: start of every log-variance, natural logarithm.
        log_variance_range: bounds of the log-variance (published: none).
        learn_latents: optimise the means.
        learn_spread: optimise log-variances and factors.
        learn_conditioning: optimise c (without effect on an unconditional prior, where L = 0).
        learn_noise: optimise n, which all draws share (without effect on a prior without diffusion).

    Raises:
        UserError: a negative rank, an empty range, or a start outside of it.
    """

    def __init__(
        self,
        labels: Tensor,
        latents: Tensor,
        conditioning: Tensor,
        noise: Tensor,
        variance: Variance = "diagonal",
        rank: int = 0,
        log_variance: float = 0.0,
        log_variance_range: tuple[float, float] = (-10.0, 2.0),
        learn_latents: bool = True,
        learn_spread: bool = True,
        learn_conditioning: bool = True,
        learn_noise: bool = False,
    ) -> None:
        super().__init__(labels, latents, conditioning, noise, learn_latents, learn_conditioning, learn_noise)
        low, high = log_variance_range
        check_at_least(0, "codes", rank=rank)
        if not low < high:
            raise UserError(
                f"codes.log_variance_range ({low:g}, {high:g}) must be a lower and a higher number"
            )
        if not low <= log_variance <= high or not math.isfinite(log_variance):
            raise UserError(
                f"codes.log_variance ({log_variance:g}) must lie in codes.log_variance_range ({low:g}, {high:g})"
            )
        self.range = (low, high)
        self.log_variance: nn.Parameter | None = None
        self.factors: nn.Parameter | None = None
        if variance != "none":
            shape = latents.shape if variance == "diagonal" else (*latents.shape[:2], 1, 1)
            self.log_variance = nn.Parameter(
                latents.new_full(shape, log_variance), requires_grad=learn_spread
            )
        if rank:
            shape = (len(latents), rank, *latents.shape[1:])
            self.factors = nn.Parameter(latents.new_zeros(shape), requires_grad=learn_spread)
        self.stochastic = self.log_variance is not None or self.factors is not None

    @without_autocast()
    def forward(self, rows: Tensor, generator: torch.Generator | None = None) -> CodeBatch:
        """Return a draw of each row, see `Codes.forward`; None takes the means."""
        batch = self._centres(rows)
        if generator is None or not self.stochastic:
            return batch
        shape = batch.latents.shape[1:]
        rank = 0 if self.factors is None else self.factors.shape[1]
        drawn = normal_rows(rows, shape.numel() + rank, generator).to(batch.latents)
        latents = batch.latents
        if self.log_variance is not None:
            deviation = (clamp(self.log_variance[rows], *self.range) / 2).exp()
            latents = latents + deviation * drawn[:, : shape.numel()].unflatten(1, shape)
        if self.factors is not None:
            latents = latents + torch.einsum("nr,nrchw->nchw", drawn[:, shape.numel() :], self.factors[rows])
        return batch._replace(latents=latents)

    def set_log_variance(self, rows: Tensor, log_variance: Tensor) -> None:
        """Set the log-variances of `rows` (n,) to values (n, c, h, w), clamped; a channel takes its mean variance.

        Raises:
            UserError: these codes have none.
        """
        if self.log_variance is None:
            raise UserError("codes.variance (none) has no log-variance to start; choose diagonal or channel")
        if self.log_variance.shape[2:] != log_variance.shape[2:]:
            log_variance = log_variance.exp().mean((2, 3), keepdim=True).log()
        with torch.no_grad():
            self.log_variance[rows] = log_variance.to(self.log_variance).clamp(*self.range)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the learned ones of `latents`, `spread` (log-variances and factors), `conditioning` and `noise`."""
        spread = [p for p in (self.log_variance, self.factors) if p is not None and p.requires_grad]
        return super().groups() | ({"spread": spread} if spread else {})

    def tensors(self) -> dict[str, Tensor]:
        """Return what an artefact stores, with the log-variances as they are used, clamped."""
        stored = super().tensors()
        if "log_variance" in stored:
            stored["log_variance"] = stored["log_variance"].clamp(*self.range)
        return stored

    def statistics(self) -> dict[str, Tensor]:
        """Return `deviation`: the standard deviation of an element of a latent, mean over all of them."""
        if not self.stochastic:
            return {}
        variance = self.latents.new_zeros(1)
        if self.log_variance is not None:
            variance = self.log_variance.detach().clamp(*self.range).exp()
        if self.factors is not None:
            variance = variance + self.factors.detach().square().sum(1)
        return {"deviation": variance.sqrt().mean()}


def clamp(values: Tensor, low: float, high: float) -> Tensor:
    """Clamp `values`; where they are outside, only gradients whose descent leads back inside pass."""
    shift = values - values.detach()  # zero, with the gradient

    def inward(gradient: Tensor) -> Tensor:
        outward = ((values <= low) & (gradient > 0)) | ((values >= high) & (gradient < 0))
        return gradient.masked_fill(outward, 0)

    if shift.requires_grad:
        shift.register_hook(inward)
    return values.detach().clamp(low, high) + shift
