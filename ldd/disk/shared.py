"""Large files that processes share: one of them writes the file under a lock, and all map it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ldd.disk.locks import locked
from ldd.errors import UserError
from ldd.runtime.devices import in_bytes
from ldd.runtime.ranks import rank_zero_info


def map_file(path: Path, size: int, dtype: torch.dtype) -> Tensor:
    """Map a file of `size` numbers; writing into the tensor does not change the file."""
    expected, found = size * dtype.itemsize, path.stat().st_size
    if expected != found:
        raise ValueError(f"{found} bytes instead of {expected}")
    if not size:  # a file without bytes cannot be mapped
        return torch.empty(0, dtype=dtype)
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=dtype)
    storage = mapped.untyped_storage()
    _MAPPED[storage.data_ptr()] = StorageWeakRef(storage), path.absolute(), _which(path)
    return mapped


_MAPPED: dict[int, tuple[StorageWeakRef, Path, tuple[int, int]]] = {}  # by address


def _which(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


@dataclass(frozen=True)
class MappedPart:
    """Part of a file that is mapped as a tensor: another process maps it too, instead of being sent the bytes."""

    path: Path
    numbers: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> "MappedPart | None":
        """Return where a tensor of `map_file`, or a view of one, lies; None for any other, or if the file has gone."""
        storage = tensor.untyped_storage()
        known, path, which = _MAPPED.get(storage.data_ptr(), (None, Path(), (0, 0)))
        if known is None or known.expired() or known != StorageWeakRef(storage):
            return None
        with suppress(OSError):
            if _which(path) == which:
                numbers, place = storage.nbytes() // tensor.itemsize, tensor.storage_offset()
                return cls(path, numbers, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(place))
        return None

    def open(self) -> Tensor:
        """Return the tensor, mapped by this process."""
        return map_file(self.path, self.numbers, self.dtype).as_strided(self.shape, self.stride, self.offset)


def check_space(folder: Path, needed: int, contents: str) -> None:
    """Raise unless a disk has so many bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"cache_dir={str(folder)!r}: {contents} need {in_bytes(needed)} and {in_bytes(free)} are free; free some "
            "space or choose another disk"
        )


@contextmanager
def one_at_a_time(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`; yield False where the file system has no locks: then every process does the work."""
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cache_dir={str(path.parent)!r} cannot be written; choose another folder")
    with locked(path, lambda holder: rank_zero_info(f"{holder} holds {path}; waiting for it")) as alone:
        yield alone
