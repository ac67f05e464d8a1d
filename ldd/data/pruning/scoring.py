"""Losses of many images under a classifier, in batches: decoding and network at once, and nothing kept in memory."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from ldd.data.sources import Item, Source
from ldd.errors import UserError
from ldd.networks.pretrained import Preprocessing
from ldd.runtime.devices import available_cores

T = TypeVar("T")

BatchSize = Literal["auto"] | int
Device = str
"""A device of torch's by name, or `auto`: CUDA where there is one, else the CPU."""

Precision = Literal["auto", "float32", "bfloat16"]
"""Of the network: auto is bfloat16 on a GPU or a CPU with instructions for it (AMX, AVX512-BF16), else float32."""

_BATCH_ON_GPU = 256
_BATCH_ON_CPU = 4  # so that activations stay in a core's cache: 32 took 1.8 times as long an image


@dataclass(frozen=True)
class Scorer:
    """A classifier ready to score.

    On a CPU each of torch's threads takes whole batches, from the file to the loss, which uses all cores where one
    operation at a time on all threads does not. On a GPU all CPUs decode ahead of it. Cross-entropy is always computed
    in float64: in float32 the losses of easy images are ties.

    Attributes:
        network: in evaluation mode.
        preprocessing: how it sees an image.
        device: where it runs.
        batch_size: images per forward pass.
        reduced: run under bfloat16 autocast.
    """

    network: nn.Module
    preprocessing: Preprocessing
    device: torch.device
    batch_size: int
    reduced: bool

    @classmethod
    def on(
        cls,
        device: torch.device,
        network: nn.Module,
        preprocessing: Preprocessing,
        batch_size: BatchSize = "auto",
        precision: Precision = "auto",
    ) -> "Scorer":
        """A scorer with the network moved to `device`."""
        if batch_size == "auto":
            batch_size = _BATCH_ON_CPU if device.type == "cpu" else _BATCH_ON_GPU
        reduced = resolved(precision, device.type) == "bfloat16"
        network = without_batch_norm(network).to(device).to(memory_format=torch.channels_last)
        return cls(network.requires_grad_(False), preprocessing, device, batch_size, reduced)

    def __call__(self, source: Source, items: Sequence[Item], targets: Sequence[int]) -> Iterator[Tensor]:
        """(b, 2) float64 on the CPU for each batch of items, in order: loss in nats, margin in logits.

        Args:
            source: where the images come from.
            items: which of them.
            targets: the true output of each.

        Raises:
            UnreadableImage: one cannot be decoded.
        """
        batches = [
            (items[start : start + self.batch_size], targets[start : start + self.batch_size])
            for start in range(0, len(items), self.batch_size)
        ]
        if self.device.type == "cpu":
            threads = torch.get_num_threads()
            yield from _in_threads(
                lambda batch: self.measure(self.read(source, batch[0]), batch[1]), batches, threads
            )
            return
        threads = available_cores()
        for pixels, (_, wanted) in zip(
            _in_threads(lambda batch: self.read(source, batch[0]), batches, threads), batches, strict=True
        ):
            yield self.measure(pixels, wanted)

    def read(self, source: Source, items: Sequence[Item]) -> Tensor:
        """Decoded and cropped images, (b, 3, crop, crop) uint8."""
        return torch.stack([self.preprocessing.pixels(source.read(item)) for item in items])

    @torch.inference_mode()
    def measure(self, pixels: Tensor, targets: Sequence[int]) -> Tensor:
        """(b, 2) float64 on the CPU: loss and margin."""
        images = self.preprocessing.normalise(pixels.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        return losses_and_margins(logits.double(), torch.tensor(targets, device=self.device)).cpu()


def losses_and_margins(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, 2) float64: cross-entropy of the true class, and its logit minus the highest other one's.

    Args:
        logits: (N, K), K at least 2.
        targets: (N,) int64.
    """
    true = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    return torch.stack([F.cross_entropy(logits, targets, reduction="none"), true[:, 0] - others], 1).double()


def without_batch_norm(network: nn.Module) -> nn.Module:
    """The network with its batch norms folded into the convolutions before them, where it can be traced."""
    try:
        return fuse(network)
    except (
        TraceError,
        RuntimeError,
        TypeError,
        NotImplementedError,
        KeyError,
    ):  # control flow that depends on data
        return network


def resolved(precision: Precision, device: Device) -> Precision:
    """`precision`, with auto decided.

    Raises:
        UserError: the device is not there.
    """
    if precision != "auto":
        return precision
    if _checked(device).type == "cuda":
        return "bfloat16"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "float32"


def find_device(name: Device) -> torch.device:
    """The device to work on; to be asked when work starts, since Lightning gives each rank its GPU late.

    Raises:
        UserError: it is not there.
    """
    device = _checked(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _checked(name: Device) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name!r} is unknown; use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name!r}, but torch finds no GPU; use device=auto or cpu")
    return device


def _in_threads(work: Callable[[T], Tensor], pieces: Sequence[T], threads: int) -> Iterator[Tensor]:
    """Results of `work` in order; each thread does its pieces alone, and a few are done ahead."""
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
