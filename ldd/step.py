"""One training step as an objective sees it: draws, real images, and synthetic images with their graph."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from ldd import seeding
from ldd.classes import DataSpec, Labelled
from ldd.codes import CodeBatch
from ldd.data.real import RealImages
from ldd.memory import (
    SHARE_BESIDE_OTHERS,
    SHARE_OF_FREE_MEMORY,
    Cost,
    MemoryPlan,
    free_bytes,
    make_plan,
)
from ldd.memory_plans import recall_plan
from ldd.networks import Network, NetworkFactory
from ldd.objectives.base import Embed

if TYPE_CHECKING:
    from ldd.distiller import Distiller


class DistillationStep:
    """The `StepContext` that `Distiller` hands to its objective.

    Args:
        distiller: codes, prior, seed and memory plan.
        real: the core-set.
        step: training step, from 0.
        rank, world_size: classes are dealt over ranks, class k to rank k mod world_size.
    """

    def __init__(
        self, distiller: "Distiller", real: RealImages, step: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.step = step
        self.spec: DataSpec = distiller.data_spec
        self.classes = torch.arange(rank, self.spec.num_classes, world_size)
        labels = distiller.labels_on_host
        own = (labels % world_size == rank).nonzero().flatten()
        self._rows_on_host = own[torch.argsort(labels[own], stable=True)]
        self.rows = self._rows_on_host.to(distiller.codes.labels.device, non_blocking=True)
        self.labels = distiller.codes.labels[self.rows]
        self.labels_on_host = labels[self._rows_on_host]
        self.num_codes = len(labels)
        self.all_labels = distiller.codes.labels
        self.all_labels_on_host = labels
        self.core_set = real
        self._distiller = distiller
        self._world_size = world_size

    def generator(self, purpose: str, label: int | None = None) -> torch.Generator:
        """CPU generator derived from (seed, step, purpose, label)."""
        return seeding.generator(self._distiller.seed, purpose, self.step, label)

    def network(self, factory: NetworkFactory, purpose: str = "network") -> Network:
        """A freshly initialised network, frozen and without dropout; the same on every rank."""
        with seeding.seeded(self._distiller.seed, purpose, self.step):
            network = factory(self.spec.num_classes, self.spec.image_size)
        for module in network.modules():
            if isinstance(module, _DropoutNd):  # noise that neither a rank nor a recomputation could repeat
                module.eval()
        device, dtype = self._distiller.device, self._distiller.codes.dtype
        network = network.to(device, dtype, non_blocking=True)
        return network.to(memory_format=self._distiller.memory_format).requires_grad_(False)

    def real(self, label: int, n: int) -> Tensor:
        """N different real images of a class, (n, C, H, W) in [-1, 1]."""
        return self._draw([label], n)

    def real_classes(self, n: int, classes: Tensor | None = None) -> Labelled:
        """N different real images of each class of the shard (or of `classes`, on the CPU), class-major."""
        classes = self.classes if classes is None else classes
        labels = classes.repeat_interleave(n).to(self._distiller.device, non_blocking=True)
        return Labelled(self._draw(classes.tolist(), n), labels)

    def _draw(self, labels: list[int], n: int) -> Tensor:
        wanted = "objective.real_batch"
        if n > self._fewest:  # refused on every rank, not only on the one that has the class
            for label in range(self.spec.num_classes):
                self.core_set.require(label, n, wanted)
        generators = [self.generator("real", label) for label in labels]
        images = self.core_set.draw_classes(labels, n, generators, self._distiller.device, wanted)
        return images.to(self._distiller.codes.dtype)

    @cached_property
    def _fewest(self) -> int:
        return min(self.core_set.counts)

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as networks see them."""
        return self.spec.normalise(images)

    def gather(self, own: Tensor) -> Tensor:
        """Values of all codes (N, ...), without graph, from those of this rank's `rows` (N', ...)."""
        everyone = own.new_zeros(self.num_codes, *own.shape[1:])
        everyone[self.rows] = own.detach()
        if self._world_size > 1:
            torch.distributed.all_reduce(everyone)
        return everyone

    def decode(self, rows: Tensor, then: Embed | None = None) -> Tensor:
        """Synthetic images of code `rows`, or what `then` makes of them, with graph and in chunks."""
        if not len(rows):
            # More ranks than classes: this one makes an image for its shape, and keeps none of it.
            return self.decode(torch.zeros(1, dtype=torch.int64, device=rows.device), then)[:0]
        generator_seed = self.generator("codes").initial_seed()
        on_host = self._rows_on_host if rows is self.rows else rows.cpu()

        def synthesise(chunk: Tensor, chunk_on_host: Tensor) -> Tensor:
            # The same state for each chunk, so that chunks and recomputation under a checkpoint draw the same.
            generator = torch.Generator().manual_seed(generator_seed)
            images, _ = self._distiller.synthesise(chunk, generator, self.step)
            return images if then is None else then(images, self.all_labels_on_host[chunk_on_host])

        plan = self._plan(synthesise, whole=then is not None)
        chunks = zip(rows.split(plan.chunk), on_host.split(plan.chunk), strict=True)
        if not plan.checkpoint:
            return torch.cat([synthesise(*chunk) for chunk in chunks])
        return torch.cat(
            [
                checkpoint(synthesise, *chunk, use_reentrant=False, preserve_rng_state=False)
                for chunk in chunks
            ]
        )

    def _plan(self, synthesise: Callable[[Tensor, Tensor], Tensor], *, whole: bool) -> MemoryPlan:
        distiller = self._distiller
        if distiller.memory_plan is None:
            # Found once and then kept (also in checkpoints): another chunk size would change the rounding.
            distiller.memory_plan = self._agreed(self._find_plan(synthesise, whole=whole))
        return distiller.memory_plan

    def _find_plan(self, synthesise: Callable[[Tensor, Tensor], Tensor], *, whole: bool) -> MemoryPlan:
        """The plan for a rank's codes; `whole` if nothing of the objective's comes after what is measured here."""
        distiller = self._distiller
        chunk_size, checkpointing = distiller.chunk_size, distiller.checkpointing
        if chunk_size != "auto" and checkpointing != "auto":
            return MemoryPlan(chunk_size, checkpointing == "always")
        batches: list[CodeBatch] = []
        sample = torch.arange(min(2, self.num_codes))
        most = int(torch.bincount(self.all_labels_on_host % self._world_size).max())  # codes of one rank

        def run(n: int) -> None:
            # Up to the batch's codes and no further: gradients of all codes would hide those of a few images.
            seen = distiller.codes.register_forward_hook(lambda module, given, batch: batches.append(batch))
            with torch.enable_grad(), seen:
                output = synthesise(sample[:n].to(self.rows.device), sample[:n])
                ends = [end for end in (*batches.pop(), *distiller.prior.trainable()) if end.requires_grad]
                torch.autograd.grad(output.sum(), ends, allow_unused=True)

        share = SHARE_OF_FREE_MEMORY if whole else SHARE_BESIDE_OTHERS
        budget = share * free_bytes(distiller.device)
        return recall_plan(
            {**distiller.memory_facts(), "images": most},
            lambda: Cost.measure(run, len(sample)),
            lambda cost: make_plan(chunk_size, checkpointing, most, cost, budget),
        )

    def _agreed(self, plan: MemoryPlan) -> MemoryPlan:
        """One plan for all ranks, in which the one with the least memory fits: a checkpoint holds only one."""
        if self._world_size == 1:
            return plan
        numbers = torch.tensor([plan.chunk, not plan.checkpoint], device=self._distiller.device)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MIN)
        chunk, keep = numbers.tolist()
        return MemoryPlan(chunk, not keep)
