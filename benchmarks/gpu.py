"""Everything that has to be measured on a GPU, by one command that takes at most eight minutes.

    python -m benchmarks.gpu --json FILE [--device cuda] [--parts step,compile,...] [--limit 465] [--tiny]

FILE is one JSON object: machine, versions, and for each part its state (`done`, `failed` or `out of time`), seconds,
figures, and what failed within it. It is written anew after each part, so that what was measured is there whenever the
command ends. Each part runs in a process of its own, which is ended when its time is up; the figures that it had by
then are kept. Priors have random weights and images are noise: times and memory do not depend on them.

The parts, with their seconds on an H200:

- `step`: a DM step at LD3M's sizes (400.9 M parameters, 128 px, S = 10, ten images, 256 real ones a class) against its
  floor and the two-pass scheme of the released code, in float32, with products in TF32, with the prior in bfloat16 and
  under bf16-mixed.
- `compile`: the same step with `torch.compile`, its first call included.
- `memory`: seconds and peak memory of a step by images per class, and by steps of the reverse process.
- `objectives`: a step of DM, DC, MTT and D3 by Lightning's trainer, and how often it makes the host wait.
- `evaluator`: students one after another and side by side, and the loop as published.
- `scoring`: images a second under a ResNet-50.
- `prior_training`: steps a second of `latentdd prior train`.

`--tiny` takes small networks and few repetitions, to see on a CPU that all parts work; only `--limit` ends them.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ldd import __version__
from ldd.disk.files import write_json
from ldd.runtime.devices import available_cores, check_device, device_name

ROOT = Path(__file__).parent.parent


SECONDS = {
    "step": 100,
    "compile": 110,
    "memory": 75,
    "objectives": 70,
    "evaluator": 60,
    "scoring": 30,
    "prior_training": 30,
}
"""How long each of `gpu_parts.PARTS` may take."""


@dataclass
class Outcome:
    """What became of a part."""

    state: str
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


def run_part(name: str, seconds: float, device: str, *, tiny: bool) -> Outcome:
    """Run a part in a process of its own, for at most so many seconds."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        notes, errors = Path(folder) / "notes.json", Path(folder) / "errors.txt"
        command = [sys.executable, "-m", "benchmarks.gpu", "--worker", name, "--json", str(notes)]
        command += ["--device", device, *["--tiny"] * tiny]
        with errors.open("w") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True
            )
            try:
                code = process.wait(timeout=max(0.0, seconds))
                state = "failed" if code else "done"
            except subprocess.TimeoutExpired:
                state = "out of time"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all that it started
                process.wait()
        found = json.loads(notes.read_text()) if notes.exists() else {}
        lines = errors.read_text(errors="replace").strip().splitlines() if state == "failed" else []
    taken = time.monotonic() - started
    return Outcome(state, taken, found.get("figures", {}), found.get("failed", {}), "\n".join(lines[-5:]))


def machine(device: str) -> dict[str, object]:
    """What the figures were measured on, and with what."""
    chosen = check_device(device)
    return {
        "device": device_name(chosen),
        "cores": available_cores(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "ldd": __version__,
        **{name: version(name) for name in ("torch", "lightning", "diffusers", "torchvision")},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if chosen.type == "cuda" else None,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run all parts, or as a worker one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, help="the file to write")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--parts", default=",".join(SECONDS), help="which, separated by commas")
    parser.add_argument("--limit", type=float, default=465, help="seconds for all parts together")
    parser.add_argument("--tiny", action="store_true", help="small networks and few repetitions")
    parser.add_argument("--worker", choices=SECONDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.worker:
        check_device(arguments.device)  # before everything is imported
        from benchmarks.gpu_parts import PARTS, Notes, Sizes

        sizes = Sizes.of(arguments.device, tiny=arguments.tiny)
        PARTS[arguments.worker](Notes(Path(arguments.json)), sizes)
        return
    names = arguments.parts.split(",")
    if unknown := set(names) - set(SECONDS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} unknown; choose from {', '.join(SECONDS)}")
    report: dict[str, Any] = {"machine": machine(arguments.device), "tiny": arguments.tiny, "parts": {}}
    end = time.monotonic() + arguments.limit
    for name in names:
        left = end - time.monotonic()
        seconds = left if arguments.tiny else min(SECONDS[name], left)
        outcome = run_part(name, seconds, arguments.device, tiny=arguments.tiny)
        report["parts"][name] = vars(outcome)
        write_json(arguments.json, report)
        print(f"{name:<16}{outcome.state:<12}{outcome.seconds:6.1f} s {' '.join(outcome.failed)}", flush=True)


if __name__ == "__main__":
    main()
