"""What runs on the machines of a Ray cluster: sent there by value, so it takes nothing but the standard library."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
"""Contents by the path that each has on the machine of the driver, absolute or relative to the jobs' directory."""

_LOOK = 0.2  # seconds between two looks at the process of a job; a cancellation is seen between two of them
_HALF = re.compile(r"\..+\.tmp(\.old)?")  # names of `ldd.disk.files` for what is not yet written
_LEFT_OUT = (".lock", "previous.ckpt")  # whose writing it is, and what the newer checkpoint repeats


@dataclass(frozen=True)
class Order:
    """A job as it is sent to a machine.

    Attributes:
        name: of the job.
        attempt: how often it was started before.
        arguments: of `latentdd`; they name `home`.
        folder: where it runs, if the machine has such a folder.
        home: the federation's folder on the machine of the driver.
        token: what `home`/TOKEN holds there. A machine that reads the same sees that disk.
        log: a file in `home` to which the output is appended.
        results: folders that the job writes, with paths as those of `Files`.
        environment: variables of the process.
    """

    name: str
    attempt: int
    arguments: tuple[str, ...]
    folder: str
    home: str
    token: str
    log: str
    results: tuple[str, ...]
    environment: dict[str, str]


TOKEN = ".machines"
"""File in the federation's folder by which a machine is known to see it."""

Left = tuple[int | None, str, Files | None]
"""What a job leaves: its exit code, its machine's address, and its files, where those lie on another disk than the
driver's. Without a code nothing was run, since the machine needs the job's files first."""


class Desk:
    """Keeps of each job the latest files that it left, until the driver takes them; an actor."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, int], Files] = {}

    def leave(self, name: str, attempt: int, files: Files) -> None:
        """Keep files of a job in the place of those before."""
        self._left[name, attempt] = files

    def take(self) -> dict[tuple[str, int], Files]:
        """Return what was left since the last time."""
        left, self._left = self._left, {}
        return left


def work(order: Order, given: Sequence[Any], desk: Any) -> Left:  # noqa: ANN401 - a handle of Ray's
    """Run a job on the federation's disk, or, on a machine that does not see it, on files that are sent and returned.

    Args:
        order: the job.
        given: a reference to the files that it starts from, or nothing.
        desk: handle of a `Desk`, for what a job has before it ends; None where nothing is given.

    Raises:
        ChildProcessError: the process was killed.
    """
    import ray

    machine = ray.util.get_node_ip_address()
    if _sees(order):
        return _run(order.arguments, order.folder, order.log, order.environment), machine, None
    if not given:
        return None, machine, None
    with tempfile.TemporaryDirectory(prefix="latentdd-") as scratch:
        copy = _Copy(order, Path(scratch))
        copy.write(ray.get(given[0]))

        def leave() -> None:
            with suppress(
                ray.exceptions.RayError
            ):  # the desk is gone for now: the next checkpoint takes its turn
                ray.get(desk.leave.remote(order.name, order.attempt, copy.files()))

        code = copy.run(leave)
        return code, machine, copy.files()


def _sees(order: Order) -> bool:
    try:
        return Path(order.home, TOKEN).read_text() == order.token
    except OSError:
        return False


class _Copy:
    """The part of a federation that a job needs, in a folder of its own."""

    def __init__(self, order: Order, scratch: Path) -> None:
        self._order = order
        self._home = scratch / Path(order.home).name
        self._folder = Path(order.folder) if os.path.isdir(order.folder) else scratch

    def _place(self, path: str) -> Path:
        """Return where a path of the driver's machine is here."""
        if Path(path).is_relative_to(self._order.home):
            return self._home / Path(path).relative_to(self._order.home)
        return self._folder / path

    def write(self, files: Files) -> None:
        for path, content in files.items():
            place = self._place(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)

    def files(self) -> Files:
        found: Files = {}
        for result in self._order.results:
            found |= read_files(self._place(result), result)
        for path in found:  # what names the folder, which is gone afterwards
            if path.endswith((".log", ".yaml")):
                found[path] = found[path].replace(str(self._home).encode(), self._order.home.encode())
        return found

    def run(self, leave: Callable[[], None]) -> int:
        """Run the job; `leave` is called whenever it has another checkpoint, and when a cancelled one has ended."""
        order = self._order
        arguments = [str(self._home) if word == order.home else word for word in order.arguments]
        checkpoint = self._place(order.results[0]) / "checkpoints" / "last.ckpt"
        log = self._place(order.log)
        log.parent.mkdir(parents=True, exist_ok=True)
        before = _stamp(checkpoint)

        def look() -> None:
            nonlocal before
            now = _stamp(checkpoint)
            if now != before:
                before = now
                leave()

        try:
            return _run(arguments, str(self._folder), str(log), order.environment, look)
        except KeyboardInterrupt:
            leave()
            raise


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def read_files(place: Path, name: str) -> Files:
    """Return all files in and below a folder by their paths in the folder `name`; no locks, nothing half-written."""
    depth = len(place.parts)
    return {
        f"{name}/{path.relative_to(place).as_posix()}": content
        for path in sorted(place.rglob("*"))
        if path.name not in _LEFT_OUT and not any(_HALF.fullmatch(part) for part in path.parts[depth:])
        for content in _content(path)
    }


def _content(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes; nothing for a folder, or a file that has been replaced or removed meanwhile."""
    try:
        yield path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return


def _run(
    arguments: Sequence[str],
    folder: str,
    log: str,
    environment: dict[str, str],
    look: Callable[[], None] = lambda: None,
) -> int:
    """Run `latentdd` in a process of its own and return its exit code."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ldd", *arguments],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=_LOOK)
                    break
                except subprocess.TimeoutExpired:
                    look()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if code < 0:
        raise ChildProcessError(f"the process was ended by signal {-code}")
    return code
