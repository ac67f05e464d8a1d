"""Errors that end a run without being a defect of the program, and checks of numbers that raise them."""

from collections.abc import Sequence


class UserError(ValueError):
    """A setting, file or data set that cannot be used as given.

    The message names the argument, its value and the cure; the command line prints it without a traceback
    and exits with code 2.
    """


class NonFiniteError(UserError):
    """A loss or a gradient became NaN or infinite; the last good codes have been kept."""


class LostRankError(RuntimeError):
    """Another process of a distributed run ended, so that this one cannot go on."""


LARGEST = 3.4e38
"""What a float32 can hold, nearly."""


def check_at_least(low: int, section: str = "", **values: float | None) -> None:
    """Raise for an argument `<section>.<name>`, or `<name>` without a section, that is below `low`; None passes."""
    place = f"{section}." if section else ""
    for name, value in values.items():
        if value is not None and value < low:
            raise UserError(f"{place}{name} ({value}) must be at least {low}")


def check_not_negative(section: str = "", **values: float) -> None:
    """Raise for an argument, named alike, that is negative, NaN, or more than a float32 can hold."""
    place = f"{section}." if section else ""
    for name, value in values.items():
        if not 0 <= value <= LARGEST:
            raise UserError(f"{place}{name} ({value}) must be a number of 0 or more, and at most {LARGEST:g}")


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names for a message, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def in_a_line(error: BaseException) -> str:
    """Return what an error says, or its kind, without line breaks and a full stop."""
    return " ".join(str(error).split()).rstrip(".!") or type(error).__name__
