"""Distances between two samples of a distribution, class by class."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from geomloss import SamplesLoss
from torch import Tensor
from torch.nn import functional as F

from ldd.errors import UserError
from ldd.runtime.precision import without_autocast

Scale = Literal["none", "l2", "layer"]
"""What is done to each feature vector: nothing, unit length, or mean 0 and variance 1 over its elements."""


class Measured(NamedTuple):
    """Distances of k classes.

    Attributes:
        distance: (k,), with graph.
        similarity: (k,) mean of the kernel between the two samples, in [0, 1], without graph; None without a kernel.
    """

    distance: Tensor
    similarity: Tensor | None


class Discrepancy(ABC):
    """A distance between synthetic and real samples. Subclasses are final.

    Attributes:
        has_kernel: whether `Measured.similarity` is told.
    """

    has_kernel: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, synthetic: Tensor, real: Tensor) -> Measured:
        """Measure k classes, each on its own.

        Args:
            synthetic: features (k, n, F) with graph.
            real: features (k, m, F) without.
        """


class RBFMixture(Discrepancy):
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton et al., JMLR 2012, lemma 6).

    With k(a, b) = sum_s exp(-|a - b|^2 / (2 s^2)) and the diagonals left out,

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j).

    It is unbiased, so it may be below zero, and is at most zero for a sample against itself.

    Args:
        bandwidths: s, in `unit`s.
        unit: `absolute` (published by D3, with 1, 2, 4, 8, 16 and features as they are), or `median`: of all distances
            within the class's real and synthetic features together, a constant for the gradient.
        scale: what is done to each feature vector first.

    Raises:
        UserError: no bandwidth, or one that is not above 0.
    """

    has_kernel = True

    def __init__(
        self,
        bandwidths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
        unit: Literal["absolute", "median"] = "median",
        scale: Scale = "l2",
    ) -> None:
        if not bandwidths or min(bandwidths) <= 0:
            raise UserError(f"bandwidths ({list(bandwidths)}) must be one or more numbers above 0")
        self.bandwidths = tuple(bandwidths)
        self.unit = unit
        self.scale: Scale = scale

    @without_autocast()
    def __call__(self, synthetic: Tensor, real: Tensor) -> Measured:
        """Measure k classes, see `Discrepancy`."""
        n, m = synthetic.shape[1], real.shape[1]
        if min(n, m) < 2:
            raise UserError(
                f"the maximum mean discrepancy needs two or more samples of each class, got {n} synthetic and {m} real "
                "ones; use GaussianCodes with objective.samples of 2 or more, or raise images_per_class"
            )
        synthetic, real = scaled(synthetic, self.scale), scaled(real, self.scale)
        centre = real.mean(1, keepdim=True)  # differences of large numbers would lose digits
        squares = squared_distances(torch.cat([synthetic, real], 1) - centre)
        kernel = self._kernel(squares)
        # The diagonal is 1 but for rounding, and holds no information.
        off = kernel - torch.diag_embed(kernel.diagonal(dim1=1, dim2=2))
        across = kernel[:, :n, n:].mean((1, 2))
        within = off[:, :n, :n].sum((1, 2)) / (n * (n - 1)) + off[:, n:, n:].sum((1, 2)) / (m * (m - 1))
        return Measured(within - 2 * across, across.detach() / len(self.bandwidths))

    def _kernel(self, squares: Tensor) -> Tensor:
        unit = squares.new_ones(len(squares))
        if self.unit == "median":
            upper = torch.triu_indices(squares.shape[1], squares.shape[2], 1, device=squares.device)
            unit = squares.detach()[:, upper[0], upper[1]].median(1).values
            unit = unit.clamp(min=torch.finfo(unit.dtype).tiny ** 0.5)  # all samples are the same
        exponents = squares / (-2 * unit.view(-1, 1, 1))
        return torch.stack([(exponents / s**2).exp() for s in self.bandwidths]).sum(0)


class Sinkhorn(Discrepancy):
    """Debiased entropic transport cost (Feydy et al., AISTATS 2019), by geomloss, with squared distances halved.

    Zero for a sample against itself, else above it; it takes a single sample, too.

    Args:
        blur: square root of the entropic temperature, in units of the features.
        scaling: ratio of successive blurs while it is lowered; nearer to 1 is slower and more exact.
        scale: what is done to each feature vector first.

    Raises:
        UserError: a blur that is not above 0, a scaling outside of (0, 1).
    """

    def __init__(self, blur: float = 0.05, scaling: float = 0.7, scale: Scale = "l2") -> None:
        if not 0 < blur < float("inf"):
            raise UserError(f"blur ({blur}) must be a number above 0")
        if not 0 < scaling < 1:
            raise UserError(f"scaling ({scaling}) must lie between 0 and 1")
        self.scale: Scale = scale
        self._loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, backend="tensorized")

    @without_autocast()
    def __call__(self, synthetic: Tensor, real: Tensor) -> Measured:
        """Measure k classes, see `Discrepancy`."""
        # One by one: geomloss would start all of a batch from the widest, and ranks hold different classes.
        pairs = zip(scaled(synthetic, self.scale), scaled(real, self.scale), strict=True)
        return Measured(torch.stack([self._loss(x.contiguous(), y.contiguous()) for x, y in pairs]), None)


def scaled(features: Tensor, scale: Scale) -> Tensor:
    """Return feature vectors (k, n, F) in at least single precision, each scaled as named."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if scale == "l2":
        return F.normalize(features, dim=-1)
    return F.layer_norm(features, features.shape[-1:]) if scale == "layer" else features


def squared_distances(points: Tensor) -> Tensor:
    """Return squared distances (k, n, n) between all points (k, n, F) of each class, not negative."""
    squares = points.square().sum(-1)
    products = points @ points.transpose(1, 2)
    return (squares[:, :, None] + squares[:, None] - 2 * products).clamp(min=0)
