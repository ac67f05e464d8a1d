"""One training step as an objective sees it: draws, real images, and synthetic images with their graph."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ldd.data.real import RealImages
from ldd.distiller.memory import MemoryPlanner, Pass
from ldd.distiller.record import RunLedger
from ldd.distiller.synthesis import Synthesis
from ldd.images import DataSpec, Labelled
from ldd.networks import Network, NetworkFactory
from ldd.objectives.base import Embed, frozen_network
from ldd.runtime import seeding
from ldd.runtime.ranks import sum_over_ranks


class DistillationStep:
    """The `StepContext` of a training step; class k is dealt to rank k mod `world_size`."""

    def __init__(
        self,
        synthesis: Synthesis,
        spec: DataSpec,
        real: RealImages,
        seed: int,
        planner: MemoryPlanner,
        ledger: RunLedger,
        memory_format: torch.memory_format = torch.contiguous_format,
        step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.step = step
        self.spec = spec
        self.core_set = real
        self.stochastic = synthesis.codes.stochastic
        self.all_labels, labels = synthesis.codes.labels, synthesis.labels_on_host
        self.all_labels_on_host = labels
        self.num_codes = len(labels)
        self.classes = torch.arange(rank, spec.num_classes, world_size)
        own = (labels % world_size == rank).nonzero().flatten()
        self._device = self.all_labels.device
        self.rows_on_host = own[torch.argsort(labels[own], stable=True)]
        self.rows = self.rows_on_host.to(self._device, non_blocking=True)
        self.labels, self.labels_on_host = self.all_labels[self.rows], labels[self.rows_on_host]
        self._synthesis = synthesis
        self._seed = seed
        self._planner = planner
        self._ledger = ledger
        self._memory_format = memory_format

    def generator(self, purpose: str, label: int | None = None) -> torch.Generator:
        """Return the CPU generator derived from (seed, step, purpose, label)."""
        return seeding.generator(self._seed, purpose, self.step, label)

    def network(self, factory: NetworkFactory, purpose: str = "network") -> Network:
        """Return a freshly initialised network, frozen and without dropout; the same on every rank."""
        network = frozen_network(factory, self.spec, self._seed, purpose, self.step)
        network = network.to(self._device, self._synthesis.codes.dtype, non_blocking=True)
        return network.to(memory_format=self._memory_format)

    def real(self, label: int, n: int) -> Tensor:
        """Return `n` different real images of a class, (n, C, H, W) in [-1, 1]."""
        return self._draw([label], n)

    def real_classes(self, n: int, classes: Tensor | None = None) -> Labelled:
        """Return `n` different real images of each class of the shard (or of `classes`, on the CPU), class-major."""
        classes = self.classes if classes is None else classes
        labels = classes.repeat_interleave(n).to(self._device, non_blocking=True)
        return Labelled(self._draw(classes.tolist(), n), labels)

    def _draw(self, labels: list[int], n: int) -> Tensor:
        wanted = "objective.real_batch"
        if n > self._fewest:  # on every rank, not only on the one that has the class
            for label in range(self.spec.num_classes):
                self.core_set.require(label, n, wanted)
        generators = [self.generator("real", label) for label in labels]
        images = self.core_set.draw_classes(labels, n, generators, self._device, wanted)
        return images.to(self._synthesis.codes.dtype)

    @cached_property
    def _fewest(self) -> int:
        return min(self.core_set.counts)

    def normalise(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1] as networks see them."""
        return self.spec.normalise(images)

    def gather(self, own: Tensor, at: Tensor | None = None, total: int | None = None) -> Tensor:
        """Return values of all codes (N, ...), without graph, from those of this rank's `rows` (N', ...).

        With `at` (n',) and `total`: values (total, ...) of anything else of which this rank has those at `at`.
        """
        at, total = self.rows if at is None else at, self.num_codes if total is None else total
        everyone = own.new_zeros(total, *own.shape[1:])
        everyone[at] = own.detach()
        return sum_over_ranks(everyone)

    def decode(self, rows: Tensor, then: Embed | None = None) -> Tensor:
        """Return synthetic images of code `rows`, or what `then` makes of them, with graph and in chunks."""
        on_host = self.rows_on_host if rows is self.rows else rows.cpu()
        return self._decode([(rows, on_host)], then, "codes")[0]

    def decode_batches(
        self, batches: Sequence[Tensor], then: Embed | None = None, purpose: str = "codes"
    ) -> list[Tensor]:
        """Decode each batch of rows on the CPU; every batch and every purpose draws anew from the codes."""
        pairs = [(rows.to(self._device, non_blocking=True), rows) for rows in batches]
        return self._decode(pairs, then, purpose)

    def _decode(
        self, batches: Sequence[tuple[Tensor, Tensor]], then: Embed | None, purpose: str
    ) -> list[Tensor]:
        passes = [self._pass(purpose, number, then) for number in range(len(batches))]
        num_images = sum(len(on_host) for _, on_host in batches)
        plan = self._planner.plan(purpose, passes[0], num_images, whole=then is not None)
        self._ledger.decoded(num_images)
        decoded = []
        for make, (rows, on_host) in zip(passes, batches, strict=True):
            keep = len(rows)
            if not keep:  # a rank without codes here makes an image for its shape, and keeps none of it
                on_host = torch.zeros(1, dtype=torch.int64)
                rows = on_host.to(self._device)
            parts = zip(*(self._synthesis.split(each, plan.chunk) for each in (rows, on_host)), strict=True)
            made = [_call(make, *part, recompute=plan.checkpoint) for part in parts]
            whole = made[0] if len(made) == 1 else torch.cat(made)
            decoded.append(whole if keep else whole[:0])
        return decoded

    def _pass(self, purpose: str, number: int, then: Embed | None) -> Pass:
        seed = self.generator(f"{purpose} {number}" if number else purpose).initial_seed()

        def make(rows: Tensor, on_host: Tensor) -> Tensor:
            # The same state for each chunk, so that chunks and recomputation under a checkpoint draw the same.
            images = self._synthesis(rows, torch.Generator().manual_seed(seed), self.step)
            return images if then is None else then(images, self.all_labels_on_host[on_host])

        return make


def _call(make: Pass, rows: Tensor, on_host: Tensor, *, recompute: bool) -> Tensor:
    if not recompute:
        return make(rows, on_host)
    made: Tensor = checkpoint(make, rows, on_host, use_reentrant=False, preserve_rng_state=False)
    return made
