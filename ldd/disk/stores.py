"""Folders in object stores, by URL (`s3://bucket/run`): each has a copy on this machine, and the two are kept equal.

A verb works in the copy as in any folder. While it runs, files that are new go to the store every few seconds in the
order in which they were written, and at its end whatever is left, also where it fails. An object is replaced as a
whole. Of a folder with a manifest that one goes first and comes last, so that a set or a prior in a store is whole or
is not there. Stores are reached through fsspec, with the credentials of the environment.
"""

import hashlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ldd.disk.files import atomic_file, check_writable, is_passing, read_json, user_cache, write_json
from ldd.disk.locks import locked
from ldd.errors import UserError, in_a_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SECONDS = "LATENTDD_STORE_SECONDS"
"""Environment variable: seconds between two looks for new files; 10 unless it is set."""

_MARKERS = ("manifest.json", "prior.json")
"""Files without which a folder holds no set and no prior."""
_STATES = ("etag", "md5hash", "mtime", "updated", "last_modified", "lastmodified", "created")
"""What file systems say of an object that changes with it, whatever their case."""


def is_url(name: object) -> bool:
    """Tell whether `name` is a URL other than a hub's; `Path` has turned two slashes into one."""
    return re.match(r"[A-Za-z][A-Za-z0-9+-]+:/", str(name)) is not None and not str(name).startswith("hf:/")


@dataclass
class _Copy:
    """The copy of a folder or a file in a store.

    Attributes:
        url: as it was named, with two slashes.
        place: folder of the copy, which is in it under its own name, and of what is written next to it.
        argument: the option that names it, for messages.
    """

    url: str
    place: Path
    argument: str
    _stop: threading.Event = field(default_factory=threading.Event)
    _alone: ExitStack = field(default_factory=ExitStack)
    _thread: threading.Thread | None = None

    @property
    def target(self) -> Path:
        return self.place / self.url.rpartition("/")[2]

    @cached_property
    def _store(self) -> "tuple[AbstractFileSystem, str]":
        """The file system, and the path in it of the folder that holds what is named."""
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise UserError(f"{self._what}: {error}") from error
        except ValueError as error:
            raise UserError(
                f"{self._what}: {error}; name a folder on this machine, or another store"
            ) from error
        return system, path.rpartition("/")[0]

    @property
    def _what(self) -> str:
        return f"{self.argument} ({self.url})"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only process of this machine that works in the copy: until `close`, or until the block raises."""

        def refuse(holder: str) -> None:
            raise UserError(f"{self._what} is being written by {holder}; wait until that has ended")

        self.place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            held.enter_context(locked(self.place.with_suffix(".lock"), refuse))
            yield
            self._alone = held.pop_all()

    def fetch(self, *, ahead: bool = False) -> None:
        """Make the copy equal to the store; with `ahead` not where the store is as the copy has left it.

        The copy of a process that was killed may have what it could not send any more.
        """
        with self._reaching():
            there, known, here = self._there(), self._known(), self._here()
            if ahead and there == {name: state for name, (_, state) in known.items()}:
                return
            for name in here.keys() - there.keys():
                (self.place / name).unlink(missing_ok=True)
            for name, state in there.items():
                if known.get(name) == [here.get(name), state]:
                    continue
                with atomic_file(self.place / name) as beside:
                    self._store[0].get_file(self._path(name), str(beside))
            here = self._here()
            self._note({name: [here[name], state] for name, state in there.items()})

    def send(self) -> None:
        """Make the store equal to the copy."""
        system, known, here = self._store[0], self._known(), self._here()
        new = [name for name, state in here.items() if known.get(name, [None])[0] != state]
        gone = known.keys() - here.keys()
        marked = {name for name in (*new, *gone) if PurePosixPath(name).name in _MARKERS}
        if not new and not gone:
            return
        try:
            for name in sorted(gone, key=lambda each: each not in marked):
                self._delete(name, known)
            for name in marked & known.keys():
                self._delete(name, known)
            # Where the store has folders.
            for folder in {self._path(name).rpartition("/")[0] for name in new}:
                system.makedirs(folder, exist_ok=True)
            for name in sorted(new, key=lambda each: (each in marked, int(here[each].partition("-")[0]))):
                path = self._path(name)
                with suppress(FileNotFoundError):  # replaced at this moment: the next look finds the new one
                    system.put_file(str(self.place / name), path)
                    known[name] = [here[name], _state(system.info(path, refresh=True))]
        finally:
            self._note(known)

    def start(self) -> None:
        """Send what is new every few seconds from here on."""
        seconds = _seconds()

        def work() -> None:
            told = False
            while not self._stop.wait(seconds):
                try:
                    self.send()
                except Exception as error:  # a store that cannot be reached for a while ends no run
                    if not told:
                        warnings.warn(f"{self._what}: {in_a_line(error)}; it is tried again", stacklevel=1)
                    told = True

        self._thread = threading.Thread(target=work, daemon=True, name=f"sends to {self.url}")
        self._thread.start()

    def close(self) -> None:
        """Send what is left; the copy stays only where the store has refused it."""
        with self._alone:
            self._stop.set()
            if self._thread is not None:
                self._thread.join()
            with self._reaching(f"; what was made is in {self.target}, and the same command sends it"):
                self.send()
            for name in self._here():
                (self.place / name).unlink(missing_ok=True)
            self._index.unlink(missing_ok=True)
            for folder in sorted((path for path in self.place.rglob("*") if path.is_dir()), reverse=True):
                with suppress(OSError):
                    folder.rmdir()
            with suppress(OSError):
                self.place.rmdir()

    @contextmanager
    def _reaching(self, cure: str = "; check the URL, the network and the credentials") -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # every store has its own
            raise UserError(
                f"{self._what}: the store refuses or cannot be reached ({in_a_line(error)}){cure}"
            ) from error

    def _delete(self, name: str, known: dict[str, list[str | None]]) -> None:
        with suppress(FileNotFoundError):
            self._store[0].rm_file(self._path(name))
        known.pop(name, None)

    def _path(self, name: str) -> str:
        return f"{self._store[1]}/{name}"

    def _there(self) -> dict[str, str]:
        """Return what the store has, by name: a state each."""
        system, parent = self._store
        system.invalidate_cache()
        found: dict[str, Any] = {}
        for path in (self._path(self.target.name), self._path(f"{self.target.name}.commands.json")):
            with suppress(FileNotFoundError):
                found |= system.find(path, detail=True)
        named = {path.removeprefix(f"{parent}/"): _state(info) for path, info in found.items()}
        for name in named:
            if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
                raise UserError(
                    f"{self._what} holds an object {name!r}, which is no name of a file; delete it there"
                )
        return named

    def _here(self) -> dict[str, str]:
        """Return what the copy has, by name: a state each."""
        states = {}
        for path in self.place.rglob("*"):
            name = path.relative_to(self.place)
            with suppress(FileNotFoundError):
                if not any(map(is_passing, name.parts)) and path.is_file():
                    status = path.stat()
                    states[name.as_posix()] = f"{status.st_mtime_ns}-{status.st_size}"
        return states

    @property
    def _index(self) -> Path:
        return self.place.with_suffix(".json")

    def _known(self) -> dict[str, list[str | None]]:
        """Return the states here and there that belong together, by name."""
        known: dict[str, list[str | None]] = {}
        with suppress(UserError):
            known = read_json(self._index) if self._index.is_file() else {}
        return known

    def _note(self, known: dict[str, list[str | None]]) -> None:
        write_json(self._index, known)


def _seconds() -> float:
    """Return the time between two looks for new files."""
    value = os.environ.get(SECONDS) or "10"
    with suppress(ValueError):
        if 0 < float(value) <= threading.TIMEOUT_MAX:
            return float(value)
    raise UserError(f"{SECONDS} ({value}) must be a number of seconds above 0")


def _state(info: dict[str, Any]) -> str:
    """Return text that changes with an object."""
    told = {key.lower(): str(value) for key, value in info.items() if key.lower() in _STATES}
    return f"{info.get('size')} {sorted(told.items())}"


_open: list[_Copy] = []
_names: dict[str, str] = {}
"""Folder that holds a copy -> URL of what holds the original, also of copies that are closed."""


def opened(url: str, argument: str) -> str:
    """Return the folder or file on this machine in which to write what is to be at a URL; `sent` sends it.

    What the store has there is fetched, unless another rank of the same run has done so.

    Args:
        url: `scheme://bucket/name`; `file:///name` is that folder itself.
        argument: the option that has this value, for messages.

    Raises:
        UserError: no URL of a store's folder, a store that cannot be reached, or another process that writes there.
    """
    from ldd.runtime.ranks import starts_first

    copy = _copy(url, argument)
    if isinstance(copy, str):
        return copy
    if starts_first():
        if copy.url not in [each.url for each in _open]:
            with copy.alone():
                copy.fetch(ahead=True)
                copy.start()
            _open.append(copy)
    elif os.environ.get("LOCAL_RANK") in (None, "0") and not copy.place.exists():
        copy.fetch()  # the first process of another node
    return str(copy.target)


def fetched(url: str, argument: str) -> Path:
    """Return a folder or file on this machine with what is at a URL; it stays there for the next time.

    Raises:
        UserError: no URL of a store's folder, nothing there, or a store that cannot be reached.
    """
    copy = _copy(url, argument, reading=True)
    if isinstance(copy, str):
        return Path(copy)
    copy.place.mkdir(parents=True, exist_ok=True)
    with locked(copy.place.with_suffix(".lock"), lambda holder: None):
        copy.fetch()
    if not copy.target.exists():
        raise UserError(f"{argument} ({copy.url}): the store has nothing there; check the URL")
    return copy.target


@contextmanager
def sent() -> Iterator[None]:
    """Send, at the end of a block, all that was `opened` in it, also where it raises."""
    before = len(_open)
    try:
        yield
    except BaseException:
        for fault in _close(before):
            print(fault, file=sys.stderr)
        raise
    if faults := _close(before):
        raise UserError("; ".join(faults))


def _close(before: int) -> list[str]:
    """Close all but the first copies; return what went wrong."""
    faults = []
    while len(_open) > before:
        try:
            _open.pop().close()
        except UserError as error:
            faults.append(str(error))
    return faults


@contextmanager
def placed(path: Path | str, argument: str = "path") -> Iterator[Path]:
    """Yield a path on this machine at which to write what is to be at a path or a URL, and send that at the end."""
    with sent():
        yield Path(opened(str(path), argument) if is_url(path) else path)


def as_named(path: object) -> str:
    """Return a path as the user knows it: by its URL if it lies in the copy of a store's folder."""
    text = str(path)
    if is_url(text):
        return re.sub(r":/+", "://", text, count=1)
    for folder, url in _names.items():
        if text == folder or text.startswith(f"{folder}/"):
            return url + text.removeprefix(folder)
    return text


def _copy(url: str, argument: str, *, reading: bool = False) -> _Copy | str:
    """Return the copy that belongs to a URL, or the path itself that a `file:` URL names."""
    scheme, _, rest = str(url).partition(":")
    rest = rest.strip("/")
    if scheme.lower() == "file":
        return f"/{rest}"
    if "::" in url or "@" in rest.partition("/")[0]:
        raise UserError(
            f"{argument} ({url}) must be one plain URL, scheme://bucket/folder; credentials come from the environment"
        )
    if "/" not in rest or any(part in ("", ".", "..") for part in rest.split("/")):
        raise UserError(f"{argument} ({url}) must name a folder in a bucket: scheme://bucket/folder")
    plain = f"{scheme.lower()}://{rest}"
    name = f"{'read-' * reading}{hashlib.sha256(plain.encode()).hexdigest()[:16]}"
    root = Path(os.path.realpath(user_cache() / "stores"))
    check_writable(root, argument)
    _names[str(root / name)] = plain.rpartition("/")[0]
    return _Copy(plain, root / name, argument)
