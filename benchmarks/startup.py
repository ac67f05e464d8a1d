"""CPU seconds until the command line answers, verb by verb.

    python -m benchmarks.startup [--json] [--repeats 3]

Each command runs in a process of its own; user and system time of the best of its repetitions. `fit` is measured up to
its first own line, `starting the run in ...`. What Python itself and `import torch` take is shown beside them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch

from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.images import ClassInfo


def seconds(command: list[str], until: str | None = None) -> float:
    """CPU seconds of `python COMMAND`, or until it prints `until`."""
    process = psutil.Popen(
        [sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if until is not None and until in line:
            times = process.cpu_times()
            process.kill()
            process.wait()
            return times.user + times.system
    # What a process has used is known until it is waited for.
    while process.status() != psutil.STATUS_ZOMBIE:
        pass
    times = process.cpu_times()
    process.wait()
    return times.user + times.system


def commands(folder: Path) -> dict[str, tuple[list[str], str | None]]:
    """Name -> (arguments of Python, line to wait for)."""
    made, export = str(folder / "set"), str(folder / "export")
    classes = [ClassInfo(label, label, f"n{label:08}", str(label)) for label in range(2)]
    DistilledSet.from_images(torch.zeros(2, 3, 8, 8).byte(), torch.arange(2), classes).save(made)
    verbs = {
        "configs": ["configs"],
        "inspect": ["inspect", made],
        "export": ["export", made, "--format", "imagefolder", "--out", export, "--overwrite"],
        "import": ["import", export, "--out", str(folder / "imported"), "--overwrite"],
        "report": ["report", made, "--out", str(folder / "report.html"), "--overwrite"],
        "evaluate_mistyped": ["evaluate", str(folder / "nothing"), "--data", "configs/data/digits.yaml"],
        "fit_mistyped": ["fit", "--config", "configs/quickstart.yml"],
        **{f"{verb}_help": [verb, "--help"] for verb in cli.VERBS},
    }
    fit = ["-m", "ldd", "fit", "--config", "configs/quickstart.yaml"]
    fit += ["--trainer.default_root_dir", str(folder / "run")]
    return {
        "python": (["-c", "pass"], None),
        "torch": (["-c", "import torch"], None),
        **{name: (["-m", "ldd", *words], None) for name, words in verbs.items()},
        "fit": (fit, "starting the run in"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name, (command, until) in commands(Path(folder)).items():
            found[name] = round(min(seconds(command, until) for _ in range(options.repeats)), 3)
            if not options.json:
                print(f"{name:20}{found[name]:8.2f} s", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
