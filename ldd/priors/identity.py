"""What a prior is: the kind, the amount and the digest of its frozen weights."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ldd.priors.base import Prior


def identify(prior: Prior) -> dict[str, Any]:
    """What an artefact says of the frozen weights that its codes need.

    Returns:
        `class_path`, `image_size`, `floats` and `bytes` (of parameters and buffers that are not trained with the
        codes), and `sha256` over their names, types, shapes and values. Equal for equal weights, wherever they lie.
    """
    digest, floats, size = hashlib.sha256(), 0, 0
    for name, tensor in _frozen(prior):
        digest.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        floats += tensor.numel() if tensor.is_floating_point() else 0
        size += tensor.nbytes
    kind = type(prior)
    return {
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "image_size": prior.image_size,
        "floats": floats,
        "bytes": size,
        "sha256": digest.hexdigest(),
    }


def _frozen(prior: Prior) -> Iterator[tuple[str, Tensor]]:
    trained = {id(parameter) for parameter in prior.trainable()}
    for name, tensor in (*prior.named_parameters(), *prior.named_buffers()):
        if id(tensor) not in trained:
            yield name, tensor
