"""How many images fit: bytes that a pass takes per image, free memory, the plan made from both, and its memory."""

import resource
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldd.errors import UserError

SHARE_OF_FREE_MEMORY = 0.8
"""What a plan may fill where all that follows is in what was measured; the rest is for workspaces and gaps."""

SHARE_BESIDE_OTHERS = 0.5
"""The same where the objective keeps graphs of its own beside the images (DC, MTT)."""

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


@dataclass(frozen=True)
class Cost:
    """Peak bytes of a pass with its backward: `fixed + n x per_image` for n images.

    Attributes:
        fixed: whatever the number of images.
        per_image: of each.
    """

    fixed: int
    per_image: int

    @classmethod
    def measure(cls, run: Callable[[int], object], most: int) -> "Cost":
        """From passes of one image and of two (or of one alone, where there are no more).

        Args:
            run: forward and backward of n images, nothing kept.
            most: images there are.
        """
        one = peak_bytes(lambda: run(1))
        if most < 2:
            return cls(0, one)
        per_image = max(1, peak_bytes(lambda: run(2)) - one)
        return cls(max(0, one - per_image), per_image)

    def most(self, budget: float) -> int:
        """Images that fit into `budget` bytes; at least 1."""
        return max(1, int((budget - self.fixed) // max(1, self.per_image)))


def make_plan(
    chunk_size: ChunkSize, checkpointing: Checkpointing, num_images: int, cost: Cost, budget: float
) -> MemoryPlan:
    """Keep all activations when they fit into the budget; else checkpoint the largest chunks that do.

    Args:
        chunk_size: images per pass as the user set it; honoured as given.
        checkpointing: as the user set it; "never" with too little memory ends in the allocator's own error.
        num_images: images of one rank.
        cost: of a pass.
        budget: bytes.
    """
    fits_at_once = cost.fixed + num_images * cost.per_image <= budget
    checkpoint = checkpointing == "always" or (checkpointing == "auto" and not fits_at_once)
    if chunk_size != "auto":
        return MemoryPlan(chunk_size, checkpoint)
    return MemoryPlan(num_images if fits_at_once else min(num_images, cost.most(budget)), checkpoint)


def check_chunk_size(chunk_size: ChunkSize) -> None:
    """Refuse a chunk size that is neither "auto" nor at least 1."""
    if chunk_size != "auto" and chunk_size < 1:
        raise UserError(f"chunk_size ({chunk_size}) must be 'auto' or at least 1")


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes that tensors made while `function` runs (its backward included) hold at one time, on any device."""
    live = _LiveBytes()
    with torch.compiler.set_stance("force_eager"), live:  # compiled code does not show its tensors
        function()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts storages from the operation that makes them until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        for value in tree_leaves((args, kwargs)):  # what was there before
            if isinstance(value, Tensor):
                self._seen.add(value.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (storage := value.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, count: int) -> None:
        self._now -= count


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def device_name(device: torch.device) -> str:
    """The kind of device and all its memory, as text."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return f"{facts.name}, {facts.total_memory} bytes"
    return f"{device.type}, {psutil.virtual_memory().total} bytes"


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: the allocator's on CUDA, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
