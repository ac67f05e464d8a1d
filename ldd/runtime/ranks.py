"""The ranks of a distributed run: what they agree on, and what the first one says.

Without torch.distributed there is one rank and nothing to do.
"""

import logging
import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from lightning_utilities.core import rank_zero
from lightning_utilities.core.rank_zero import (
    rank_zero_info as rank_zero_info,
    rank_zero_only,
    rank_zero_warn as rank_zero_warn,
)
from torch import Tensor, nn

if not hasattr(rank_zero_only, "rank"):
    # What Lightning does when it is imported, and does again; processes without a trainer need not wait for it.
    _started_as = map(os.environ.get, ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    rank_zero_only.rank = int(next(filter(None, _started_as), 0))  # type: ignore[attr-defined]
    rank_zero.log = logging.getLogger("ldd")
    rank_zero.log.setLevel(logging.INFO)
    if not logging.getLogger().hasHandlers():
        rank_zero.log.addHandler(logging.StreamHandler())


def this_rank() -> tuple[int, int]:
    """Return the number of this rank, and how many ranks there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum `value` over all ranks, in place, and return it."""
    if this_rank()[1] > 1:
        dist.all_reduce(value)
    return value


def from_first_rank(value: Tensor) -> Tensor:
    """Return the `value` of rank 0 on every rank; all ranks call this, each with a tensor on the CPU."""
    if this_rank()[1] == 1:
        return value
    everyone = [value]
    dist.broadcast_object_list(everyone, 0)
    return everyone[0]


def most_over_ranks(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Return the largest number of all ranks, place by place; the ranks communicate through `device`."""
    if this_rank()[1] == 1:
        return list(numbers)
    everyone = torch.tensor(numbers, device=device)
    dist.all_reduce(everyone, dist.ReduceOp.MAX)
    return [int(number) for number in everyone]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of parameters over all ranks; a missing one counts as zero.

    All of them go in one message, since a network has hundreds of small ones.
    """
    if this_rank()[1] == 1:
        return
    listed = list(parameters)
    for parameter in listed:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in listed if parameter.grad is not None])
    dist.all_reduce(flat)
    for parameter, part in zip(listed, flat.split([p.numel() for p in listed]), strict=True):
        parameter.grad = part.view_as(parameter)
