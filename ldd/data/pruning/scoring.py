"""Losses of many images under a classifier, in batches: decoding and network at once, and nothing kept in memory."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from ldd.data.sources import Item, Source
from ldd.networks.pretrained import Preprocessing
from ldd.runtime.devices import available_cores, check_device

T = TypeVar("T")

BatchSize = Literal["auto"] | int

Precision = Literal["auto", "float32", "bfloat16"]
"""The network's precision: auto is bfloat16 on a GPU or a CPU with instructions for it, else float32."""

_BATCH_ON_GPU = 256
_BATCH_ON_CPU = 4  # so that activations stay in a core's cache: 32 took 1.8 times as long an image


class Scorer:
    """A classifier ready to score.

    On a CPU each of torch's threads takes whole batches, from the file to the loss, which uses all cores where one
    operation at a time on all threads does not. On a GPU all CPUs decode ahead of it. Cross-entropy is always computed
    in float64: in float32 the losses of easy images are ties.
    """

    def __init__(
        self,
        device: torch.device,
        network: nn.Module,
        preprocessing: Preprocessing,
        batch_size: BatchSize = "auto",
        precision: Precision = "auto",
    ) -> None:
        on_cpu = device.type == "cpu"
        self.device = device
        self.preprocessing = preprocessing
        self.batch_size = (_BATCH_ON_CPU if on_cpu else _BATCH_ON_GPU) if batch_size == "auto" else batch_size
        self._reduced = resolved(precision, device.type) == "bfloat16"
        network = _without_batch_norm(network).to(device).to(memory_format=torch.channels_last)
        self.network = network.requires_grad_(False)

    def __call__(
        self, source: Source, items: Sequence[Item], targets: Sequence[int], *, filled: bool = False
    ) -> Iterator[Tensor]:
        """Yield (b, 2) float64 on the CPU for each batch of items, in order: loss in nats, margin in logits."""

        def read(start: int) -> Tensor:
            batch = items[start : start + self.batch_size]
            return torch.stack([self.preprocessing.pixels(source.read(item)) for item in batch])

        def measure(start: int, pixels: Tensor) -> Tensor:
            return self.measure(pixels, targets[start : start + self.batch_size], filled)

        starts = range(0, len(items), self.batch_size)
        if self.device.type == "cpu":
            yield from _in_threads(lambda start: measure(start, read(start)), starts, torch.get_num_threads())
        else:
            yield from map(measure, starts, _in_threads(read, starts, available_cores()))

    def some(
        self, source: Source, items: Sequence[Item], targets: Sequence[int], rows: Sequence[int]
    ) -> Iterator[tuple[float, ...]]:
        """Yield loss and margin of some rows of the items, ascending: to the bit those of a process that scores all.

        An image's score depends on the size of its batch, not on the others in it. So batches are filled up, and only
        the last images of all are in a smaller one, with each other.
        """
        whole = len(items) - len(items) % self.batch_size
        among, last = [row for row in rows if row < whole], [row for row in rows if row >= whole]
        wanted = [items[row] for row in among], [targets[row] for row in among]
        for batch in self(source, *wanted, filled=True):
            yield from map(tuple, batch.tolist())
        if last:
            found = torch.cat([*self(source, items[whole:], targets[whole:])])
            yield from map(tuple, found[[row - whole for row in last]].tolist())

    @torch.inference_mode()
    def measure(self, pixels: Tensor, targets: Sequence[int], filled: bool = False) -> Tensor:
        """Return loss and margin (b, 2) float64 on the CPU of cropped images (b, 3, crop, crop) uint8.

        A batch that is to be `filled` has copies of its last image up to the size of all.
        """
        if filled and (copies := self.batch_size - len(pixels)):
            pixels = torch.cat([pixels, pixels[-1:].expand(copies, -1, -1, -1)])
        images = self.preprocessing.normalise(pixels.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced):
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        there = torch.device("cpu") if self.device.type == "mps" else self.device  # which has no float64
        logits = logits[: len(targets)].to(there)
        return losses_and_margins(logits, torch.tensor(targets, device=there)).cpu()


def losses_and_margins(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (N, 2) float64: cross-entropy of the true class, and its logit minus the highest other one."""
    logits = logits.double()
    true = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    return torch.stack([F.cross_entropy(logits, targets, reduction="none"), true[:, 0] - others], 1)


def resolved(precision: Precision, device: str) -> Precision:
    """Return `precision`, with auto decided for the device of that name."""
    if precision != "auto":
        return precision
    if check_device(device).type == "cuda":
        return "bfloat16"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "float32"


def _without_batch_norm(network: nn.Module) -> nn.Module:
    """Return the network with its batch norms folded into the convolutions before them, where it can be traced."""
    try:
        return fuse(network)
    except (TraceError, RuntimeError, TypeError, NotImplementedError, KeyError):
        return network  # whose control flow depends on data


def _in_threads(work: Callable[[T], Tensor], pieces: Sequence[T], threads: int) -> Iterator[Tensor]:
    """Return results of `work` in order; each thread does its pieces alone, and a few are done ahead."""
    before = torch.get_num_threads()
    waiting: deque[Future[Tensor]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for piece in pieces:
            waiting.append(pool.submit(work, piece))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # what threads to come start with: the pool's own ones changed it
