"""What a process has to work with: CPU cores, an accelerator, and the memory of both."""

import os
import resource
import sys

import psutil
import torch

from ldd.errors import UserError


def available_cores() -> int:
    """Return the number of cores this process may use: fewer than the machine has under most schedulers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(device: torch.device) -> int:
    """Return how much memory of `device` can still be taken."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def device_name(device: torch.device) -> str:
    """Return the kind of a device and its whole memory, as text."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return f"{facts.name}, {facts.total_memory} bytes"
    return f"{device.type}, {psutil.virtual_memory().total} bytes"


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: of the allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def pick_device() -> torch.device:
    """Return the accelerator, or the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def check_device(name: str) -> torch.device:
    """Return the kind of device of that name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: the name is unknown, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name!r} is unknown; use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name!r}, but torch finds no GPU; use device=auto or cpu")
    return device


def find_device(name: str) -> torch.device:
    """Return the device to work on; to be asked when work starts, since Lightning gives each rank its GPU late.

    Raises:
        UserError: as `check_device`.
    """
    device = check_device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
