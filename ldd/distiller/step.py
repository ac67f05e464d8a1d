"""One training step as an objective sees it: draws, real images, and synthetic images with their graph."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from ldd.codes import CodeBatch
from ldd.data.real import RealImages
from ldd.distiller.memory import (
    SHARE_BESIDE_OTHERS,
    SHARE_OF_FREE_MEMORY,
    Cost,
    MemoryPlan,
    make_plan,
    recall_plan,
)
from ldd.images import DataSpec, Labelled
from ldd.networks import Network, NetworkFactory
from ldd.objectives.base import Embed
from ldd.runtime import seeding
from ldd.runtime.devices import device_name, free_bytes
from ldd.runtime.ranks import most_over_ranks, sum_over_ranks

if TYPE_CHECKING:
    from ldd.distiller.module import Distiller


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

    def gather(self, own: Tensor, at: Tensor | None = None, total: int | None = None) -> Tensor:
        """Values of all codes (N, ...), without graph, from those of this rank's `rows` (N', ...).

        With `at` (n',) and `total`: values (total, ...) of anything else of which this rank has those at `at`.
        """
        at, total = self.rows if at is None else at, self.num_codes if total is None else total
        everyone = own.new_zeros(total, *own.shape[1:])
        everyone[at] = own.detach()
        return sum_over_ranks(everyone)

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
        num_images = sum(len(on_host) for _, on_host in batches)
        plan = self._plan(syntheses[0], num_images, purpose, whole=then is not None)
        self._distiller.ledger.decoded(num_images)
        decoded = []
        for synthesise, (rows, on_host) in zip(syntheses, batches, strict=True):
            keep = len(rows)
            if not keep:  # a rank without codes here makes an image for its shape, and keeps none of it
                on_host = torch.zeros(1, dtype=torch.int64)
                rows = on_host.to(self.rows.device)
            # Where images depend on each other, a batch is decoded whole.
            chunk = len(rows) if self._distiller.prior.batch_dependent else plan.chunk
            parts = zip(rows.split(chunk), on_host.split(chunk), strict=True)
            made = [_call(synthesise, *part, recompute=plan.checkpoint) for part in parts]
            whole = made[0] if len(made) == 1 else torch.cat(made)
            decoded.append(whole if keep else whole[:0])
        return decoded

    def _synthesis(self, purpose: str, number: int, then: Embed | None) -> Synthesis:
        seed = self.generator(f"{purpose} {number}" if number else purpose).initial_seed()

        def synthesise(rows: Tensor, on_host: Tensor) -> Tensor:
            # The same state for each chunk, so that chunks and recomputation under a checkpoint draw the same.
            generator = torch.Generator().manual_seed(seed)
            images, _ = self._distiller.synthesise(rows, generator, self.step)
            return images if then is None else then(images, self.all_labels_on_host[on_host])

        return synthesise

    def _plan(self, synthesise: Synthesis, num_images: int, purpose: str, *, whole: bool) -> MemoryPlan:
        plans = self._distiller.memory_plans
        if purpose not in plans:
            # Found once and then kept (also in checkpoints): another chunk size would change the rounding.
            most = self._most(num_images)
            plans[purpose] = self._agreed(self._find_plan(synthesise, most, purpose, whole=whole))
        return plans[purpose]

    def _find_plan(self, synthesise: Synthesis, num_images: int, purpose: str, *, whole: bool) -> MemoryPlan:
        """The plan for so many images; `whole` if nothing of the objective's comes after what is measured here."""
        distiller = self._distiller
        chunk_size, checkpointing = distiller.chunk_size, distiller.checkpointing
        if chunk_size != "auto" and checkpointing != "auto":
            return MemoryPlan(chunk_size, checkpointing == "always")
        seen: list[CodeBatch] = []
        sample = torch.arange(min(2, self.num_codes))

        def run(n: int) -> None:
            # Up to the batch's codes and no further: gradients of all codes would hide those of a few images.
            hook = distiller.codes.register_forward_hook(lambda module, given, batch: seen.append(batch))
            with torch.enable_grad(), hook:
                output = synthesise(sample[:n].to(self.rows.device), sample[:n])
                ends = [end for end in (*seen.pop(), *distiller.prior.trainable()) if end.requires_grad]
                torch.autograd.grad(output.sum(), ends, allow_unused=True)

        share = SHARE_OF_FREE_MEMORY if whole else SHARE_BESIDE_OTHERS
        budget = share * free_bytes(distiller.device)
        return recall_plan(
            {**memory_facts(distiller), "images": num_images, "purpose": purpose},
            lambda: Cost.measure(run, len(sample)),
            lambda cost: make_plan(chunk_size, checkpointing, num_images, cost, budget),
        )

    def _most(self, number: int) -> int:
        """The largest of all ranks' numbers, at least 1."""
        return most_over_ranks([max(1, number)], self._distiller.device)[0]

    def _agreed(self, plan: MemoryPlan) -> MemoryPlan:
        """One plan for all ranks, in which the one with the least memory fits: a checkpoint holds only one."""
        chunk, checkpoint = most_over_ranks([-plan.chunk, plan.checkpoint], self._distiller.device)
        return MemoryPlan(-chunk, bool(checkpoint))


def memory_facts(distiller: "Distiller") -> dict[str, object]:
    """What the memory of a pass depends on, as plain JSON values: a plan found for the same ones serves again."""
    prior, device = distiller.prior, distiller.device
    sizes = (distiller.data_spec.num_classes, distiller.data_spec.image_size)
    return {
        "prior": [str(type(prior)), repr(prior), prior.latent_shape, prior.num_steps],
        "guidance": getattr(prior, "guidance_scale", None),
        "objective": str(type(distiller.objective)),
        "networks": [repr(factory(*sizes)) for factory in distiller.objective.matching_networks()],
        "image_size": distiller.data_spec.image_size,
        "codes": [str(type(distiller.codes)), str(distiller.codes.dtype)],
        "autocast": str(torch.get_autocast_dtype(device.type)) * torch.is_autocast_enabled(device.type),
        "settings": [
            distiller.chunk_size,
            distiller.checkpointing,
            str(distiller.memory_format),
            distiller.compile_backend,
        ],
        "device": device_name(device),
        "torch": torch.__version__,
    }


def _call(synthesise: Synthesis, rows: Tensor, on_host: Tensor, *, recompute: bool) -> Tensor:
    if not recompute:
        return synthesise(rows, on_host)
    made: Tensor = checkpoint(synthesise, rows, on_host, use_reentrant=False, preserve_rng_state=False)
    return made
