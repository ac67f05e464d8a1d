"""Checks of a distilled set's tensors: dtype, shape, range, counts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ldd.errors import UserError
from ldd.images import ClassInfo, to_bytes

_TOLERANCE = 1e-3  # a clamp in half precision rounds; a quarter of the distance between two byte values
_SUM_TOLERANCE = 1e-2  # rounding of a thousand numbers in half precision
_STORED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PLAIN = (*_STORED, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_bytes(images: Tensor) -> Tensor:
    """Return images (N, 3, H, H), uint8 or float in [-1, 1], as uint8 on the CPU."""
    if not isinstance(images, Tensor):
        raise UserError(f"images must be a tensor, got {type(images).__name__}; torch.as_tensor makes one")
    if images.dtype == torch.uint8:
        return images.detach().cpu()
    if images.dtype not in _STORED:
        raise UserError(f"images must be uint8 or float in [-1, 1], got {_shown(images)}")
    floats = images.detach().float()
    if not floats.isfinite().all():
        raise UserError("images hold NaN or infinite values; a run that diverged cannot be saved as a set")
    low, high = (floats.min().item(), floats.max().item()) if floats.numel() else (0.0, 0.0)
    if low < -1 - _TOLERANCE or high > 1 + _TOLERANCE:
        raise UserError(
            f"images must lie in [-1, 1], got [{low:.4g}, {high:.4g}]; undo their normalisation "
            "(images * std + mean gives [0, 1], twice that minus 1 gives [-1, 1]), or clamp them"
        )
    return to_bytes(floats).cpu()


def as_labels(labels: Tensor) -> Tensor:
    """Return labels (N,) of any integer dtype as int64 on the CPU."""
    if not isinstance(labels, Tensor):
        raise UserError(f"labels must be a tensor, got {type(labels).__name__}; torch.as_tensor makes one")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"labels must be whole numbers, got {_shown(labels)}; pass soft ones as soft_labels")
    return labels.detach().cpu().long()


def on_cpu(tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Return named tensors without graph on the CPU; None stays None."""
    return None if tensors is None else {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def check_images(images: Tensor) -> None:
    """Raise UserError unless `images` is (N, 3, H, H) uint8 with N at least 1."""
    if images.dtype != torch.uint8:
        raise UserError(
            f"images must be uint8, got {_shown(images)}; DistilledSet.from_images converts floats"
        )
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not images.numel():
        raise UserError(
            f"images must be (N, 3, H, H), square RGB and at least one, got {_shown(images)}; crop them, and "
            "repeat the channel of grey ones with images.expand(-1, 3, -1, -1)"
        )


def check_labels(labels: Tensor, images: Tensor, classes: Sequence[ClassInfo]) -> None:
    """Raise UserError unless `labels` is (N,) int64 in 0..K-1, one per image, and every class has an image."""
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise UserError(f"labels must be (N,) int64, got {_shown(labels)}")
    if len(labels) != len(images):
        raise UserError(
            f"there are {len(images)} images and {len(labels)} labels; each image needs one label"
        )
    outside = ((labels < 0) | (labels >= len(classes))).nonzero().flatten()
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"label {int(labels[row])} of image {row} is outside 0..{len(classes) - 1}; labels count the "
            "classes of the set, not those of the data set it comes from"
        )
    empty = (torch.bincount(labels, minlength=len(classes)) == 0).nonzero().flatten().tolist()
    if empty:
        names = ", ".join(f"{label} ({classes[label].name})" for label in empty[:5])
        more = " ..." if len(empty) > 5 else ""
        raise UserError(
            f"{len(empty)} of {len(classes)} classes have no image: {names}{more}; leave them out of classes "
            "or add images"
        )


def check_soft_labels(
    soft_labels: Tensor, num_images: int, num_classes: int, top_k: int | None = None
) -> None:
    """Raise UserError unless `soft_labels` is (N, K) probabilities; rows sum to 1, of a stored top k at most."""
    if soft_labels.dtype not in _STORED or soft_labels.shape != (num_images, num_classes):
        raise UserError(f"soft_labels must be float ({num_images}, {num_classes}), got {_shown(soft_labels)}")
    if not ((soft_labels >= 0) & (soft_labels <= 1)).all():  # NaN fails both
        raise UserError("soft_labels must be probabilities in [0, 1]; take the softmax of logits")
    sums = soft_labels.float().sum(1)
    error = (sums - 1).abs() if top_k is None else sums - 1
    if len(sums) and error.max() > _SUM_TOLERANCE:
        row = int(error.argmax())
        raise UserError(
            f"soft_labels of image {row} add up to {float(sums[row]):.4g}, not to 1; divide each row by its sum"
        )


def check_weights(weights: Tensor, num_images: int) -> None:
    """Raise UserError unless `weights` is (N,), finite, not negative, and not all zero."""
    if weights.dtype not in _STORED or weights.shape != (num_images,):
        raise UserError(f"weights must be float ({num_images},), got {_shown(weights)}")
    if not (weights.isfinite() & (weights >= 0)).all() or not (weights > 0).any():
        raise UserError("weights must be finite, at least 0, and not all 0")


def check_named(kind: str, tensors: Mapping[str, Tensor] | None) -> None:
    """Raise UserError unless the tensors of `kind` (codes, decoder) are of ordinary dtypes and finite."""
    for name, tensor in (tensors or {}).items():
        if tensor.dtype not in _PLAIN:
            raise UserError(f"{kind} {name!r} has dtype {tensor.dtype}; store it as float32 or float16")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{kind} {name!r} holds NaN or infinite values; a diverged run cannot be saved as a set"
            )


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
