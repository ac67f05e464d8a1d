"""The ranks of a distributed run: what they agree on, and what the first one says.

Without torch.distributed there is one rank and nothing to do.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from lightning_utilities.core import rank_zero
from lightning_utilities.core.rank_zero import (
    rank_zero_info as rank_zero_info,
    rank_zero_only as rank_zero_only,
    rank_zero_warn as rank_zero_warn,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from ldd.errors import UserError

T = TypeVar("T")

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_OTHER_RANKS = ("NODE_RANK", "GROUP_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # of nodes, and of MPI

if not hasattr(rank_zero_only, "rank"):
    # What Lightning does when it is imported, and does again; processes without a trainer need not wait for it.
    _started_as = map(os.environ.get, _RANKS)
    rank_zero_only.rank = int(next(filter(None, _started_as), 0))  # type: ignore[attr-defined]
    rank_zero.log = logging.getLogger("ldd")
    rank_zero.log.setLevel(logging.INFO)
    if not logging.getLogger().hasHandlers():
        rank_zero.log.addHandler(logging.StreamHandler())


def starts_first() -> bool:
    """Return whether this process is rank 0 as far as its launcher tells, before torch.distributed is initialised."""
    return all((os.environ.get(name) or "0") == "0" for name in (*_RANKS, *_OTHER_RANKS))


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


def from_first_rank(value: T) -> T:
    """Return the `value` of rank 0 on every rank; all ranks call this, with tensors on the CPU alone."""
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


def from_any_rank(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the places that any rank has marked, in ascending order, on every rank; a bit each is sent."""
    ranks = this_rank()[1]
    if ranks > 1:
        everyone = [np.empty(0, np.uint8)] * ranks
        dist.all_gather_object(everyone, np.packbits(marked))
        marked = np.unpackbits(np.bitwise_or.reduce(everyone), count=len(marked)).astype(np.bool_)
    return np.flatnonzero(marked)


def dealt(count: int, rank: int, ranks: int) -> range:
    """Return every `ranks`-th of `count` pieces of work, so that each rank gets some of each class."""
    return range(rank, count, ranks)


def from_each_rank(work: Callable[[], T]) -> list[T]:
    """Return what each rank does, by rank, on every rank; a UserError of one is raised on all."""
    parts: list[T | UserError] = []
    try:
        parts = [work()]
    except UserError as error:
        parts = [error]
    if (ranks := this_rank()[1]) > 1:
        mine, parts = parts[0], parts * ranks
        dist.all_gather_object(parts, mine)
    for part in parts:
        if isinstance(part, UserError):
            raise part
    return cast("list[T]", parts)


def shared(count: int, work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
    """Let every rank do its part of `count` pieces, and return all results on each."""
    rank, ranks = this_rank()
    return merged(count, from_each_rank(lambda: list(work(dealt(count, rank, ranks)))))


def merged(count: int, parts: Sequence[list[T]]) -> list[T]:
    """Return the results of all ranks in the order of the work."""
    results: dict[int, T] = {}
    for rank, part in enumerate(parts):
        results.update(zip(dealt(count, rank, len(parts)), part, strict=True))
    return [results[piece] for piece in range(count)]
