"""Random `kill -9` during a distillation of the digits: does the run that goes on end with the same bits?

    python -m benchmarks.survival [--json] [--kills 20] [--steps 16] [--seed 0]

One run is left alone. Each of the others (same command, a folder of its own) is killed at a moment drawn uniformly
between its first file and the end of an unbroken run, and then goes on by the same command with `--ckpt_path auto`.
Its distilled set is compared with the unbroken one's, byte by byte. No timing is measured, so a busy machine only
makes it slower.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.figures import parser_of, show
from ldd.disk.files import sha256

ROOT = Path(__file__).parent.parent
COMPARED = ("codes.safetensors", "images.safetensors")


class Run:
    """`latentdd fit` on the quickstart recipe without evaluation, a checkpoint every two steps."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self.arguments = [
            *(sys.executable, "-m", "ldd", "fit", "--config", "configs/quickstart.yaml"),
            *("--trainer.default_root_dir", str(folder), "--trainer.max_steps", str(steps)),
            *("--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"),
            *("--checkpoint.every_n_steps", "2", "--preview.every_n_steps", "4", "--ckpt_path", "auto"),
        ]

    def start(self) -> subprocess.Popen[bytes]:
        """In a session of its own; its output goes to `<folder>.log`."""
        with self.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(self.arguments, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def begin(self) -> subprocess.Popen[bytes]:
        """Start, and wait for the first file."""
        process = self.start()
        while not (self.folder / "config.yaml").exists():
            if process.poll() is not None:
                raise RuntimeError(self.folder.with_suffix(".log").read_text())
            time.sleep(0.01)
        return process

    def finish(self) -> None:
        """Go on to the end."""
        if self.start().wait():
            raise RuntimeError(self.folder.with_suffix(".log").read_text())

    def step(self) -> int:
        """Of the last checkpoint; 0 without one."""
        for name in ("last.ckpt", "previous.ckpt"):
            path = self.folder / "checkpoints" / name
            if path.exists():
                return int(torch.load(path, weights_only=True)["global_step"])
        return 0

    def hashes(self) -> list[str]:
        """Of what the run is for."""
        return [sha256(self.folder / "distilled" / name) for name in COMPARED]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    draws = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as base:
        unbroken = Run(Path(base) / "unbroken", arguments.steps)
        process, started = unbroken.begin(), time.monotonic()
        if process.wait():
            raise RuntimeError(unbroken.folder.with_suffix(".log").read_text())
        seconds = time.monotonic() - started
        identical, steps = 0, []
        for number in range(arguments.kills):
            run = Run(Path(base) / f"killed-{number}", arguments.steps)
            process = run.begin()
            time.sleep(draws.uniform(0, seconds))
            running = process.poll() is None
            if running:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            steps.append(run.step())
            run.finish()
            same = run.hashes() == unbroken.hashes()
            identical += same
            moment = (
                f"killed with a checkpoint of step {steps[-1]}" if running else "had ended before its kill"
            )
            print(f"run {number:>2}: {moment}, {'identical' if same else 'DIFFERENT'}", flush=True)
    figures = {
        "identical_after_kill": identical,
        "kills": arguments.kills,
        "steps": arguments.steps,
        "earliest_checkpoint": min(steps),
        "latest_checkpoint": max(steps),
        "different_checkpoints": len(set(steps)),
    }
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
