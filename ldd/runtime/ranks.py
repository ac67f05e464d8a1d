"""The ranks of a distributed run and what they agree on; without torch.distributed there is one and nothing to do."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def this_rank() -> tuple[int, int]:
    """Number of this rank, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of every rank's `value`, in place."""
    if this_rank()[1] > 1:
        dist.all_reduce(value)
    return value


def from_first_rank(value: Tensor) -> Tensor:
    """Rank 0's `value` (on the CPU) on every rank, each of which has one and calls this."""
    if this_rank()[1] == 1:
        return value
    everyone = [value]
    dist.broadcast_object_list(everyone, 0)
    return everyone[0]


def most_over_ranks(numbers: Sequence[int], device: torch.device) -> list[int]:
    """The largest of every rank's numbers, place by place; `device` is one that the ranks talk by."""
    if this_rank()[1] == 1:
        return list(numbers)
    everyone = torch.tensor(numbers, device=device)
    dist.all_reduce(everyone, dist.ReduceOp.MAX)
    return [int(number) for number in everyone]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give each parameter the sum of its gradients on all ranks; one that is missing counts as zero.

    One message for all of them: a network has hundreds of small ones.
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
