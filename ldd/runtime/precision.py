"""Precision of arithmetic: what stays out of autocast, and with how many digits float32 is multiplied on a GPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch

MatmulPrecision = Literal["auto", "highest", "high", "medium"]
"""Of products of float32 matrices on a GPU: `high` has 10 bits (TF32), as convolutions have there by cudnn's default,
and runs on tensor cores; `highest` has all 24. `auto` is `high` on CUDA, and elsewhere what torch is set to."""

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


@contextmanager
def multiplying(precision: MatmulPrecision, device: torch.device) -> Iterator[None]:
    """Run a block in which float32 matrices are multiplied with this precision."""
    before = torch.get_float32_matmul_precision()
    if precision != "auto" or device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "auto" else precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def reduced_matmul() -> str | None:
    """Return torch's precision of products for a record; None where it is exact, which records need not say."""
    found = torch.get_float32_matmul_precision()
    return None if found == "highest" else found
