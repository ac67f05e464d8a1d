"""Files of `torch.save` that anybody may have written: plain tensors and values, no larger than the file."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"  # how a file of torch.save starts since 1.6; older ones cannot be mapped into memory


def load_plain(path: Path, allowed: Sequence[Any] = ()) -> Any:  # noqa: ANN401 - whatever was stored
    """Return the content of a file, on the CPU, running nothing that is pickled in it but what is `allowed`."""
    try:
        _check_entries(path)
        with torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True)
        check_dense(content, path.stat().st_size)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # damaged zip files and pickles fail in every way
        raise ValueError(str(error).strip().partition("\n")[0][:300] or type(error).__name__) from error
    return content


def is_zip(path: Path) -> bool:
    """Tell the format of a file of `torch.save`: a zip archive, or the older one."""
    with open(path, "rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def check_dense(content: object, num_bytes: int) -> None:
    """Raise unless all tensors are ordinary ones that together take no more than `num_bytes`."""
    storages: dict[int, int] = {}
    for tensor in _tensors(content):
        odd = tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu"
        if odd or tensor.layout != torch.strided:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            kind = "quantised" if tensor.is_quantized else "meta" if tensor.is_meta else kind
            raise ValueError(f"it holds a {kind} tensor; only ordinary ones are read")
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ValueError(
                f"it holds a tensor {tuple(tensor.shape)} of which {storage.nbytes()} bytes are stored (an expanded "
                "one); save tensor.contiguous()"
            )
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > num_bytes:
        raise ValueError(f"its tensors take {sum(storages.values())} bytes, more than the file has")


def _tensors(content: object) -> Iterator[Tensor]:
    """Yield all tensors in lists and mappings, each container once, however often it is named."""
    waiting, seen = [content], set[int]()
    while waiting:
        found = waiting.pop()
        if isinstance(found, Tensor):
            yield found
        elif isinstance(found, Mapping | list | tuple | set | frozenset) and id(found) not in seen:
            seen.add(id(found))
            waiting += [*found, *found.values()] if isinstance(found, Mapping) else list(found)


def _check_entries(path: Path) -> None:
    """Raise for an archive that is larger unpacked than packed: torch.save compresses nothing."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    if not is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it is a compressed archive, which torch.save does not write")
