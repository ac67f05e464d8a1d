"""Read the tensors of an original checkpoint without running anything that is pickled in it."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldd.disk.pickles import check_dense, is_zip
from ldd.errors import UserError, listed


def read_state(path: Path | str, *, trust: bool = False, section: str = "state_dict") -> dict[str, Tensor]:
    """Read the tensors of a section of a checkpoint by name (of the whole file, if it has none), on the CPU.

    The file is mapped where its format allows; tensors come into memory when they are used. With `trust`, a pickle that
    holds more than tensors (callbacks of Lightning, for example) is read too: an inert stand-in replaces its classes,
    so that none of them is imported and none of their code is run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint ({path}) does not exist or is not a file; check the path")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _load(path, trust)
        check_dense(loaded, path.stat().st_size)
    except UserError:
        raise
    except Exception as error:  # damaged zip files and pickles fail in every way
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"checkpoint ({path}) is truncated or no checkpoint ({reason}); compare its size with the "
            "original's and fetch it again"
        ) from error
    state = loaded.get(section, loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"checkpoint ({path}) holds no tensors under '{section}'; give the .ckpt file of the original code"
        )
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"checkpoint ({path}): entries of state_dict are not tensors: {', '.join(others)}")
    return {str(name): tensor for name, tensor in state.items()}


def _load(path: Path, trust: bool) -> Any:  # noqa: ANN401 - whatever is pickled
    mapped = is_zip(path)
    if trust:
        return torch.load(
            path, map_location="cpu", weights_only=False, mmap=mapped, pickle_module=_InertPickle
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = _foreign(path, mapped, str(error))
        if not found:
            raise
        raise UserError(
            f"checkpoint ({path}) holds pickled objects besides its tensors ({listed(found)}), which torch.load "
            "refuses to read with weights_only=True. If you know where the file comes from, give --trust-checkpoint: "
            "it reads the tensors and puts an inert stand-in in the place of every other object, running none of their "
            "code. Or save its state_dict alone as .safetensors on a machine you can spare, and give that file"
        ) from error


def _foreign(path: Path, mapped: bool, message: str) -> list[str]:
    """Return names of pickled classes and functions that the safe reader does not know; empty for a damaged file."""
    if mapped:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    return re.findall(r"GLOBAL ([\w.]+)", message)[:1]


class _Inert:
    """Takes the place of every pickled class and function; accepts whatever unpickling calls and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Self:
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    append = extend = add = __setstate__  # how unpickling fills lists and sets


_NEEDED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}
"""What pickled tensors call; torch itself resolves the storages."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:  # noqa: ANN401 - its signature
        known = (module_name, global_name) in _NEEDED
        return super().find_class(module_name, global_name) if known else _Inert


class _InertPickle:
    """What `torch.load` takes as its `pickle_module`."""

    Unpickler = _InertUnpickler

    @staticmethod
    def load(file: IO[bytes], **options: Any) -> Any:  # noqa: ANN401 - pickle.load's signature
        """Call `pickle.load` with the stand-ins."""
        return _InertUnpickler(file, **options).load()
