"""Long work in shards: each one is kept as soon as it is done, so that whoever is stopped goes on from there."""

import json
import os
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from ldd.disk.files import as_user_error, atomic_file, remove_leftovers
from ldd.runtime.ranks import rank_zero_info

_FORMAT = 1  # of the journal
_COPIED = 2**24  # bytes at once
_LEFT = re.compile(r"\..+\.shards\.(tmp|jsonl)")
_PART = re.compile(r"\.\d+-of-\d+$")  # of the name of a part, see `ldd.disk.parts`
_ABANDONED = 7 * 24 * 3600  # seconds after which nobody is expected to go on


@final
class Shards:
    """The finished shards of a file in the making: their bytes one after the other, and facts of each.

    Next to the file, `.NAME.shards.tmp` has the bytes, `.NAME.shards.jsonl` the key, then end and facts of each
    shard, written once its bytes are on disk. So a killed process loses the shard that it was at, and whoever comes
    next with the same key goes on with `facts` and `read`. As a context manager it has to be the only one of its file.
    Both files go when the work is done, when no shard was, or when the disk could not be written. Shards that are to be
    part of a larger file stay as they lie (`leave`), and are appended to it (`take`).

    Args:
        target: the file; its folder exists.
        key: all that its bytes follow from; shards of another key are thrown away.
        kept: False where other processes may be at the same file: then nothing outlives this one.

    Attributes:
        facts: of each finished shard, as JSON has them.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, target: Path, key: str, *, kept: bool = True) -> None:
        self._target, self._kept, self._failed, self._left = target, kept, False, False
        name = f".{target.name}.{'shards' if kept else secrets.token_hex(4)}"
        self._bytes, self._journal = target.with_name(f"{name}.tmp"), target.with_name(f"{name}.jsonl")
        self._header = json.dumps({"format": _FORMAT, "key": key})
        self._ends = [0]
        self.facts: list[Any] = []
        self._file: FileIO
        self._log: FileIO

    def __enter__(self) -> Self:
        with as_user_error(self._target):
            old, own = time.time() - _ABANDONED, f".{_PART.sub('', self._target.name)}."
            for path in filter(_LEFT.fullmatch, os.listdir(self._target.parent)):
                found = self._target.with_name(path)
                with suppress(FileNotFoundError):  # another process has made its file of them
                    if not path.startswith(own) and found.stat().st_mtime < old:
                        found.unlink()
            if self._kept:  # so killed processes left whatever lies beside
                remove_leftovers(self._target.parent, self._journal.name)
            self._find()
            with atomic_file(self._journal) as beside:  # without the line that a killed process was writing
                rows = zip(self._ends[1:], self.facts, strict=True)
                beside.write_text("".join(f"{line}\n" for line in (self._header, *map(json.dumps, rows))))
            # Unbuffered: what could not be written must not be tried again on closing.
            self._log = open(self._journal, "ab", buffering=0)
            self._file = open(self._bytes, "r+b" if self._bytes.exists() else "w+b", buffering=0)
            self._file.truncate(self._ends[-1])
            self._file.seek(self._ends[-1])
        return self

    @property
    def size(self) -> int:
        """Bytes of the finished shards."""
        return self._ends[-1]

    def add(self, data: Iterable[bytes | memoryview], facts: Any) -> None:  # noqa: ANN401 - as JSON has it
        """Append a shard, whose bytes come in pieces; it is kept when this returns."""
        self._failed = True
        with as_user_error(self._target):
            for piece in data:
                _write(self._file, piece)
            os.fsync(self._file.fileno())
            end = self._file.tell()
            _write(self._log, (json.dumps([end, facts]) + "\n").encode())
        self._failed = False
        self._ends.append(end)
        self.facts.append(facts)

    def look(self) -> Self:
        """Find the finished shards, if any, without opening them; for whoever does not write here."""
        self._find(mend=False)
        return self

    @property
    def of_another_key(self) -> bool:
        """Whether shards of another key lie here."""
        try:
            with self._journal.open(encoding="utf-8") as opened:
                return opened.readline() != f"{self._header}\n"
        except (OSError, ValueError):
            return False

    def take(self, other: "Shards", number: int) -> None:
        """Append the shards of another file, which `look` has found, from this number on; all are kept at once."""
        self._failed = True
        with as_user_error(self._target), open(other._bytes, "rb") as source:
            source.seek(other._ends[number])
            left = other.size - other._ends[number]
            while piece := source.read(min(left, _COPIED)):
                _write(self._file, piece)
                left -= len(piece)
            assert not left, "its journal tells of no more than there is"
            os.fsync(self._file.fileno())
            moved = self.size - other._ends[number]
            rows = [
                *zip((end + moved for end in other._ends[number + 1 :]), other.facts[number:], strict=True)
            ]
            _write(self._log, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
        self._failed = False
        for end, facts in rows:
            self._ends.append(end)
            self.facts.append(facts)

    def read(self, number: int) -> bytes:
        """Return the bytes of a finished shard."""
        self._file.seek(self._ends[number])
        found = bytearray()
        while (missing := self._ends[number + 1] - self._ends[number] - len(found)) > 0:
            found += self._file.read(missing) or b""
        self._file.seek(self._ends[-1])
        return bytes(found)

    def finish(self) -> None:
        """Make the shards the file. What else belongs to it is written before the context ends."""
        with as_user_error(self._target):
            os.replace(self._bytes, self._target)

    def leave(self) -> None:
        """Let the shards lie as they are when the context ends: they are complete, and part of a larger file."""
        self._left = True

    def remove(self) -> None:
        """Delete shards that are not open."""
        self._bytes.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def discard(self) -> None:
        """Keep nothing: nobody will go on with these."""
        self._kept = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for opened in (self._file, self._log):
            opened.close()
        stopped = error is not None and self._kept and not self._failed
        if stopped and self.facts:
            rank_zero_info(
                f"{len(self.facts)} finished parts of {self._target} are kept; the next run goes on from there"
            )
        elif error is not None or not self._left:
            self.remove()

    def _find(self, *, mend: bool = True) -> None:
        """Find the shards that an earlier process has finished."""
        try:
            header, *rows = self._journal.read_text(encoding="utf-8").splitlines()
            if header != self._header:
                return
            if mend and not self._bytes.exists() and self._target.exists():  # stopped right after `finish`
                os.replace(self._target, self._bytes)
            size = self._bytes.stat().st_size
        except (OSError, ValueError):
            return
        for row in rows:
            try:
                end, facts = json.loads(row)
            except (ValueError, TypeError):
                break
            if not isinstance(end, int) or not self._ends[-1] <= end <= size:
                break
            self._ends.append(end)
            self.facts.append(facts)


def _write(file: FileIO, piece: bytes | memoryview) -> None:
    left = memoryview(piece).cast("B")
    while left:
        left = left[file.write(left) :]
