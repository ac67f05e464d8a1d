"""Atomic writing (beside, then renamed, so that nobody reads half a file), and reading with checks."""

import csv
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ldd.disk.text import parse_yaml, parsed
from ldd.errors import UserError

if TYPE_CHECKING:  # and in two functions: text files are read and written without torch
    from torch import Tensor

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp(?P<old>\.old)?")
"""Names that `_create_beside` and `_swap` give."""

LOCK = ".lock"
"""The file by which a process says that it alone writes in a folder (see `ldd.disk.locks`)."""


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, delete it on failure.

    The bytes are on disk before the rename, and the file gets the permissions of any new file. A link stays: the file
    that it names is replaced.
    """
    target = Path(os.path.realpath(path))
    with as_user_error(path):
        _refuse(target, stat.S_ISREG, "a regular file")
        beside, mode = _create_beside(target)
        try:
            yield beside
            _settle(beside, mode)
            os.replace(beside, target)
            _sync_folder(target.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; put it in the place of `path` on success, delete it on failure.

    With `durable` every file is on disk before that; without, a crash of the machine may cost what can be made again.
    """
    target = Path(os.path.realpath(path))
    with as_user_error(path):
        _refuse(target, stat.S_ISDIR, "a folder")
        beside, mode = _create_beside(target)
        beside.unlink()
        beside.mkdir()
        try:
            yield beside
            for file in beside.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    _settle(file, mode, sync=durable)
            _swap(beside, target)
            _sync_folder(target.parent)
        except UserError as error:  # from a file written inside: name the folder the user knows
            raise type(error)(str(error).replace(str(beside), str(path))) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def remove_leftovers(folder: Path | str, name: str | None = None) -> None:
    """Delete what killed processes left of `atomic_file` and `atomic_folder` in a folder that has a single writer.

    A folder that had been moved aside for its replacement is put back if the replacement is missing.
    """
    for path in Path(folder).glob(".*.tmp*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or name not in (None, found["name"]):
            continue
        if found["old"] and not path.with_name(found["name"]).exists():
            os.replace(path, path.with_name(found["name"]))
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def user_cache() -> Path:
    """Return this program's folder for what can be had again: in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentdd"


def is_passing(name: str) -> bool:
    """Tell whether a file or folder of this name goes once a writer is done: it is being written, or is a lock."""
    lock = name.startswith(".") and name.endswith(LOCK)
    return lock or _TEMPORARY.fullmatch(name) is not None


def remove(path: Path) -> None:
    """Delete a file or a folder; a link to a folder (on a scratch disk) stays, and what lies in that folder goes."""
    for each in [*path.iterdir()] if path.is_symlink() and path.is_dir() else [path]:
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)


def sync_file(path: Path | str) -> None:
    """Wait until a file's bytes are on disk."""
    with open(path, "rb") as opened:
        os.fsync(opened.fileno())


def check_writable(folder: Path | str, argument: str = "out") -> None:
    """Make a folder if it is missing, and raise now, not after hours of work, if it cannot be written.

    Args:
        folder: where something is going to be written.
        argument: the option that names it, for messages.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{argument} ({folder}): {error.strerror or error}; choose a writable folder"
        ) from error


def holds_files(path: Path | str) -> bool:
    """Return whether `path` is a folder with anything in it, apart from the lock of who is about to write there."""
    try:
        return Path(path).is_dir() and bool({*os.listdir(path)} - {LOCK})
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}; choose a folder of yours") from error


def write_json(path: Path | str, value: Any) -> None:  # noqa: ANN401 - anything json takes
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as beside:
        beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path | str, cure: str = "write it anew or restore it", *, infinite: bool = False) -> Any:  # noqa: ANN401 - what is in it
    """Return the value in a JSON file of any origin; every message ends with the `cure`.

    With `infinite` NaN and Infinity are read, which are not JSON but which other programs write.
    """
    constant = float if infinite else _refuse_constant
    return parsed(path, "JSON", cure, lambda text: json.loads(text, parse_constant=constant))


def read_yaml(path: Path | str, cure: str = "write it anew or restore it") -> Any:  # noqa: ANN401 - what is in it
    """Return the value in a YAML file that anybody may have written; only plain values are made of it."""
    return parsed(path, "YAML", cure, parse_yaml)


def write_csv(path: Path | str, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, the names of the columns first."""
    with csv_beside(path, rows):
        pass


@contextmanager
def csv_beside(path: Path | str, rows: Iterable[Sequence[object]]) -> Iterator[None]:
    """Write rows as CSV next to `path`, where they take their place after the block, unless that fails."""
    with atomic_file(path) as beside:
        with beside.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        sync_file(beside)
        yield


def write_tensors(
    path: Path | str, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors, and `metadata` for the header, as one safetensors file; equal arguments give equal bytes."""
    from safetensors.torch import save_file

    # Cloned, since safetensors refuses tensors that share memory (views of one batch, tied weights).
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_file(path) as beside:
        save_file(plain, beside, None if metadata is None else dict(metadata))


def read_tensors(path: Path | str) -> "dict[str, Tensor]":
    """Read a safetensors file into memory."""
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UserError(f"{path} does not exist or is not a file; check the path")
    try:
        # Cloned, since the library maps the file: bytes changed on disk later would change the tensors.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is truncated or no safetensors file ({error}); copy it again or make it anew"
        ) from error


def sha256(path: Path | str) -> str:
    """Return the SHA-256 digest of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


@contextmanager
def as_user_error(path: Path | str) -> Iterator[None]:
    """Raise what goes wrong while `path` is written as a UserError with the reason and the cure."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space or choose another disk" if full else "choose a path in a writable folder"
        raise UserError(f"cannot write {path}: {_reason(error)}; {cure}") from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # how torch.save reports that its writes failed
            raise
        raise UserError(f"cannot write {path}: disk full or file too large; free some space") from error


def _reason(error: OSError | SafetensorError) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    culprit = str(error.filename or "")
    return error.strerror if culprit.endswith(".tmp") or not culprit else f"{error.strerror} ({culprit})"


def _refuse(target: Path, right_type: Callable[[int], bool], needed: str) -> None:
    if not target.exists():
        return
    mode = target.stat().st_mode
    if not right_type(mode):  # for instance /dev/stdout, which a rename would take away from everybody
        raise UserError(f"cannot write {target}: it exists and is not {needed}; name another path")
    if not mode & 0o222:
        # A rename would replace it all the same, against its owner's wish.
        raise UserError(f"cannot write {target}: it is read-only; chmod u+w it or name another path")


def _create_beside(target: Path) -> tuple[Path, int]:
    """Make an empty file next to `target`; return it and the mode of new files here (umask, access lists)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return beside, stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _settle(file: Path, mode: int, *, sync: bool = True) -> None:
    """Give a file ordinary permissions (safetensors leaves 0600), and wait until it is on disk."""
    if sync:
        sync_file(file)
    os.chmod(file, mode)


def _swap(beside: Path, target: Path) -> None:
    """Put folder `beside` in the place of `target`; on failure the old folder is put back."""
    old = target.with_name(beside.name + ".old")
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(beside, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
