"""Courses of the learning rate over a student's training, as shares of its peak."""

import math
from collections.abc import Callable
from typing import Literal

Rates = Literal["warm_up", "drop", "steps", "half_cosine"]
"""Courses of the learning rate, by the names of the functions: `warm_up` is `schedule`."""

WARM_UP_START = 1e-7
"""Share of the learning rate at which the warm-up starts (the released GLaD and LD3M code)."""

_STEP = 0.2  # what each of the two drops of `steps` leaves


def schedule(epoch: int, epochs: int) -> float:
    """Share of the peak learning rate in `epoch` (from 0) of `epochs`.

    Linear warm-up from 1e-7 over the first half, then a cosine that would reach zero one step after the end:
    with h = floor(epochs / 2), `1e-7 + (1 - 1e-7) e / h` up to epoch h, then `(1 + cos(pi (e - h - 1) / h)) / 2`.
    So epochs h and h + 1 run at the peak, and the last of 1,000 at 4e-5 of it (released GLaD and LD3M evaluation).
    """
    half = max(1, epochs // 2)
    if epoch <= half:
        return WARM_UP_START + (1 - WARM_UP_START) * epoch / half
    return (1 + math.cos(math.pi * (epoch - half - 1) / half)) / 2


def drop(epoch: int, epochs: int) -> float:
    """The peak up to epoch floor(epochs / 2), a tenth of it from the next on (released MTT and D3 evaluation)."""
    return 1.0 if epoch <= epochs // 2 else 0.1


def steps(epoch: int, epochs: int) -> float:
    """A fifth from epoch floor(2 E / 3) on, a twenty-fifth from floor(5 E / 6) on (released IDC evaluation)."""
    return _STEP ** ((epoch >= 2 * epochs // 3) + (epoch >= 5 * epochs // 6))


def half_cosine(epoch: int, epochs: int) -> float:
    """(1 + cos(pi e / (2 E))) / 2: down to half of the peak, not to zero (released RDED evaluation)."""
    return (1 + math.cos(math.pi * epoch / epochs / 2)) / 2


RATES: dict[Rates, Callable[[int, int], float]] = {
    "warm_up": schedule,
    "drop": drop,
    "steps": steps,
    "half_cosine": half_cosine,
}
"""By name."""
