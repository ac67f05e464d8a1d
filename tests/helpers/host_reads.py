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

    `marked` tensors are on the device, and so is what is computed from them or made with `device=`; `.to(a device)`
    copies there.
    """

    def __init__(self, marked):
        super().__init__()
        self.found = []
        self._marked = WeakValueDictionary()
        self._mark(list(marked))

    def _mark(self, values):
        for tensor in tree_flatten(values)[0]:
            if isinstance(tensor, torch.Tensor):
                self._marked[id(tensor)] = tensor

    def _is_marked(self, value):
        return isinstance(value, torch.Tensor) and self._marked.get(id(value)) is value

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        flat = tree_flatten((args, kwargs))[0]
        marked = any(map(self._is_marked, flat))
        if name == "to" and not self._is_marked(args[0]):
            return self._send(result, args, kwargs, marked)
        if not marked and not isinstance(kwargs.get("device"), torch.device):
            return result
        masked = any(isinstance(value, torch.Tensor) and value.dtype == torch.bool for value in flat[1:])
        if name in WAITS or name == "new_tensor" or (name in ("__getitem__", "__setitem__") and masked):
            self._note(name)
        if name not in WAITS:
            self._mark(result)
        return result

    def _send(self, result, args, kwargs, to_a_marked_one):
        if not to_a_marked_one and not any(
            isinstance(value, torch.device) for value in (*args, *kwargs.values())
        ):
            return result
        if not kwargs.get("non_blocking", any(value is True for value in args)):  # a module gives it by place
            self._note("blocking to")
        result = result.clone() if result is args[0] else result
        self._mark(result)
        return result

    def _note(self, name):
        frames = [frame for frame in traceback.extract_stack() if "/ldd/" in frame.filename]
        self.found.append(f"{name}: {frames[-1].line if frames else ''}")
