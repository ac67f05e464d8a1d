"""Nested budgets: the first so many images of each class are matched on their own too, so that they are a set."""

from collections.abc import Sequence

from ldd.codes import Codes
from ldd.errors import UserError


def as_budgets(budgets: Sequence[int]) -> tuple[int, ...]:
    """Images per class, ascending.

    Raises:
        UserError: one below 1.
    """
    if min(budgets, default=1) < 1:
        raise UserError(f"objective.budgets ({min(budgets)}) must be at least 1")
    return tuple(sorted(set(budgets)))


def check_budgets(budgets: Sequence[int], codes: Codes) -> None:
    """Refuse a budget that not every class has images for.

    Raises:
        UserError: both numbers.
    """
    fewest = int(codes.labels.bincount().min())
    if max(budgets, default=0) > fewest:
        raise UserError(f"objective.budgets ({max(budgets)}) must not be above images_per_class ({fewest})")


def with_all(budgets: Sequence[int], images: int) -> list[int]:
    """The budgets and all images of a class, each number once."""
    return sorted({*budgets, images})
