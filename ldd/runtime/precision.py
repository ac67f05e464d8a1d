"""Arithmetic that keeps the precision of its tensors where a run is in half precision."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_DEVICES = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Run a block, or as a decorator a function, outside of autocast, on whichever device its tensors are.

    Autocast rounds the operands of every matrix product to eight bits, also of float32 tensors: positions, distances
    and sums need more. What it does in the forward pass, backward repeats where it is called within autocast.
    """
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
