"""How many CPU cores there are to work with."""

import os


def available_cores() -> int:
    """Cores that this process may use: fewer than the machine's under `taskset` and most schedulers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
