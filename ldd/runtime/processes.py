"""Processes that must not outlive the one that started them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import lightning as L
import psutil
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import distributed

_NAME = "end with parent"


def end_with_parent(message: str | None = None) -> None:
    """Let this process end within a second of its parent, even of one that was killed without a chance to say so.

    Args:
        message: what it says then; None for nothing.
    """
    if any(thread.name == _NAME for thread in threading.enumerate()):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        if message is not None:
            print(message, file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, name=_NAME, daemon=True).start()


@contextmanager
def signals_interrupt() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on each of `SIGNALS`, where nothing else handles it; yields those received.

    That is how they stop a run at once before its first step and after its last; in between, `LastCheckpoints` lets
    them wait for the end of the step.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rank_started_by_lightning(trainer: L.Trainer) -> int:
    """Number of this process on its machine if rank 0 of the machine started it, else 0."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, LightningEnvironment):
        return 0
    # The same variables may come from a script; Lightning's launcher runs its own command once more.
    parent = psutil.Process().parent()
    own = sys.argv[1:]
    return environment.local_rank() if parent is not None and parent.cmdline()[-len(own) :] == own else 0


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank has ended or does not answer."""
    # gloo raises plain RuntimeErrors, which name its source file.
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def requeue() -> None:
    """Let SLURM queue this job again under its number, and say what became of that; nothing outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"SLURM job {job} could not be queued again: {reason}; submit it again", file=sys.stderr)
    else:
        print(f"SLURM job {job} is queued again", file=sys.stderr)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
