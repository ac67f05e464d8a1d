"""The resources of a process: CPU cores, an accelerator, and the memory of both."""

import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from ldd.errors import UserError
from ldd.images import ImageRows, Images

AnyImages = TypeVar("AnyImages", torch.Tensor, ImageRows, Images)


def available_cores() -> int:
    """Return the number of cores this process may use: fewer than the machine has under most schedulers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(device: torch.device) -> int:
    """Return how much memory of `device` can still be taken: on the host also by this container or batch job."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, min(int(psutil.virtual_memory().available), *_left_to_this_process()))


def _left_to_this_process() -> Iterator[int]:
    """Return bytes left below each limit that is set for this process, its container or its batch job."""
    own = psutil.Process().memory_info()
    for limit, used in ((resource.RLIMIT_AS, own.vms), (resource.RLIMIT_DATA, own.rss)):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield soft - used
    if (of_job := _slurm_bytes(os.environ)) is not None:
        yield of_job - own.rss
    with suppress(OSError):
        yield from _left_in_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text())


def _slurm_bytes(variables: Mapping[str, str]) -> int | None:
    """Memory that SLURM gives the job on this machine; None outside of SLURM, or where a job has all of it."""
    for name, times in (
        ("SLURM_MEM_PER_NODE", None),
        ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
        ("SLURM_MEM_PER_GPU", "SLURM_GPUS_ON_NODE"),
    ):
        with suppress(ValueError):
            count = 1 if times is None else int(variables.get(times, "1"))
            if mib := int(variables.get(name, "0")):
                return mib * count * 2**20
    return None


def _left_in_groups(root: Path, membership: str) -> Iterator[int]:
    """Return bytes left below the limits of the control groups that a process is in, and of those around them.

    Args:
        root: where the groups are mounted: version 2, or version 1 with `memory` among its folders.
        membership: lines `number:controllers:/path`, as in `/proc/self/cgroup`.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, files = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = top / path.lstrip("/")  # not there in a container, which sees its group as the top
        for group in (own, *own.parents):
            with suppress(OSError, ValueError):
                limit, used = (int((group / name).read_text()) for name in files[:2])  # "max" is not a number
                facts = dict(fact.split() for fact in (group / "memory.stat").read_text().splitlines())
                yield limit - used + int(facts.get(files[2], 0))  # pages of files that are dropped for others
            if group == top:
                break


def in_bytes(count: float) -> str:
    """Return a number of bytes in a unit that reads well, e.g. `1.5 GiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on `device`, without waiting for what is queued there: from page-locked memory."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def resident(images: AnyImages, device: torch.device) -> AnyImages:
    """Return images on `device` where they leave half of its memory free, else as they are, to be sent in batches."""
    if device == images.device or images.nbytes > free_bytes(device) / 2:
        return images
    return images.to(device)


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
    return _resident_mib(resource.RUSAGE_SELF)


def peak_of_children_mib() -> float:
    """Return the peak memory in MiB of the largest child process that has ended."""
    return _resident_mib(resource.RUSAGE_CHILDREN)


def _resident_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def pick_device() -> torch.device:
    """Return the accelerator, or the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def check_device(name: str) -> torch.device:
    """Return the kind of device of that name; `auto` is the one of `pick_device`."""
    if name == "auto":
        return pick_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name!r} is unknown; use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name!r}, but torch finds no GPU; use device=auto or cpu")
    return device


def find_device(name: str) -> torch.device:
    """Return the device to work on; to be asked when work starts, since Lightning gives each rank its GPU late."""
    device = check_device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
