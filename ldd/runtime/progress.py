"""The one progress display of a process: a bar for each work that is going on, or a line every so often in a pipe."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from ldd.runtime.ranks import rank_zero_info, rank_zero_only, this_rank

T = TypeVar("T")

Note = str | Callable[[], str]
"""What is said next to the bar; a function is called only when it is about to be shown."""

_MANY_IMAGES = 200  # fewer are done at once
_REFRESH = 0.2  # seconds between two looks of a bar
_LINE_EVERY = 30.0  # seconds between lines, at most as long
_LINE_PART, _LINE_LEAST = 0.1, 5.0  # a line for each tenth, but at most one in 5 s
_NARROW = 100  # columns of a terminal; below them the bar itself is short


class _Left(ProgressColumn):
    """Time left by the mean speed since the start: students take minutes, longer than the library looks back."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = _left(task.completed - task.fields["before"], task.total, task.completed, task.elapsed)
        return Text("" if seconds is None else f"{duration(seconds, 0)} left", style="progress.remaining")


class _Display:
    """The bars of this process in one place: a second live display on a console would stand still."""

    def __init__(self) -> None:
        self._bars: Progress | None = None

    def add(self, what: str, total: int | None, done: int) -> TaskID:
        """Show one more bar."""
        if self._bars is None:
            wide = get_console().width >= _NARROW
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(30 if wide else 10),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                _Left(),
                TextColumn(
                    "{task.fields[note]}",
                    markup=False,
                    table_column=Column(no_wrap=True, overflow="ellipsis"),
                ),
                transient=True,
            )
            self._bars.start()
        return self._bars.add_task(what, total=total, completed=done, before=done, note="")

    def update(self, task: TaskID, done: int, note: str) -> None:
        """Show what is done."""
        assert self._bars is not None
        # Drawn at once: inside somebody else's live display nothing else would.
        self._bars.update(task, completed=done, note=note, refresh=True)

    def remove(self, task: TaskID) -> None:
        """Take a bar away, and the display with the last one."""
        assert self._bars is not None
        self._bars.remove_task(task)
        if not self._bars.task_ids:
            self._bars.stop()
            self._bars = None


_DISPLAY = _Display()


class Counter:
    """Count of what is done of one work.

    Attributes:
        done: so far.
    """

    def __init__(self, what: str, total: int | None, done: int, *, shown: bool) -> None:
        self._what = what
        self._total = total
        self.done = self._before = done
        self._started = self._shown_at = time.perf_counter()
        self._shown_done = done
        self._note: Note = ""
        self._shown = shown
        self._task = _DISPLAY.add(what, total, done) if shown and get_console().is_terminal else None
        if self._task is not None:
            self._shown_at = float("-inf")  # the first piece is shown at once: the bar is seen to move

    def add(self, count: int = 1, note: Note = "") -> None:
        """Count `count` more as done, and say `note` of them."""
        self.done += count if self._total is None else min(count, self._total - self.done)
        self._note = note or self._note
        passed = time.perf_counter() - self._shown_at
        if self._task is not None:
            if passed >= _REFRESH or self.done == self._total:
                _DISPLAY.update(self._task, self.done, self.note())
                self._shown_at = time.perf_counter()
        elif self._shown and self.done != self._total:
            part = _LINE_PART * (self._total or float("inf"))
            if passed >= _LINE_EVERY or (self.done - self._shown_done >= part and passed >= _LINE_LEAST):
                self._print_line()

    def note(self) -> str:
        """Return the latest note in words."""
        return self._note() if callable(self._note) else self._note

    def end(self) -> float:
        """Take the bar away and return the seconds that the work took."""
        if self._task is not None:
            _DISPLAY.remove(self._task)
            self._task = None
        return time.perf_counter() - self._started

    def _print_line(self) -> None:
        elapsed = time.perf_counter() - self._started
        left = _left(self.done - self._before, self._total, self.done, elapsed)
        parts = (
            f"{self.done}" if self._total is None else f"{self.done} of {self._total}",
            duration(elapsed, 0),
            "" if left is None else f"{duration(left, 0)} left",
            self.note(),
        )
        said = f"{self._what}: {', '.join(filter(None, parts))}"
        # Not on stdout, which a program may read; a notebook has one place for both.
        print(said, file=sys.stdout if get_console().is_jupyter else sys.stderr, flush=True)
        self._shown_at, self._shown_done = time.perf_counter(), self.done


@contextmanager
def progress(
    what: str,
    total: int | None,
    *,
    unit: str = "images",
    done: int = 0,
    shown: bool = True,
    show_from: int | None = None,
) -> Iterator[Counter]:
    """Show on the first rank how much of a work is done, and say at its end what it took.

    Args:
        what: the work, such as "decoding images".
        total: all that is to be done; None where nobody knows.
        unit: of `total`, plural.
        done: done before.
        shown: False counts in silence.
        show_from: smaller works are not worth a bar; None means 200 images, or 1 of any other unit.
    """
    least = (_MANY_IMAGES if unit == "images" else 1) if show_from is None else show_from
    first = this_rank()[0] == 0 and rank_zero_only.rank == 0  # type: ignore[attr-defined]
    shown = shown and (total is None or total - done >= least)
    counter = Counter(what, total, done, shown=shown and first)
    try:
        yield counter
    finally:
        seconds = counter.end()
    if shown:
        count = counter.done - done
        speed = f" ({count / max(seconds, 1e-9):.1f} images/s)" if unit == "images" else ""
        named = "" if unit == "images" else f" {unit}"
        note = f", {found}" if (found := counter.note()) and unit == "steps" else ""
        rank_zero_info(f"{what}: {count}{named} in {duration(seconds, 0)}{speed}{note}")


def tracked(what: str, unit: str) -> Callable[[Sequence[T]], Iterator[T]]:
    """Return what goes through a sequence and shows how far it has come."""

    def through(items: Sequence[T]) -> Iterator[T]:
        with progress(what, len(items), unit=unit) as counter:
            for item in items:
                yield item
                counter.add()

    return through


def duration(seconds: float, digits: int = 1) -> str:
    """Return seconds in words: `9.5 s` (to one decimal), `12 min 30 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _left(new: float, total: float | None, done: float, elapsed: float | None) -> float | None:
    """Return seconds left where `new` pieces took `elapsed` seconds."""
    if total is None or not new or elapsed is None or done >= total:
        return None
    return elapsed / new * (total - done)
