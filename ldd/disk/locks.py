"""One writer at a time: locks that a process holds while it writes, and that end with it, however it ends."""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ldd.disk.files import LOCK, check_writable, remove_leftovers
from ldd.errors import UserError


@contextmanager
def writing_in(folder: Path | str, argument: str = "out") -> Iterator[None]:
    """Be the only process that writes in a folder, named by the option `argument`; it is made if it is missing.

    What killed writers left in it and in the folders in it is removed. A folder that was made and stays empty goes.
    """
    folder = Path(folder)
    with made(folder, argument), locked(folder / LOCK, _refuser(folder, argument)) as alone:
        if alone:
            for each in (folder, *filter(Path.is_dir, folder.iterdir())):
                remove_leftovers(each)
        else:
            check_writable(folder)
        yield


def holder_of(folder: Path | str) -> str | None:
    """Return in words who writes in a folder at this moment; None where nobody does, or its lock cannot be seen."""
    try:
        descriptor = os.open(Path(folder) / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


@contextmanager
def made(folder: Path, argument: str = "out") -> Iterator[None]:
    """Make a folder, and those above it; delete those that are still empty at the end."""
    new = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{argument} ({folder}): {error.strerror}; choose a writable folder") from error
    try:
        yield
    finally:
        for path in new:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Be the only process that writes a file, or a folder that is replaced as a whole; the lock lies next to it.

    What killed writers left of it is removed. The folder it lies in is made, and goes if it stays empty.
    """
    target = Path(os.path.realpath(path))
    if not target.name:
        yield
        return
    beside = target.with_name(f".{target.name}.lock")
    with made(target.parent), locked(beside, _refuser(target, "out")) as alone:
        if alone:
            remove_leftovers(target.parent, target.name)
        else:
            check_writable(target.parent)
        yield


@contextmanager
def locked(path: Path, busy: Callable[[str], object]) -> Iterator[bool]:
    """Hold the lock file `path`; yield False where the file system has no locks or none may be made.

    A process that dies loses its lock. The file is deleted when its holder is done, so whoever gets the lock checks
    that the file is still the one of that name. `busy` is called with words for another holder: it raises to give up.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError:  # a folder that cannot be written is refused by who writes in it
            yield False
            return
        try:
            alone = _lock(descriptor, busy)
            if alone and not _is_open_at(descriptor, path):
                continue
            if alone:
                _sign(descriptor)
            try:
                yield alone
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, busy: Callable[[str], object]) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        busy(_holder(descriptor))
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _is_open_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write into a lock file who holds it."""
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    """Return who holds a lock, in words."""
    try:
        found: Any = json.loads(os.pread(descriptor, 4096, 0))
        signed = f"process {int(found['pid'])} on {str(found['host'])!r} since {str(found['since'])!r}"
        return signed.replace("'", "")
    except (OSError, ValueError, TypeError, KeyError):  # it has not signed yet
        return "another process"


def _refuser(place: Path, argument: str) -> Callable[[str], None]:
    def refuse(holder: str) -> None:
        raise UserError(
            f"{argument} ({place}) is being written by {holder}; wait until that has ended, or name another place"
        )

    return refuse
