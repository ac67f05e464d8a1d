"""Stateless random numbers: every draw follows from (seed, step, purpose, label), never from the clock.

Resuming therefore needs only the step, and results do not depend on the number of ranks that share the work.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(seed: int, *key: object) -> int:
    """Return a 63-bit seed that depends on `seed` and on every element of `key` (its `repr`)."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *key: object) -> torch.Generator:
    """Return a CPU generator derived from `seed` and `key`, e.g. `generator(0, "real", step, label)`.

    Torch's CPU generator begins with the low 32 bits of a seed: of 10,000 keys two have the same numbers with a chance
    of one in a hundred.
    """
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
    """Return standard normal numbers (n, size) for `rows` (n,) int64, float32 on the device of the rows.

    The numbers of a row follow from the state of the (CPU) generator and the row alone, whichever rows it is drawn
    with and wherever: four 32-bit words of Philox for each row and each block of four numbers, which the transform of
    Box and Muller makes normal in pairs.
    """
    key = int(torch.randint(2**63 - 1, (), generator=generator))
    blocks = (size + 3) // 4
    drawn = torch.empty(len(rows), blocks, 4, device=rows.device)
    step = len(rows) if rows.is_cuda else max(1, _AT_ONCE // max(1, blocks))  # what the cache of a core holds
    for part, out in zip(rows.split(max(1, step)), drawn.split(max(1, step)), strict=True):
        places = torch.arange(blocks, device=rows.device).expand(len(part), -1)
        high = (part >> 32 & _WORD)[:, None].expand_as(places)
        counter = places, (part & _WORD)[:, None].expand_as(places), high, torch.zeros_like(places)
        a, b, c, d = (
            word.float().add_(0.5).mul_(2.0**-32) for word in philox(counter, (key & _WORD, key >> 32))
        )
        for k, (one, other) in enumerate(((a, b), (c, d))):
            radius, angle = one.log_().mul_(-2).sqrt_(), other.mul_(2 * torch.pi)
            torch.mul(radius, angle.cos(), out=out[..., 2 * k])
            torch.mul(radius, angle.sin_(), out=out[..., 2 * k + 1])
    return drawn.flatten(1)[:, :size]


_AT_ONCE = 2**14
_WORD = 2**32 - 1
_ROUNDS = 10
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return the four random words of Philox4x32-10 (Salmon et al., SC 2011) for each counter of four words.

    Words are 32-bit numbers in int64 tensors, whose products wrap around with the right bits. There is no state, so
    that any device gives the same words for any part of the counters.
    """
    a, b, c, d = counter
    low, high = key
    for _ in range(_ROUNDS):
        first, second = a * _FACTORS[0], c * _FACTORS[1]
        b = (second >> 32).bitwise_and_(_WORD).bitwise_xor_(b).bitwise_xor_(low)
        d = (first >> 32).bitwise_and_(_WORD).bitwise_xor_(d).bitwise_xor_(high)
        a, b, c, d = b, second.bitwise_and_(_WORD), d, first.bitwise_and_(_WORD)
        low, high = low + _KEY_STEPS[0] & _WORD, high + _KEY_STEPS[1] & _WORD
    return a, b, c, d
