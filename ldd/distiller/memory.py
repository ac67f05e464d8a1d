"""Memory of decoding passes: the bytes that an image takes, the plan for the free memory, and its record on disk."""

import hashlib
import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldd.codes import CodeBatch
from ldd.disk.files import user_cache, write_json
from ldd.distiller.synthesis import Synthesis
from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.networks.settings import settings_of
from ldd.objectives import Objective
from ldd.runtime.devices import device_name, free_bytes
from ldd.runtime.ranks import most_over_ranks

SHARE_OF_FREE_MEMORY = 0.8
"""Share that a plan may fill if the measured pass is all that a step does; the rest is for workspaces and gaps."""

SHARE_BESIDE_OTHERS = 0.5
"""Share that a plan may fill if the objective keeps graphs of its own as well (DC, MTT)."""

SHARE_FOR_REAL_IMAGES = 0.25
"""Share of a device's free memory that the real images may take; a larger core-set stays on the host."""

MAX_PLANS = 200  # in the file of this machine; the oldest go

ChunkSize = Literal["auto"] | int
Checkpointing = Literal["auto", "always", "never"]

Pass = Callable[[Tensor, int], Tensor]
"""Makes images of code rows (n,), given on the CPU, or what an objective makes of the images.

`MemoryPlan.checkpointed` says how many.
"""


@dataclass(frozen=True)
class MemoryPlan:
    """How images are decoded with graph, and how much of it backward computes again. Only `chunk` changes rounding.

    Attributes:
        chunk: images per pass.
        checkpointed: how many parts of a pass have an activation checkpoint, from the first of the S calls of the
            prior's network; S + 1 is all of them, and decoding with what follows.
    """

    chunk: int
    checkpointed: int


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

    def of(self, n: int) -> int:
        """Return the bytes of a pass of n images."""
        return self.fixed + n * self.per_image


@dataclass(frozen=True)
class PassCosts:
    """What a pass takes with all activations kept, and with all of its parts checkpointed."""

    kept: Cost
    checkpointed: Cost


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
        """Return the plan of a purpose; when it is first asked for, all ranks measure the pass `make` and agree on one.

        `num_images` is what this rank decodes in a step; `whole`: the objective keeps nothing but what the pass makes.
        """
        if purpose not in self.plans:
            device = self._synthesis.codes.labels.device
            # One plan for all ranks, with which the one that has the least memory can work.
            (most,) = most_over_ranks([max(1, num_images)], device)
            plan = self._find(purpose, make, most, SHARE_OF_FREE_MEMORY if whole else SHARE_BESIDE_OTHERS)
            chunk, checkpointed = most_over_ranks([-plan.chunk, plan.checkpointed], device)
            self.plans[purpose] = MemoryPlan(-chunk, checkpointed)
        return self.plans[purpose]

    def _find(self, purpose: str, make: Pass, num_images: int, share: float) -> MemoryPlan:
        chunk_size, checkpointing = self.chunk_size, self.checkpointing
        codes, prior = self._synthesis.codes, self._synthesis.prior
        calls = prior.num_steps
        if chunk_size != "auto" and checkpointing != "auto":
            return MemoryPlan(chunk_size, calls + 1 if checkpointing == "always" else 0)
        device, sample = codes.labels.device, torch.arange(min(2, len(codes)))
        seen: list[CodeBatch] = []

        def run(n: int, checkpointed: int) -> None:
            # Up to the batch's codes and no further: gradients of all codes would hide the gradients of a few images.
            hook = codes.register_forward_hook(lambda module, given, batch: seen.append(batch))
            with torch.enable_grad(), hook:
                output = make(sample[:n], checkpointed)
                ends = [end for end in (*seen.pop(), *prior.trainable()) if end.requires_grad]
                torch.autograd.grad(output.sum(), ends, allow_unused=True)

        def measure() -> PassCosts:
            kept, again = (partial(run, checkpointed=count) for count in (0, calls + 1))
            return PassCosts(Cost.measure(kept, len(sample)), Cost.measure(again, len(sample)))

        budget = share * free_bytes(device)
        return recall_plan(
            {**self._facts(device), "images": num_images, "purpose": purpose},
            measure,
            lambda costs: make_plan(chunk_size, checkpointing, num_images, calls, costs, budget),
        )

    def _facts(self, device: torch.device) -> dict[str, object]:
        """Return what the memory of a pass depends on, as plain JSON values."""
        codes, prior, spec = self._synthesis.codes, self._synthesis.prior, self._spec
        networks = [
            factory(spec.num_classes, spec.image_size) for factory in self._objective.matching_networks()
        ]
        return {
            "prior": [str(type(prior)), torch.nn.Module.__repr__(prior), prior.latent_shape, prior.num_steps],
            "guidance": getattr(prior, "guidance_scale", None),
            "objective": str(type(self._objective)),
            "networks": [[repr(network), *settings_of(network)] for network in networks],
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
            everything = self._synthesis.prior.num_steps + 1
            self.plans = {  # older checkpoints say whether, and not how much
                purpose: MemoryPlan(chunk, everything if count is True else int(count))
                for purpose, (chunk, count) in checkpoint["memory_plans"].items()
            }


def make_plan(
    chunk_size: ChunkSize,
    checkpointing: Checkpointing,
    num_images: int,
    calls: int,
    costs: PassCosts,
    budget: float,
) -> MemoryPlan:
    """Checkpoint as few of the network's `calls` as let all images' activations fit into the budget (in bytes).

    Where even all of them are too few, checkpoint everything, in the largest chunks that fit. What the user has set is
    honoured: "never" with too little memory ends in the allocator's own error.
    """
    count = {"never": 0, "always": calls + 1}.get(checkpointing)
    if count is None:
        count = next(
            (n for n in range(calls + 1) if cost_with(costs, n, calls).of(num_images) <= budget), calls + 1
        )
    if chunk_size != "auto":
        return MemoryPlan(chunk_size, count)
    return MemoryPlan(min(num_images, cost_with(costs, count, calls).most(budget)), count)


def cost_with(costs: PassCosts, count: int, calls: int) -> Cost:
    """Return what a pass takes at most with `count` of its network's equal `calls` checkpointed."""
    share = min(1.0, count / max(1, calls))
    pairs = zip(astuple(costs.kept), astuple(costs.checkpointed), strict=True)
    return Cost(*(round(kept + share * (least - kept)) for kept, least in pairs))


def recall_plan(
    facts: Mapping[str, object], measure: Callable[[], PassCosts], make: Callable[[PassCosts], MemoryPlan]
) -> MemoryPlan:
    """Return the plan that an earlier run on this machine found for the same facts, or make one and keep it.

    So the same run has the same chunks, and with them the same rounding, however busy the machine is. Chunks that no
    longer fit, or that are less than half of what fits now, are planned anew from the measured costs. The file,
    `memory_plans.json` in `$XDG_CACHE_HOME/latentdd` (or `~/.cache/latentdd`), may be deleted at any time.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = user_cache() / "memory_plans.json"
    kept = _read_plans(path)
    found = kept.pop(key, None)
    costs = measure() if found is None else _costs(found)
    plan = make(costs)
    if found is not None and plan.chunk / 2 < found["chunk"] <= plan.chunk:
        return replace(plan, chunk=found["chunk"])
    of_this = {"costs": asdict(costs), "chunk": plan.chunk}
    entries = [*list(kept.items())[-MAX_PLANS + 1 :], (key, of_this)]
    with suppress(UserError):  # a machine without a home to write to measures each time
        write_json(path, dict(entries))
    return plan


def _read_plans(path: Path) -> dict[str, Any]:
    """Return what the file holds; nothing if it is missing, damaged or of another format."""
    try:
        content = json.loads(path.read_text())
        for entry in content.values():
            _costs(entry), int(entry["chunk"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return dict(content)


def _costs(entry: Mapping[str, Any]) -> PassCosts:
    return PassCosts(**{name: Cost(**cost) for name, cost in entry["costs"].items()})


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the most bytes that tensors made in `function` (its backward included) hold at one time."""
    live = _LiveBytes()
    with torch.compiler.set_stance("force_eager"), live:  # compiled code does not show its tensors
        function()
    return live.peak


def peak_mib(function: Callable[[], object], device: torch.device) -> float:
    """Return the most MiB that tensors made in `function` hold at one time; on CUDA what the allocator adds."""
    if device.type != "cuda":
        return peak_bytes(function) / 2**20
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def kept_mib(function: Callable[[], Tensor], weights: Iterable[Tensor]) -> float:
    """Return the MiB that the graph of what `function` makes keeps for backward, `weights` left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = function()
    kept = sum(saved.values())
    del held
    return kept / 2**20


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
