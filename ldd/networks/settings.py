"""What sets networks apart that are printed alike and start with equal weights: what their modules keep of arguments.

An answer to a fixed image would tell less and could not be relied on: dropout and whatever else only acts in training
is silent in it, and its last bits follow from the machine and its threads, so that a record made elsewhere would be
lost, or, with few digits, a setting that moves the answer little be missed. Attributes are read as they stand: nothing
is computed, drawn or changed, and what is read is the same on every machine, device and number of threads.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldd.runtime.classes import dotted_name

_OF_TORCH = {*vars(nn.Module()), "_abc_impl"}  # of every module, and of every abstract class
_KNOWN = {"torch", *sys.stdlib_module_names} - {"__main__"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype)
_LONGEST = 200  # characters of a line; a hash stands for the rest


def settings_of(network: nn.Module) -> tuple[str, ...]:
    """Return a line for each module that keeps plain attributes: its place, and their names and values in words.

    These are attributes of the object and of its class, and buffers that are not saved. Of torch's own modules they are
    those that the constructor takes, so that another version of torch changes nothing. Tensors count by their values,
    functions by their names and what they enclose, other objects by their own attributes. Where a network lies
    (`torch.device`) and its mode are no settings.
    """
    words, lines = _Words(), list[str]()
    for place, module in network.named_modules():
        if found := _attributes(module):
            line = ", ".join(f"{name}={words(value)}" for name, value in sorted(found.items()))
            cut = f"{line[:_LONGEST]}... {_hash(line.encode())}" if len(line) > _LONGEST else line
            lines.append(f"{place or type(module).__name__}: {cut}")
    return tuple(lines)


def architecture_of(network: nn.Module) -> str:
    """Return the class of a network and a hash over its layers and settings, without its weights."""
    return (
        f"{dotted_name(type(network))} {_hash(chr(10).join((repr(network), *settings_of(network))).encode())}"
    )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module keeps beside weights, saved buffers and other modules."""
    kind = type(module)
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    if _is_known(kind):
        own = {name: value for name, value in own.items() if name in _arguments(kind)}
    unsaved = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
    return {**_of_class(kind), **own, **unsaved}


def _of_class(kind: type) -> dict[str, Any]:
    """Return the attributes of a class and its bases; of methods only those that enclose something."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        for name, value in {} if _is_known(base) else vars(base).items():
            inner = getattr(value, "__func__", getattr(value, "fget", value))
            if not (name.startswith("__") or name in _OF_TORCH):
                found[name] = inner
    return {
        name: value
        for name, value in found.items()
        if not isinstance(value, FunctionType) or _enclosed(value)
    }


def _arguments(kind: type) -> frozenset[str]:
    made = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
    return frozenset(name for one in made for name in inspect.signature(one).parameters)


def _is_known(kind: type | FunctionType) -> bool:
    """Return whether a class or function is torch's or Python's own."""
    return (kind.__module__ or "").partition(".")[0] in _KNOWN


def _enclosed(function: FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell for name, cell in cells if name != "__class__"}


def _hash(values: bytes) -> str:
    return hashlib.sha256(values).hexdigest()[:16]


@dataclass
class _Words:
    """Puts values into words; an object that was met before is not described again."""

    met: dict[int, object] = field(default_factory=dict)  # held, or another could have its id

    def __call__(self, value: Any) -> str:  # noqa: ANN401 - whatever a user keeps
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, Tensor):
            return _of_tensor(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return f"{value.dtype} {value.shape} {_hash(value.tobytes())}"
        if isinstance(value, type):
            return dotted_name(value)
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{self(name)}: {self(part)}' for name, part in value.items())}}}"
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(map(self, value)))}}}"
        if isinstance(value, list | tuple):
            return f"({', '.join(map(self, value))})"
        if id(value) in self.met:
            return "..."
        self.met[id(value)] = value
        return self._of_object(value)

    def _of_object(self, value: Any) -> str:  # noqa: ANN401 - likewise
        name = dotted_name(type(value))
        if isinstance(value, FunctionType):
            name = f"{value.__module__}.{value.__qualname__}"
            return name if _is_known(value) else name + self._inside(value)
        if isinstance(value, MethodType):
            return self(value.__func__)
        if isinstance(value, partial):
            return f"{name}{self((value.func, value.args, value.keywords))}"
        if isinstance(value, CodeType):
            return f"code {_hash(value.co_code)} {self((value.co_names, value.co_consts))}"
        if isinstance(value, nn.Module):
            held = {**value._parameters, **value._buffers, **value._modules}
            return f"{name}{self({**_attributes(value), **held})}"
        if isinstance(value, Callable) and hasattr(value, "__qualname__"):  # type: ignore[arg-type]
            return f"{value.__module__}.{value.__qualname__}"
        if hasattr(value, "__dict__") and not _is_known(type(value)):
            return f"{name}{self(dict(sorted(vars(value).items())))}"
        text = repr(value)
        return name if isinstance(value, torch.device) or " at 0x" in text else text

    def _inside(self, function: FunctionType) -> str:
        """Return what a function encloses and its defaults; of one without a place in its module also what it does."""
        enclosed = {name: _content(cell) for name, cell in _enclosed(function).items()}
        parts = enclosed, function.__defaults__, function.__kwdefaults__
        code = function.__code__ if "<" in function.__qualname__ else None
        return self((*parts, code)) if any((*parts, code)) else ""


def _content(cell: Any) -> Any:  # noqa: ANN401 - whatever is enclosed
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None


def _of_tensor(value: Tensor) -> str:
    described = f"{value.dtype} {tuple(value.shape)}"
    if value.is_meta:
        return described
    plain = value.detach().cpu().to_dense() if value.layout is not torch.strided else value.detach().cpu()
    return f"{described} {_hash(plain.contiguous().flatten().view(torch.uint8).numpy().tobytes())}"
