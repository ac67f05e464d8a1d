"""One training step as an objective sees it: draws, real images, and synthetic images with their graph."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from ldd import seeding
from ldd.classes import DataSpec, Labelled
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


Synthesis = Callable[[Tensor, Tensor], Tensor]
"""Rows of codes, and the same on the CPU, to images or what an objective makes of them."""


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
        self.rows_on_host = own[torch.argsort(labels[own], stable=True)]
        self.rows = self.rows_on_host.to(distiller.codes.labels.device, non_blocking=True)
        self.labels = distiller.codes.labels[self.rows]
        self.labels_on_host = labels[self.rows_on_host]
        self.num_codes = len(labels)
        self.all_labels = distiller.codes.labels
        self.all_labels_on_host = labels
        self.core_set = real
        self.stochastic = distiller.codes.stochastic
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
        generators = [self.generator("real", label) for label in labels]
        device = self._distiller.device
        images = self.core_set.draw_classes(labels, n, generators, device, wanted="objective.real_batch")
        return images.to(self._distiller.codes.dtype)

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as networks see them."""
        return self.spec.normalise(images)

    def gather(self, own: Tensor, at: Tensor | None = None, total: int | None = None) -> Tensor:
        """Values of all codes (N, ...), without graph, from those of this rank's `rows` (N', ...).

        With `at` (n',) and `total`: values (total, ...) of anything else of which this rank has those at `at`.
        """
        at, total = self.rows if at is None else at, self.num_codes if total is None else total
        everyone = own.new_zeros(total, *own.shape[1:])
        everyone[at] = own.detach()
        if self._world_size > 1:
            torch.distributed.all_reduce(everyone)
        return everyone

    def decode(self, rows: Tensor, then: Embed | None = None) -> Tensor:
        """Synthetic images of code `rows`, or what `then` makes of them, with graph and in chunks."""
        on_host = self.rows_on_host if rows is self.rows else rows.cpu()
        return self._decode([(rows, on_host)], then, "codes")[0]

    def decode_batches(
        self, batches: Sequence[Tensor], then: Embed | None = None, purpose: str = "codes"
    ) -> list[Tensor]:
        """As `decode`, for each batch of rows on the CPU; every batch and every purpose draws anew from the codes."""
        pairs = [(rows.to(self.rows.device, non_blocking=True), rows) for rows in batches]
        return self._decode(pairs, then, purpose)

    def _decode(
        self, batches: Sequence[tuple[Tensor, Tensor]], then: Embed | None, purpose: str
    ) -> list[Tensor]:
        syntheses = [self._synthesis(purpose, number, then) for number in range(len(batches))]
        plan = self._plan(syntheses[0], batches, purpose, whole=then is not None)
        decoded = []
        for synthesise, (rows, on_host) in zip(syntheses, batches, strict=True):
            # Where images depend on each other, a batch is decoded whole.
            chunk = max(1, len(rows)) if self._distiller.prior.batch_dependent else plan.chunk
            parts = zip(rows.split(chunk), on_host.split(chunk), strict=True)
            made = [_call(synthesise, *part, recompute=plan.checkpoint) for part in parts]
            decoded.append(made[0] if len(made) == 1 else torch.cat(made))
        return decoded

    def _synthesis(self, purpose: str, number: int, then: Embed | None) -> Synthesis:
        seed = self.generator(f"{purpose} {number}" if number else purpose).initial_seed()

        def synthesise(rows: Tensor, on_host: Tensor) -> Tensor:
            # The same state for each chunk, so that chunks and recomputation under a checkpoint draw the same.
            generator = torch.Generator().manual_seed(seed)
            images, _ = self._distiller.synthesise(rows, generator, self.step)
            return images if then is None else then(images, self.all_labels_on_host[on_host])

        return synthesise

    def _plan(
        self, synthesise: Synthesis, batches: Sequence[tuple[Tensor, Tensor]], purpose: str, *, whole: bool
    ) -> MemoryPlan:
        plans = self._distiller.memory_plans
        if purpose not in plans:
            # Found once and then kept (also in checkpoints): another chunk size would change the rounding.
            plans[purpose] = self._find_plan(synthesise, batches, purpose, whole=whole)
        return plans[purpose]

    def _find_plan(
        self, synthesise: Synthesis, batches: Sequence[tuple[Tensor, Tensor]], purpose: str, *, whole: bool
    ) -> MemoryPlan:
        """The plan for these batches; `whole` if nothing of the objective's comes after what is measured here."""
        distiller = self._distiller
        chunk_size, checkpointing = distiller.chunk_size, distiller.checkpointing
        if chunk_size != "auto" and checkpointing != "auto":
            return MemoryPlan(chunk_size, checkpointing == "always")
        everything = (*distiller.codes.parameters(), *distiller.prior.trainable())
        learned = [parameter for parameter in everything if parameter.requires_grad]
        rows, on_host = max(batches, key=lambda batch: len(batch[1]))
        num_images = sum(len(batch) for batch, _ in batches)

        def run(n: int) -> None:
            with torch.enable_grad():
                output = synthesise(rows[:n], on_host[:n])
                torch.autograd.grad(output.sum(), learned, allow_unused=True)

        share = SHARE_OF_FREE_MEMORY if whole else SHARE_BESIDE_OTHERS
        budget = share * free_bytes(distiller.device)
        return recall_plan(
            {**distiller.memory_facts(), "images": num_images, "purpose": purpose},
            lambda: Cost.measure(run, len(rows)),
            lambda cost: make_plan(chunk_size, checkpointing, num_images, cost, budget),
        )


def _call(synthesise: Synthesis, rows: Tensor, on_host: Tensor, *, recompute: bool) -> Tensor:
    if not recompute:
        return synthesise(rows, on_host)
    made: Tensor = checkpoint(synthesise, rows, on_host, use_reentrant=False, preserve_rng_state=False)
    return made
