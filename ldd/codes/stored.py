"""Codes from the tensors that an artefact holds."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ldd.codes.located import Codes, GaussianCodes, PointCodes, Variance
from ldd.codes.spectral import PARTS, SpectralCodes
from ldd.errors import UserError

_NAMES = {"latents", "conditioning", "noise", "log_variance", "factors"}


def stored_codes(tensors: Mapping[str, Tensor], labels: Tensor) -> Codes:
    """Return the codes whose `tensors()` an artefact holds: points, Gaussians if there is a variance, or products.

    Args:
        tensors: `DistilledSet.codes`.
        labels: (N,), of all codes.

    Raises:
        UserError: no latents, a tensor of another kind, or one that does not fit the others.
    """
    if tensors.keys() == PARTS:
        return _spectral(tensors, labels)
    if "latents" not in tensors or tensors.keys() - _NAMES:
        raise UserError(
            f"codes hold {', '.join(sorted(tensors)) or 'nothing'}; expected latents and at most "
            f"{', '.join(sorted(_NAMES - {'latents'}))}"
        )
    latents, n = tensors["latents"], len(labels)
    parts = (
        latents,
        tensors.get("conditioning", latents.new_zeros(n, 0, 0)),
        tensors.get("noise", latents.new_zeros(n, 0)),
    )
    log_variance, factors = tensors.get("log_variance"), tensors.get("factors")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    fits = latents.ndim == 4 and all(len(value) == n for value in tensors.values())
    fits = fits and (
        log_variance is None or shapes["log_variance"] in (shapes["latents"], (*shapes["latents"][:2], 1, 1))
    )
    if not fits or (factors is not None and shapes["factors"] != (n, factors.shape[1], *latents.shape[1:])):
        raise UserError(f"codes of {n} labels have shapes {shapes}, which do not belong together")
    if log_variance is None and factors is None:
        return PointCodes(labels, *parts)
    kind: Variance = "none"
    if log_variance is not None:
        kind = "diagonal" if log_variance.shape == latents.shape else "channel"
    bounds = (-torch.inf, torch.inf)  # stored ones are clamped
    codes = GaussianCodes(
        labels,
        *parts,
        variance=kind,
        rank=0 if factors is None else factors.shape[1],
        log_variance_range=bounds,
    )
    codes.load_state_dict({**tensors, "labels": labels}, strict=False)
    return codes


def _spectral(tensors: Mapping[str, Tensor], labels: Tensor) -> SpectralCodes:
    small, left, right = (tensors[name] for name in ("small", "left", "right"))
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if small.ndim != 5 or left.ndim != 4 or right.ndim != 4:
        raise UserError(f"codes have shapes {shapes}, which do not belong together")
    blank = small.new_zeros(len(labels), small.shape[2], left.shape[2], right.shape[2])
    none = small.new_zeros(len(labels), 0)
    codes = SpectralCodes(labels, blank, none[:, :, None], none, tensors=small.shape[1], size=small.shape[-1])
    own = {name: tuple(value.shape) for name, value in codes.state_dict().items() if name in PARTS}
    if own != shapes:
        raise UserError(f"codes of {len(labels)} labels have shapes {shapes}, which do not belong together")
    codes.load_state_dict({**tensors, "labels": labels})
    return codes
