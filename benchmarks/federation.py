"""Sub-tasks on two Ray workers against one on the same machine, and with a worker killed in the middle.

    python -m benchmarks.federation [--json] [--config RECIPE.yaml] [--subtasks 2] [-- options of latentdd fit]

Three runs of `latentdd federate` with the same recipe, without evaluation: one worker, two workers, and two workers of
which the first is killed (SIGKILL) once its job has saved `--kill-at` checkpoints. Two workers share the cores;
`identical_after_kill` compares images and codes of the merged sets byte for byte with those of the undisturbed run.
`wall_ratio` is what two workers save: seconds with one / seconds with two. Starting Ray is part of both.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.figures import parser_of, show
from ldd.disk.files import sha256
from ldd.runtime.devices import available_cores


def start(arguments: list[str], out: Path, workers: int, threads: int) -> subprocess.Popen[str]:
    """`latentdd federate` in a process of its own."""
    command = ["federate", *arguments, "--workers", str(workers), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with open(out.with_suffix(".log"), "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ldd", *command], env=environment, stdout=log, stderr=log, text=True
        )


def finish(run: subprocess.Popen[str], out: Path) -> None:
    """Wait for it, or say what it said."""
    if run.wait():
        raise SystemExit(out.with_suffix(".log").read_text())


def kill_first_worker(run: subprocess.Popen[str], out: Path, steps: int) -> int:
    """Kill the Ray worker of sub-task 0 after so many checkpoints; how many steps were saved then."""
    folder, saved, seen = out / "subtasks" / "0" / "checkpoints", 0, 0
    while saved < steps and run.poll() is None:
        time.sleep(0.02)
        last = folder / "last.ckpt"
        stamp = last.stat().st_mtime_ns if last.is_file() else 0
        saved, seen = saved + (stamp != seen), stamp
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(out) in words and "--only" in words and words[words.index("--only") + 1] == "0":
            process.parent().send_signal(signal.SIGKILL)
            return saved
    raise SystemExit("the job of sub-task 0 ended before it could be killed; give more steps")


def main() -> None:
    """Print the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", default="configs/ld3m_digits.yaml")
    parser.add_argument("--subtasks", type=int, default=2)
    parser.add_argument("--kill-at", type=int, default=2, help="checkpoints to wait for (one each 10 steps)")
    parser.add_argument("options", nargs="*", help="after --: options of latentdd fit")
    arguments = parser.parse_args()
    recipe = ["--config", arguments.config, "--subtasks", str(arguments.subtasks), *arguments.options]
    recipe += ["--trainer.limit_val_batches", "0", "--checkpoint.every_n_steps", "10"]
    cores = available_cores()
    folder = Path(tempfile.mkdtemp(prefix="federation-"))
    seconds: dict[int, float] = {}
    for workers in (1, 2):
        out, started = folder / f"workers-{workers}", time.perf_counter()
        finish(start(recipe, out, workers, max(1, cores // workers)), out)
        seconds[workers] = time.perf_counter() - started
    out, started = folder / "killed", time.perf_counter()
    run = start(recipe, out, 2, max(1, cores // 2))
    saved = kill_first_worker(run, out, arguments.kill_at)
    finish(run, out)
    killed = time.perf_counter() - started
    names = ("images.safetensors", "codes.safetensors")
    same = all(
        sha256(out / "distilled" / name) == sha256(folder / "workers-2" / "distilled" / name)
        for name in names
    )
    figures = {
        "wall_ratio": seconds[1] / seconds[2],
        "seconds_1_worker": seconds[1],
        "seconds_2_workers": seconds[2],
        "seconds_2_workers_one_killed": killed,
        "checkpoints_before_kill": saved,
        "identical_after_kill": same,
        "subtasks": arguments.subtasks,
        "cores": cores,
    }
    shutil.rmtree(folder)
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
