"""What would make the host wait for a GPU, found on a CPU by following the tensors that would lie on the GPU."""

import traceback
from weakref import WeakValueDictionary

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "unique", "masked_select", "equal", "bincount"} | {
    f"__{name}__" for name in ("bool", "int", "float", "index", "contains")
}


class HostReads(TorchFunctionMode):
    """Notes, in `found`, each read of a device tensor and each blocking copy to the device, with its line.

    `marked` tensors are on the device, and so is what is computed from them; `.to(a device)` copies there.
    """

    def __init__(self, marked):
        super().__init__()
        self.found = []
        self._marked = WeakValueDictionary()
        for tensor in marked:
            self._mark(tensor)

    def _mark(self, value):
        for tensor in tree_flatten(value)[0]:
            if isinstance(tensor, torch.Tensor):
                self._marked[id(tensor)] = tensor

    def _is_marked(self, value):
        return isinstance(value, torch.Tensor) and self._marked.get(id(value)) is value

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = tree_flatten((args, kwargs))[0]
        # What is made with `device=` is made there.
        from_device = any(map(self._is_marked, flat)) or isinstance(kwargs.get("device"), torch.device)
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        if name == "to" and not self._is_marked(args[0]):
            if not (any(map(self._is_marked, flat)) or any(isinstance(value, torch.device) for value in flat)):
                return result
            result = result.clone() if result is args[0] else result
            if not kwargs.get("non_blocking", any(value is True for value in args)):  # `Module.to` gives it by position
                self._note("blocking to")
        elif not from_device:
            return result
        elif name in WAITS:
            self._note(name)
            return result
        elif name == "new_tensor":
            self._note(name)
        elif name in ("__getitem__", "__setitem__"):
            if any(isinstance(value, torch.Tensor) and value.dtype == torch.bool for value in flat[1:]):
                self._note(f"{name} with a mask")
        self._mark(result)
        return result

    def _note(self, name):
        frames = [frame for frame in traceback.extract_stack() if "/ldd/" in frame.filename]
        line = frames[-1].line if frames else ""
        self.found.append(f"{name}: {line}")
