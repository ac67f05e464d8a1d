"""What engines run: commands that can be repeated, each of which continues where it was stopped."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldd.errors import UserError


@dataclass(frozen=True)
class Job:
    """One sub-task, or whatever else can be done on its own.

    Attributes:
        name: in messages.
        arguments: of `latentdd`; run again after an interruption, they continue.
        folder: where it runs, the same path on every machine.
        log: file to which it appends what it says.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    log: Path


@dataclass(frozen=True)
class Needs:
    """What a job asks of a machine.

    Attributes:
        cpus: cores; as many threads are used (unless the environment has OMP_NUM_THREADS).
        gpus: accelerators.
    """

    cpus: int = 1
    gpus: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the job."""
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.cpus)), **self.environment}


Ended = Callable[[str, int], None]
"""Called with the name and the exit code of a job that has ended."""


def gpus_of(trainer: Mapping[str, Any], gpus_there: bool) -> int:
    """GPUs that one job takes, by the `trainer` section of its recipe.

    Args:
        trainer: with `accelerator`, `devices` and `num_nodes`.
        gpus_there: whether the machines have any, which `accelerator: auto` asks.

    Raises:
        UserError: GPUs named one by one, or several machines for one job.
    """
    if int(trainer.get("num_nodes") or 1) > 1:
        raise UserError(
            f"trainer.num_nodes ({trainer['num_nodes']}): each sub-task runs on one machine; leave it at 1"
        )
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
    """In words, with the logs to look into."""
    return "; ".join(
        f"{job.name} (exit code {codes[job.name]}, see {job.log})" for job in jobs if codes[job.name]
    )
