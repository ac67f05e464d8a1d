"""A progress bar with images per second, shown by the first rank on a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ldd.runtime.ranks import rank_zero_info, this_rank

_SHOW_FROM = 200  # images: less is done at once


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "")


class Counter:
    """Count of the images that are done."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total)
        self.done = 0

    def add(self, images: int) -> None:
        """Count `images` more as done."""
        self.done += images
        self._bar.advance(self._task, images)


@contextmanager
def progress(what: str, total: int, show_from: int | None = None) -> Iterator[Counter]:
    """Show how much of `what` is done with `total` images, from `show_from` on, and report its speed at the end."""
    show_from = _SHOW_FROM if show_from is None else show_from
    rank, _ = this_rank()
    shown = rank == 0 and total >= show_from and get_console().is_terminal
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns, transient=True, disable=not shown) as bar:
        counter = Counter(bar, total)
        yield counter
    if total >= show_from:
        seconds = time.perf_counter() - started
        rank_zero_info(
            f"{what}: {counter.done} in {seconds:.0f} s ({counter.done / max(seconds, 1e-9):.1f} images/s)"
        )
