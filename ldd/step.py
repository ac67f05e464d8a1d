"""One training step as an objective sees it: draws, real images, and synthetic images with their graph."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from ldd import seeding
from ldd.classes import DataSpec, Labelled
from ldd.data.real import RealImages
from ldd.memory import MemoryPlan, free_bytes, make_plan, saved_bytes
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
        labels = distiller.codes.labels
        own = (labels % world_size == rank).nonzero().flatten()
        self.rows = own[torch.argsort(labels[own], stable=True)]
        self.labels = labels[self.rows]
        self.num_codes = len(labels)
        self.all_labels = labels
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
        return network.to(self._distiller.device, self._distiller.codes.dtype).requires_grad_(False)

    def real(self, label: int, n: int) -> Tensor:
        """N different real images of a class, (n, C, H, W) in [-1, 1]."""
        images = self.core_set.draw(label, n, self.generator("real", label), wanted="objective.real_batch")
        return images.to(self._distiller.device, self._distiller.codes.dtype)

    def real_classes(self, n: int) -> Labelled:
        """N different real images of each class of the shard, class-major."""
        labels = self.classes.repeat_interleave(n).to(self._distiller.device)
        return Labelled(torch.cat([self.real(label, n) for label in self.classes.tolist()]), labels)

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
        generator_seed = self.generator("codes").initial_seed()

        def synthesise(chunk: Tensor) -> Tensor:
            # The same state for each chunk, so that chunks and recomputation under a checkpoint draw the same.
            generator = torch.Generator().manual_seed(generator_seed)
            images, labels = self._distiller.synthesise(chunk, generator)
            return images if then is None else then(images, labels)

        plan = self._plan(synthesise, rows)
        if not plan.checkpoint:
            return torch.cat([synthesise(chunk) for chunk in rows.split(plan.chunk)])
        return torch.cat(
            [
                checkpoint(synthesise, chunk, use_reentrant=False, preserve_rng_state=False)
                for chunk in rows.split(plan.chunk)
            ]
        )

    def _plan(self, synthesise: Callable[[Tensor], Tensor], rows: Tensor) -> MemoryPlan:
        distiller = self._distiller
        if distiller.memory_plan is None:
            # Measured once and then kept (also in checkpoints): another chunk size would change the rounding.
            fixed = distiller.chunk_size != "auto" and distiller.checkpointing != "auto"
            per_image = 0 if fixed else saved_bytes(lambda: synthesise(rows[:1]), distiller.parameters())
            distiller.memory_plan = make_plan(
                distiller.chunk_size,
                distiller.checkpointing,
                len(rows),
                per_image,
                free_bytes(distiller.device),
            )
        return distiller.memory_plan
