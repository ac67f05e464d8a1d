"""How many images fit: bytes autograd keeps per image, free memory, and the plan made from both."""

import resource
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from torch import Tensor

from ldd.errors import UserError

SHARE_OF_FREE_MEMORY = 0.5
"""What a plan may fill: backward needs room for gradients beside the saved activations."""

SHARE_FOR_REAL_IMAGES = 0.25
"""What the real images may take of a device's free memory; a larger core-set stays on the host."""

ChunkSize = Literal["auto"] | int
Checkpointing = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class MemoryPlan:
    """How images are decoded with graph.

    Attributes:
        chunk: images per pass.
        checkpoint: recompute activations in backward instead of keeping them.
    """

    chunk: int
    checkpoint: bool


def make_plan(
    chunk_size: ChunkSize, checkpointing: Checkpointing, num_images: int, bytes_per_image: int, free: int
) -> MemoryPlan:
    """Keep all activations when they fit into half of the free memory; else checkpoint chunks that do.

    Args:
        chunk_size: images per pass as the user set it; honoured as given.
        checkpointing: as the user set it; "never" with too little memory ends in the allocator's own error.
        num_images: images of one rank.
        bytes_per_image: what autograd saves for one image.
        free: bytes.
    """
    budget = SHARE_OF_FREE_MEMORY * free
    fits_at_once = num_images * bytes_per_image <= budget
    checkpoint = checkpointing == "always" or (checkpointing == "auto" and not fits_at_once)
    if chunk_size != "auto":
        return MemoryPlan(chunk_size, checkpoint)
    chunk = num_images if fits_at_once else max(1, int(budget // bytes_per_image))
    return MemoryPlan(chunk, checkpoint)


def check_chunk_size(chunk_size: ChunkSize) -> None:
    """Refuse a chunk size that is neither "auto" nor at least 1."""
    if chunk_size != "auto" and chunk_size < 1:
        raise UserError(f"chunk_size ({chunk_size}) must be 'auto' or at least 1")


def saved_bytes(function: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes of the tensors autograd saves while `function` runs, `parameters` (they exist anyway) excluded."""
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return total


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: the allocator's on CUDA, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
