"""How processes end: with the one that started them, on a signal, and to be queued again by SLURM."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Those that stop a run."""

_LOOK = 0.5  # seconds between two looks at the processes of another
_GRACE = 3  # seconds in which they may end by themselves
_SAVING = 60  # seconds in which they may save a step

_NAME = "end with parent"  # of the thread that watches


def end_with_parent(message: str | None = None) -> None:
    """Let this process end within a second of its parent, even if that one is killed.

    Args:
        message: printed then; None for nothing.
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
def no_orphans() -> Iterator[None]:
    """Let all processes that this one has started end soon after it, even if it is killed while the block lasts.

    Those that do not see it themselves are told by SIGTERM, so that runs save their last step, and then killed.
    """
    command = [sys.executable, "-c", f"from {__name__} import _end_after; _end_after({os.getpid()})"]
    watcher = subprocess.Popen(command, start_new_session=True)
    try:
        yield
    finally:
        watcher.kill()
        watcher.wait()


def _end_after(driver: int) -> None:
    """Wait until a process has ended, then end those that it has started (of whom the parents may be gone)."""
    import psutil

    known: dict[int, psutil.Process] = {}
    try:
        started = psutil.Process(driver)
        while started.is_running() and started.status() != psutil.STATUS_ZOMBIE:
            known |= {child.pid: child for child in started.children(recursive=True)}
            time.sleep(_LOOK)
    except psutil.NoSuchProcess:
        pass
    known.pop(os.getpid(), None)
    _, alive = psutil.wait_procs(known.values(), timeout=_GRACE)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                end(process)
        _, alive = psutil.wait_procs(alive, timeout=_SAVING)


@contextmanager
def signals_interrupt(received: list[int] | None = None) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on each of `SIGNALS` that nothing else handles, and yield the list of those received.

    So a signal stops a verb at once, and a run before its first step and after its last; in between,
    `LastCheckpoints` lets it wait for the end of the step, unless the step is `preparing` something. Threads other
    than the main one have no signals.

    Args:
        received: the list to yield.
    """
    received = [] if received is None else received

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_preparing = False


@contextmanager
def preparing() -> Iterator[None]:
    """Let a signal stop at once what is done in here, though it is part of a step: it may take hours, and is kept."""
    global _preparing
    before, _preparing = _preparing, True
    try:
        yield
    finally:
        _preparing = before


def is_preparing() -> bool:
    """Return whether the main thread is within `preparing`."""
    return _preparing


def requeue() -> None:
    """Let SLURM queue this job again under its number, and print that, or why not.

    Does nothing outside of SLURM, and in ranks but the first.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return
    # Now, since SLURM may end this process before it answers.
    print(f"queuing SLURM job {job} again", file=sys.stderr, flush=True)
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"SLURM job {job} could not be queued again: {reason}; submit it again", file=sys.stderr)
