"""Stateless random numbers: every draw follows from (seed, step, purpose, label), never from the clock.

Resuming therefore needs only the step, and results do not depend on the number of ranks that share the work.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(seed: int, *key: object) -> int:
    """Return a 63-bit seed that depends on `seed` and on every element of `key` (its `repr`)."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *key: object) -> torch.Generator:
    """Return a CPU generator derived from `seed` and `key`, e.g. `generator(0, "real", step, label)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


@contextmanager
def seeded(seed: int, *key: object, device: torch.device | None = None) -> Iterator[None]:
    """Run a block (network initialisation, dropout) with seeded global generators, then restore them.

    That is the CPU generator, and with a CUDA `device` its own too, from which dropout draws there.
    """
    cuda = device if device is not None and device.type == "cuda" else None
    with torch.random.fork_rng(devices=[] if cuda is None else [cuda]):
        torch.default_generator.manual_seed(derive_seed(seed, *key))
        if cuda is not None:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(derive_seed(seed, *key))
        yield


def normal_rows(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return standard normal numbers (n, size) for `rows` (n,) int64, float32 on the CPU.

    The numbers of a row follow from the state of the generator and the row alone, whichever rows it is drawn with.
    """
    base = int(torch.randint(2**31, (), generator=generator))
    own, drawn = torch.Generator(), torch.empty(len(rows), size)
    for numbers, row in zip(drawn, rows.tolist(), strict=True):
        numbers.normal_(generator=own.manual_seed(base + row))
    return drawn
