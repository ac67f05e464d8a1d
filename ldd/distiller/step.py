"""One training step as an objective sees it: draws, real images, and synthetic images with their graph."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ldd.data.real import RealImages
from ldd.distiller.memory import MemoryPlanner, Pass
from ldd.distiller.record import RunLedger
from ldd.distiller.synthesis import Synthesis
from ldd.images import DataSpec, Labelled
from ldd.networks import Network, NetworkFactory
from ldd.objectives.base import Embed, StepContext, frozen_network
from ldd.runtime import seeding
from ldd.runtime.ranks import sum_over_ranks


class DistillationStep(StepContext):
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
        self.step = self.turn = step
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
        self._fewest = min(real.counts)
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
        if self._device.type == "cuda":  # copies from pageable memory would wait for all that is queued
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.data = tensor.data.pin_memory()
        network = network.to(self._device, self._synthesis.codes.dtype, non_blocking=True)
        return network.to(memory_format=self._memory_format)

    def real_classes(self, n: int, classes: Tensor | None = None) -> Labelled:
        """Return `n` different real images of each class of the shard (or of `classes`, on the CPU), class-major."""
        classes = self.classes if classes is None else classes
        (images,) = self.real_parts(n, classes, n * len(classes))
        return Labelled(images, classes.repeat_interleave(n).to(self._device, non_blocking=True))

    def real_parts(self, n: int, classes: Tensor, chunk: int) -> Iterator[Tensor]:
        """Yield the images of `real_classes`, each `chunk` of them gathered when it is asked for."""
        wanted = "objective.real_batch"
        if n > self._fewest:  # on every rank, not only on the one that has the class
            for label in range(self.spec.num_classes):
                self.core_set.require(label, n, wanted)
        generators = [self.generator("real", label) for label in classes.tolist()]
        places = self.core_set.draw_places(classes.tolist(), n, generators, wanted)
        for part in places.split(chunk):
            yield self.core_set.gathered(part, self._device).to(self._synthesis.codes.dtype)

    def gather(self, own: Tensor, at: Tensor | None = None, total: int | None = None) -> Tensor:
        """Return values of all codes (N, ...), without graph, from those of this rank's `rows` (N', ...).

        With `at` (n',) and `total`: values (total, ...) of anything else of which this rank has those at `at`.
        """
        at, total = self.rows if at is None else at, self.num_codes if total is None else total
        everyone = own.new_zeros(total, *own.shape[1:])
        everyone[at] = own.detach()
        return sum_over_ranks(everyone)

    def decode_batches(
        self, batches: Sequence[Tensor], then: Embed | None = None, purpose: str = "codes"
    ) -> list[Tensor]:
        """Return synthetic images of each batch of rows, or what `then` makes of them, with graph and in chunks."""
        passes = [self._pass(purpose, number, then) for number in range(len(batches))]
        num_images = sum(map(len, batches))
        plan = self._planner.plan(purpose, passes[0], num_images, whole=then is not None)
        self._ledger.decoded(num_images)
        decoded = []
        for make, rows in zip(passes, batches, strict=True):
            keep = len(rows)
            # A rank without codes here makes an image for its shape, and keeps none of it.
            parts = self._synthesis.split(rows if keep else rows.new_zeros(1), plan.chunk)
            made = [make(part, plan.checkpointed) for part in parts]
            whole = made[0] if len(made) == 1 else torch.cat(made)
            decoded.append(whole if keep else whole[:0])
        return decoded

    def _pass(self, purpose: str, number: int, then: Embed | None) -> Pass:
        seed = self.generator(f"{purpose} {number}" if number else purpose).initial_seed()

        def make(rows: Tensor, checkpointed: int) -> Tensor:
            # The same state for each chunk, so that chunks draw the same.
            same = torch.Generator().manual_seed(seed)
            on_device = rows.to(self._device, non_blocking=True)
            latents = self._synthesis.denoise(on_device, same, self.step, checkpointed)

            def finish(latents: Tensor) -> Tensor:
                images = self._synthesis.decode(latents, self.step)
                again = torch.Generator().manual_seed(seed)
                images = self._synthesis.matched(images, on_device, again, self.step)
                return images if then is None else then(images, self.all_labels_on_host[rows])

            if checkpointed <= self._synthesis.prior.num_steps:
                return finish(latents)
            made: Tensor = checkpoint(finish, latents, use_reentrant=False, preserve_rng_state=False)
            return made

        return make
