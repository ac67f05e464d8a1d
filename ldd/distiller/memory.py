"""How many images fit: bytes that a pass takes per image, free memory, the plan made from both, and its memory."""

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldd.disk.files import write_json
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


MAX_PLANS = 200  # kept; the oldest go


def recall_plan(
    facts: Mapping[str, object],
    measure: Callable[[], Cost],
    make: Callable[[Cost], MemoryPlan],
) -> MemoryPlan:
    """The plan that an earlier run on this machine found for the same `facts`, or a new one, which is kept.

    So the same run has the same chunks, and with them the same rounding, however busy the machine is. A plan that
    no longer fits, or has less than half the images per pass of what fits now, is made anew from the measured cost.
    The file, `memory_plans.json` in `$XDG_CACHE_HOME/latentdd` (or `~/.cache/latentdd`), may be deleted at any time.

    Args:
        facts: all that the cost depends on; plain JSON values.
        measure: measures the cost.
        make: makes a plan for the memory that is free now.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentdd" / "memory_plans.json"
    kept = _read_plans(path)
    found = kept.pop(key, None)
    cost = measure() if found is None else Cost(**found["cost"])
    plan = make(cost)
    if found is not None:
        before = MemoryPlan(**found["plan"])
        if before == plan or (
            before.checkpoint and plan.checkpoint and plan.chunk / 2 < before.chunk <= plan.chunk
        ):
            return before
    entries = [*list(kept.items())[-MAX_PLANS + 1 :], (key, {"cost": asdict(cost), "plan": asdict(plan)})]
    with suppress(UserError):  # a machine without a home to write to measures each time
        write_json(path, dict(entries))
    return plan


def _read_plans(path: Path) -> dict[str, Any]:
    """What the file holds; nothing if it is missing, damaged or of another format."""
    try:
        content = json.loads(path.read_text())
        for entry in content.values():
            Cost(**entry["cost"]), MemoryPlan(**entry["plan"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return dict(content)
