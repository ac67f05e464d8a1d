"""A file made in parts: by one process, by the ranks of a run, or by processes that share nothing but the disk.

The units of work (images, batches, epochs) are dealt in order: part K of N is a run of them. It lies next to the file
as shards of its own (`ldd.disk.shards`), so that a killed process loses the shard that it was at, and a lock tells who
is at it. Whoever finds all parts there joins them, under the file's lock, and deletes them. Since a shard holds what
its units give, whoever does them, the file is the one that a single process writes.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from ldd.disk.files import check_writable
from ldd.disk.locks import locked
from ldd.disk.shards import Shards
from ldd.disk.shared import check_space, one_at_a_time
from ldd.errors import UserError
from ldd.runtime.ranks import rank_zero_info, this_rank

T = TypeVar("T")

JOIN: Literal["join"] = "join"
"""The value of `--part` that joins what is there."""

_NAME = re.compile(r"\.(?P<file>.+)\.(?P<number>\d+)-of-(?P<of>\d+)\.shards\.jsonl")


@dataclass(frozen=True)
class NthPart:
    """One of the equal parts of some work.

    Attributes:
        number: from 1.
        of: how many there are.

    Raises:
        UserError: there is no such part.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UserError(
                f"part ({self}): parts are numbered from 1 to their number; give 1/{max(1, self.of)} for the first"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def units(self, count: int) -> range:
        """Return its units of `count`; the parts differ by one at most."""
        return range(count * (self.number - 1) // self.of, count * self.number // self.of)


WhichPart = NthPart | Literal["join"]


def parse_part(text: str) -> WhichPart:
    """Return the part that `--part` names: `3/16`, `auto/16` (by the number of an array's member), or `join`.

    Raises:
        UserError: it names none.
    """
    if text == JOIN:
        return JOIN
    if not (found := re.fullmatch(r"(\d+|auto)/(\d+)", text, re.ASCII)):
        raise UserError(f"part ({text}) must be K/N, the K-th of N parts, such as 3/16, or {JOIN}")
    number = _number_of_member() if found[1] == "auto" else int(found[1])
    if number is None:
        raise UserError(
            f"part ({text}): neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX says which member of an array this "
            f"is; give its number, such as 1/{found[2]}"
        )
    return NthPart(number, int(found[2]))


def _number_of_member() -> int | None:
    """Return the number from 1 of this member of an array: as SLURM counts them, or one more than Kubernetes does."""
    for name, first in (("SLURM_ARRAY_TASK_ID", 1), ("JOB_COMPLETION_INDEX", 0)):
        if (found := os.environ.get(name, "")).isdecimal():
            return int(found) + 1 - first
    return None


@dataclass(frozen=True)
class Work(Generic[T]):
    """What a file is made of, and how.

    Attributes:
        target: the file.
        key: all that its bytes follow from.
        units: pieces of work, in order; each of them gives the same bytes whoever does it.
        done: how many units shards of these facts hold.
        add: adds shards of some units, in order.
        finish: makes the file of the shards of all units.
        find: opens the file; None where it is missing or damaged.
        contents: what it holds, in words.
        num_bytes: at most; 0 where that need not be checked.
        argument: the option that says where it lies.
        hidden: whether its lock is, as next to a file that the user named.
    """

    target: Path
    key: str
    units: int
    done: Callable[[Sequence[Any]], int]
    add: Callable[[Shards, range], None]
    finish: Callable[[Shards], None]
    find: Callable[[], T | None]
    contents: str
    num_bytes: int = 0
    argument: str = "cache_dir"
    hidden: bool = False

    @property
    def lock(self) -> Path:
        """Held by who joins the parts, or makes the file alone."""
        name = f".{self.target.name}.shards.lock" if self.hidden else self.target.with_suffix(".lock").name
        return self.target.with_name(name)

    def shards(self, part: NthPart) -> Shards:
        """Return the shards of a part, not opened."""
        return Shards(self._of(part), self.key)

    def lock_of(self, part: NthPart) -> Path:
        """Held by who is at a part."""
        return self.target.with_name(f".{self._of(part).name}.lock")

    def _of(self, part: NthPart) -> Path:
        return self.target.with_name(f"{self.target.name}.{part.number}-of-{part.of}")

    def has(self, part: NthPart) -> bool:
        """Whether a part is complete: where it was made, or joined to those before it."""
        units = part.units(self.units)
        if not units or self.done(self.shards(part).look().facts) == len(units):
            return True
        return self.done(Shards(self.target, self.key).look().facts) >= units.stop


def make(work: Work[T]) -> T:
    """Return what `find` opens, after this process, another one, or the ranks together have made the file.

    Where parts of it lie, only the others are made, and those that another process is at are waited for. Ranks make as
    many parts as they are, each beginning with its own, and then whatever part nobody is at.
    """
    _make_folder(work)
    rank, ranks = this_rank()
    of = _number_of_parts(work) or (min(ranks, work.units) if ranks > 1 else 0)
    if of and (found := _together(work, of, rank * of // ranks)) is not None:
        return found
    return _whole(work)


def make_part(work: Work[T], part: WhichPart) -> T | None:
    """Make one part, and the file if all others are there; None while some are not, which is printed.

    Raises:
        UserError: parts of another number lie there, some are missing that were to be joined, or there are no locks.
    """
    _make_folder(work)
    check_writable(work.target.parent, work.argument)
    if (found := work.find()) is not None:
        return found
    of = _number_of_parts(work)
    if part == JOIN:
        if not of:
            raise UserError(
                f"part ({JOIN}): there are no parts of {work.target}; make them with --part K/N, or leave --part out"
            )
        if missing := _missing(work, of):
            raise UserError(
                f"part ({JOIN}): {_listed(missing)} of {work.target} {_is(missing)} missing{_why(work, missing)}; make "
                f"{'it' if len(missing) == 1 else 'each'} with --part {missing[0]}, or leave --part out to do so here"
            )
        return _whole(work)
    if of not in (0, part.of):
        raise UserError(
            f"part ({part}): parts of {of} of {work.target} lie there already; go on with --part K/{of}, or delete "
            f"{work.target.parent}/.{work.target.name}.*"
        )
    if not _make(work, part, wait=True):
        raise UserError(
            f"part ({part}): the file system of {work.argument} ({work.target.parent}) has no locks, by which "
            "processes know of each other; choose another folder, or leave --part out"
        )
    if missing := _missing(work, part.of):
        rank_zero_info(
            f"part {part} of {work.target} is there; {_listed(missing)} {_is(missing)} missing{_why(work, missing)}"
        )
        return None
    return _whole(work)


class _Busy(Exception):
    """Another process is at a part."""


def _together(work: Work[T], of: int, first: int) -> T | None:
    """Make the parts that nobody is at, then those that nobody has finished; None where there are no locks."""
    numbers = [*range(first, of), *range(first)]
    for wait in (False, True):
        for number in numbers:
            try:
                if not _make(work, NthPart(number + 1, of), wait=wait):
                    return None
            except _Busy:
                continue
    return _whole(work)


def _make(work: Work[T], part: NthPart, *, wait: bool) -> bool:
    """Make a part unless it is there; False where there are no locks. Without `wait` raise `_Busy` if one is at it."""

    def busy(holder: str) -> None:
        if not wait:
            raise _Busy
        rank_zero_info(f"{holder} is at part {part} of {work.target}; waiting for it")

    if work.has(part):
        return True
    with locked(work.lock_of(part), busy) as alone:
        if not alone:
            return False
        if work.has(part) or work.find() is not None:
            return True
        units = part.units(work.units)
        with work.shards(part) as shards:
            needed = work.num_bytes * len(units) // work.units
            check_space(work.target.parent, needed - shards.size, f"part {part} of {work.contents}")
            work.add(shards, range(units.start + work.done(shards.facts), units.stop))
            shards.leave()
    return True


def _whole(work: Work[T]) -> T:
    """Make the file of its parts, and of what no part has; unless another process does so, and is waited for."""
    folder = work.target.parent
    with one_at_a_time(work.lock) as alone:
        parts = [NthPart(number + 1, of) for of in [_number_of_parts(work)] for number in range(of)]
        if (found := work.find()) is None:
            if alone and not work.hidden:  # so killed processes left whatever lies beside
                for stale in folder.glob(f".{work.target.stem}.*.????????.tmp"):
                    stale.unlink(missing_ok=True)
            with Shards(work.target, work.key, kept=alone) as shards:
                there = [work.shards(part).look().size for part in parts] if alone else []
                needed = work.num_bytes - shards.size - sum(there) + max(there, default=0)
                check_space(folder, needed, work.contents)
                for part in parts if alone else ():
                    _append(work, shards, part)
                    work.shards(part).remove()
                work.add(shards, range(work.done(shards.facts), work.units))
                work.finish(shards)
        for part in parts if alone else ():
            work.shards(part).remove()
    if found is None:
        found = work.find()
    assert found is not None, "just written"
    return found


def _append(work: Work[T], shards: Shards, part: NthPart) -> None:
    """Add the units up to the end of a part: those that are there already stay, those that the part has are copied."""
    other, end = work.shards(part).look(), part.units(work.units).start
    for number, facts in enumerate(other.facts):
        done, start, end = work.done(shards.facts), end, end + work.done([facts])
        if end <= done:
            continue
        if start == done:
            shards.take(other, number)
            return
        work.add(shards, range(done, end))  # in the middle of a shard


def _make_folder(work: Work[T]) -> None:
    try:
        work.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{work.argument}={str(work.target.parent)!r} cannot be created ({error.strerror}); choose another folder"
        ) from error


def _number_of_parts(work: Work[T]) -> int:
    """Return how many parts the file is being made of; 0 where none of them lies there."""
    numbers = [of for name, _, of in parts_in(work.target.parent) if name == work.target.name]
    return max(numbers, default=0)


def parts_in(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield file, number and number of all, of the parts that lie in a folder."""
    for found in sorted(folder.glob(".*-of-*.shards.jsonl")):
        if named := _NAME.fullmatch(found.name):
            yield named["file"], int(named["number"]), int(named["of"])


def _missing(work: Work[T], of: int) -> list[NthPart]:
    return [part for part in (NthPart(number + 1, of) for number in range(of)) if not work.has(part)]


def _listed(parts: Sequence[NthPart]) -> str:
    numbers = [str(part.number) for part in parts]
    named = f"{', '.join(numbers[:-1])} and {numbers[-1]}" if len(numbers) > 1 else numbers[0]
    return f"{'part' if len(parts) == 1 else 'parts'} {named} of {parts[0].of}"


def _is(parts: Sequence[NthPart]) -> str:
    return "is" if len(parts) == 1 else "are"


def _why(work: Work[T], missing: Sequence[NthPart]) -> str:
    others = [part for part in missing if work.shards(part).of_another_key]
    return f" ({_listed(others)} {_is(others)} of other settings or images)" if others else ""
