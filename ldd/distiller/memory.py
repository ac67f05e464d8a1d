"""How many images fit: the bytes that a pass takes per image, the plan made for the free memory, and its keeping."""

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldd.codes import CodeBatch
from ldd.disk.files import write_json
from ldd.distiller.synthesis import Synthesis
from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.objectives import Objective
from ldd.runtime.devices import device_name, free_bytes
from ldd.runtime.ranks import most_over_ranks

SHARE_OF_FREE_MEMORY = 0.8
"""What a plan may fill if the measured pass is all that a step does; the rest is for workspaces and gaps."""

SHARE_BESIDE_OTHERS = 0.5
"""What a plan may fill if the objective keeps graphs of its own as well (DC, MTT)."""

SHARE_FOR_REAL_IMAGES = 0.25
"""What the real images may take of a device's free memory; a larger core-set stays on the host."""

MAX_PLANS = 200  # in the file of this machine; the oldest go

ChunkSize = Literal["auto"] | int
Checkpointing = Literal["auto", "always", "never"]

Pass = Callable[[Tensor], Tensor]
"""Makes images of code rows (n,), given on the CPU, or what an objective makes of the images."""


@dataclass(frozen=True)
class MemoryPlan:
    """How images are decoded with graph: how many per pass, and whether backward computes activations again."""

    chunk: int
    checkpoint: bool


@dataclass(frozen=True)
class Cost:
    """Peak bytes of a pass with its backward: `fixed + n * per_image` for n images."""

    fixed: int
    per_image: int

    @classmethod
    def measure(cls, run: Callable[[int], object], most: int) -> "Cost":
        """Measure passes of one image and of two, or of one alone where there are no more than that."""
        one = peak_bytes(lambda: run(1))
        if most < 2:
            return cls(0, one)
        per_image = max(1, peak_bytes(lambda: run(2)) - one)
        return cls(max(0, one - per_image), per_image)

    def most(self, budget: float) -> int:
        """Return how many images fit into `budget` bytes; at least 1."""
        return max(1, int((budget - self.fixed) // max(1, self.per_image)))


class MemoryPlanner:
    """Decides how a run decodes images with graph, once for each purpose: another chunk size changes the rounding.

    `chunk_size` and `checkpointing` are as the user set them. Layout and compiler change what a pass takes.

    Raises:
        UserError: a chunk size below 1, or any for a prior whose images depend on those decoded with them.
    """

    def __init__(
        self,
        synthesis: Synthesis,
        objective: Objective,
        spec: DataSpec,
        chunk_size: ChunkSize = "auto",
        checkpointing: Checkpointing = "auto",
        memory_format: torch.memory_format = torch.contiguous_format,
        compile_backend: str | None = None,
        prior_precision: str = "float32",
    ) -> None:
        if chunk_size != "auto" and chunk_size < 1:
            raise UserError(f"chunk_size ({chunk_size}) must be 'auto' or at least 1")
        if synthesis.prior.batch_dependent and chunk_size != "auto":
            raise UserError(
                f"chunk_size ({chunk_size}) would change the batch statistics of {type(synthesis.prior).__name__}; set "
                "it to auto, or choose preset: corrected"
            )
        self.chunk_size = chunk_size
        self.checkpointing: Checkpointing = checkpointing
        self.plans: dict[str, MemoryPlan] = {}
        self._synthesis = synthesis
        self._objective = objective
        self._spec = spec
        self._settings = [chunk_size, checkpointing, str(memory_format), compile_backend, prior_precision]

    def plan(self, purpose: str, make: Pass, num_images: int, *, whole: bool) -> MemoryPlan:
        """Return the plan of a purpose; when it is first asked for, all ranks measure and agree on one.

        `make` is the pass to measure, `num_images` what this rank decodes in a step, `whole` whether the objective
        keeps nothing beside what the pass makes.
        """
        if purpose not in self.plans:
            device = self._synthesis.codes.labels.device
            # One plan for all ranks, with which the one that has the least memory can work.
            (most,) = most_over_ranks([max(1, num_images)], device)
            plan = self._find(purpose, make, most, SHARE_OF_FREE_MEMORY if whole else SHARE_BESIDE_OTHERS)
            chunk, checkpoint = most_over_ranks([-plan.chunk, plan.checkpoint], device)
            self.plans[purpose] = MemoryPlan(-chunk, bool(checkpoint))
        return self.plans[purpose]

    def _find(self, purpose: str, make: Pass, num_images: int, share: float) -> MemoryPlan:
        chunk_size, checkpointing = self.chunk_size, self.checkpointing
        if chunk_size != "auto" and checkpointing != "auto":
            return MemoryPlan(chunk_size, checkpointing == "always")
        codes, prior = self._synthesis.codes, self._synthesis.prior
        device, sample = codes.labels.device, torch.arange(min(2, len(codes)))
        seen: list[CodeBatch] = []

        def run(n: int) -> None:
            # Up to the batch's codes and no further: gradients of all codes would hide those of a few images.
            hook = codes.register_forward_hook(lambda module, given, batch: seen.append(batch))
            with torch.enable_grad(), hook:
                output = make(sample[:n])
                ends = [end for end in (*seen.pop(), *prior.trainable()) if end.requires_grad]
                torch.autograd.grad(output.sum(), ends, allow_unused=True)

        budget = share * free_bytes(device)
        return recall_plan(
            {**self._facts(device), "images": num_images, "purpose": purpose},
            lambda: Cost.measure(run, len(sample)),
            lambda cost: make_plan(chunk_size, checkpointing, num_images, cost, budget),
        )

    def _facts(self, device: torch.device) -> dict[str, object]:
        """What the memory of a pass depends on, as plain JSON values."""
        codes, prior, spec = self._synthesis.codes, self._synthesis.prior, self._spec
        networks = [
            factory(spec.num_classes, spec.image_size) for factory in self._objective.matching_networks()
        ]
        return {
            "prior": [str(type(prior)), repr(prior), prior.latent_shape, prior.num_steps],
            "guidance": getattr(prior, "guidance_scale", None),
            "objective": str(type(self._objective)),
            "networks": [repr(network) for network in networks],
            "image_size": spec.image_size,
            "codes": [str(type(codes)), str(codes.dtype)],
            "autocast": str(torch.get_autocast_dtype(device.type)) * torch.is_autocast_enabled(device.type),
            "settings": self._settings,
            "device": device_name(device),
            "torch": torch.__version__,
        }

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put the plans into a checkpoint."""
        if self.plans:
            checkpoint["memory_plans"] = {purpose: astuple(plan) for purpose, plan in self.plans.items()}
            checkpoint["memory_settings"] = (self.chunk_size, self.checkpointing)

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the plans of a checkpoint, unless it was made with other settings."""
        if checkpoint.get("memory_settings") == (self.chunk_size, self.checkpointing):
            self.plans = {purpose: MemoryPlan(*plan) for purpose, plan in checkpoint["memory_plans"].items()}


def make_plan(
    chunk_size: ChunkSize, checkpointing: Checkpointing, num_images: int, cost: Cost, budget: float
) -> MemoryPlan:
    """Keep all activations if they fit into the budget (in bytes); else checkpoint the largest chunks that do.

    What the user has set is honoured: "never" with too little memory ends in the allocator's own error.
    """
    fits_at_once = cost.fixed + num_images * cost.per_image <= budget
    checkpoint = checkpointing == "always" or (checkpointing == "auto" and not fits_at_once)
    if chunk_size != "auto":
        return MemoryPlan(chunk_size, checkpoint)
    return MemoryPlan(num_images if fits_at_once else min(num_images, cost.most(budget)), checkpoint)


def recall_plan(
    facts: Mapping[str, object], measure: Callable[[], Cost], make: Callable[[Cost], MemoryPlan]
) -> MemoryPlan:
    """Return the plan that an earlier run on this machine found for the same facts, or make one and keep it.

    So the same run has the same chunks, and with them the same rounding, however busy the machine is. A plan that
    no longer fits, or has less than half the images per pass of what fits now, is made anew from the measured cost.
    The file, `memory_plans.json` in `$XDG_CACHE_HOME/latentdd` (or `~/.cache/latentdd`), may be deleted at any
    time.
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


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the most bytes that tensors made in `function` (its backward included) hold at one time."""
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
