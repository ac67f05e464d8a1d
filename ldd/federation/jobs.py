"""The jobs of a federation, and the machines that run them: this process, Ray, or SLURM."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ldd.errors import UserError
from ldd.runtime.devices import available_cores

DONE = "finished"
"""An empty file in the folder of a job that ran to its end."""

Ended = Callable[[str, int], None]
"""Called with the name and the exit code of a job that has ended."""


@dataclass(frozen=True)
class Job:
    """One sub-task, or another part of a federation that can be done on its own.

    Attributes:
        name: in messages.
        arguments: of `latentdd`; run again after an interruption, they continue.
        folder: where it runs, on a machine that has such a folder.
        log: file to which its output is appended.
        results: folders that it writes, absolute or relative to `folder`; its own first. A machine with another disk
            is sent them, and sends them back.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    log: Path
    results: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Needs:
    """What a job asks of a machine."""

    cpus: int = 1  # as many threads are used, unless the environment has OMP_NUM_THREADS
    gpus: int = 0
    memory: float | None = None  # GiB

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the job."""
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.cpus))}


@dataclass(frozen=True)
class Machines:
    """Where jobs run, and how many at a time.

    Args:
        workers: jobs at a time, on Ray; 0 runs them one after the other in this process, without Ray.
        address: of a running Ray cluster, or 'auto'; without it one is started on this machine.
        retries: of a job that is killed, from its checkpoint.
        cpus_per_job: cores and threads of a job; auto shares this machine's among the workers, and takes 1 elsewhere.
        memory_per_job: GiB of memory that a machine must have for a job; without it cores and GPUs alone decide.
        engine: slurm runs nothing and writes DIR/slurm: an array of jobs, and the script that submits them.

    Raises:
        UserError: numbers out of range, or an address without workers.
    """

    workers: int = 0
    address: str | None = None
    retries: int = 3
    cpus_per_job: int | Literal["auto"] = "auto"
    memory_per_job: float | None = None
    engine: Literal["ray", "slurm"] = "ray"

    def __post_init__(self) -> None:
        for option, value in (("workers", self.workers), ("retries", self.retries)):
            if value < 0:
                raise UserError(f"--{option} ({value}) must be at least 0")
        if self.cpus_per_job != "auto" and self.cpus_per_job < 1:
            raise UserError(f"--cpus_per_job ({self.cpus_per_job}) must be 'auto' or at least 1")
        if self.memory_per_job is not None and not 0 < self.memory_per_job < math.inf:
            raise UserError(f"--memory_per_job ({self.memory_per_job}) must be above 0: GiB, for instance 16")
        if self.memory_per_job is not None and not self.workers and self.engine == "ray":
            raise UserError(
                f"--memory_per_job ({self.memory_per_job}) needs --workers or --engine slurm; else jobs run here"
            )
        if self.address is not None and not self.workers:
            raise UserError(f"--address ({self.address}) needs --workers: how many jobs run there at a time")

    def needs(self, trainer: Mapping[str, Any]) -> Needs:
        """Return what each job asks for, by the section `trainer` of its recipe.

        Raises:
            UserError: several machines for one job, or single GPUs by their numbers.
        """
        if int(trainer.get("num_nodes") or 1) > 1:
            raise UserError(
                f"trainer.num_nodes ({trainer['num_nodes']}): each sub-task runs on one machine; leave it at 1"
            )
        elsewhere = self.engine == "slurm" or self.address is not None
        cpus = 1 if self.cpus_per_job == "auto" else self.cpus_per_job
        if self.cpus_per_job == "auto" and self.workers and not elsewhere:
            cpus = max(1, available_cores() // self.workers)
        if self.engine == "ray" and not self.workers:
            return Needs(cpus)  # in this process, which takes what the recipe says
        return Needs(cpus, _gpus(trainer, torch.cuda.is_available() or elsewhere), self.memory_per_job)


def _gpus(trainer: Mapping[str, Any], gpus_there: bool) -> int:
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    if accelerator not in ("gpu", "cuda", "auto") or (accelerator == "auto" and not gpus_there):
        return 0
    if devices in ("auto", -1, "-1"):
        return 1
    if isinstance(devices, int) or (isinstance(devices, str) and devices.isdigit()):
        return int(devices)
    raise UserError(
        f"trainer.devices ({devices}) names single GPUs, but each job is given its own; set a number of them"
    )


def failures(codes: Mapping[str, int], jobs: Sequence[Job]) -> str:
    """Return the failed jobs in words, with the logs to look into."""
    return "; ".join(
        f"{job.name} (exit code {codes[job.name]}, see {job.log})" for job in jobs if codes[job.name]
    )
