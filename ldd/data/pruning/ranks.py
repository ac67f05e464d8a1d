"""Sharing work over the ranks of a distributed run."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist

from ldd.errors import UserError
from ldd.runtime.ranks import this_rank

T = TypeVar("T")


def dealt(count: int, rank: int, ranks: int) -> range:
    """The pieces of work of one rank, of `count` in all: every `ranks`-th, so that all get some of each class."""
    return range(rank, count, ranks)


def shared(count: int, work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
    """Let every rank do its part, and give all of them all results; without torch.distributed, do it all.

    Args:
        count: pieces of work.
        work: takes piece numbers and returns a result for each, in order.

    Raises:
        UserError: what `work` raised on any rank, raised on all of them, so that none waits for ever.
    """
    rank, ranks = this_rank()
    if ranks == 1:
        return list(work(range(count)))
    mine: list[T] | UserError
    try:
        mine = list(work(dealt(count, rank, ranks)))
    except UserError as error:
        mine = error
    parts: list[list[T] | UserError] = [[] for _ in range(ranks)]
    dist.all_gather_object(parts, mine)
    return merged(count, parts)


def merged(count: int, parts: Sequence[list[T] | UserError]) -> list[T]:
    """The results of all ranks in the order of the work.

    Raises:
        UserError: the first one among `parts`.
    """
    results: dict[int, T] = {}
    for rank, part in enumerate(parts):
        if isinstance(part, UserError):
            raise part
        results.update(zip(dealt(count, rank, len(parts)), part, strict=True))
    return [results[piece] for piece in range(count)]
