"""Give every reader thousands of damaged and hostile files; report crashes, hangs, memory and code that ran.

    nice -n 15 python -m benchmarks.fuzz --many 20000 --out fuzz.json

Kinds: run folders, YAML, `.pt`, safetensors, images, score tables (`tests/helpers/hostile.py`). An input is answered
rightly if a reader returns or raises UserError within 10 seconds and 1 GiB, and nothing is imported, started or
connected on the way (an audit hook sees it).
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from hostile import SEEN, Maker, watch

SECONDS, BYTES = 10, 2**30
BATCH = 100
SHARES = {"yaml": 5, "pt": 5, "safetensors": 5, "image": 5, "scores": 3, "run": 2}


def peak() -> int:
    """Highest memory of this process since `forget_peak`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise AssertionError


def forget_peak() -> int:
    """Start to measure anew; the memory that is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


class Late(BaseException):
    """Ten seconds of a processor are over, or a minute of waiting."""


def late(*_: object) -> None:
    raise Late


def work(tasks: Any, results: Any) -> None:  # noqa: ANN401 - queues
    """Take batches until there is none, and say what became of each input."""
    from ldd.errors import UserError

    warnings.simplefilter("ignore")
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, late)
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder))
        watch()
        while (task := tasks.get()) is not None:
            kind, numbers = task
            for number in numbers:
                results.put(("begin", kind, number, os.getpid()))
                place = Path(folder, "input")
                place.mkdir()
                try:
                    readers = maker.inputs(kind, number, place)
                except Exception:
                    results.put(("input", kind, number, traceback.format_exc()[-900:]))
                    readers = []
                for which, read in enumerate(readers):
                    SEEN.clear()
                    before, started, outcome = forget_peak(), time.process_time(), "read"
                    signal.setitimer(signal.ITIMER_PROF, SECONDS)
                    signal.alarm(6 * SECONDS)  # for those who wait at a pipe
                    try:
                        with contextlib.redirect_stdout(io.StringIO()):
                            read()
                    except UserError:
                        outcome = "refused"
                    except Late:
                        outcome = "hang"
                    except BaseException:
                        outcome = "crash: " + traceback.format_exc()[-900:]
                    signal.alarm(0)
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    results.put(
                        (
                            outcome,
                            kind,
                            number,
                            (which, time.process_time() - started, peak() - before, list(SEEN)),
                        )
                    )
                shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    """Deal the inputs over worker processes and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--many", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", default=",".join(SHARES))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", default="fuzz.json")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    total = sum(SHARES[kind] for kind in kinds)
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    batches = []
    for kind in kinds:
        last = options.first + -(-options.many * SHARES[kind] // total)
        batches += [
            (kind, range(start, min(start + BATCH, last))) for start in range(options.first, last, BATCH)
        ]
    random.Random(0).shuffle(batches)
    for batch in [*batches, *[None] * options.workers]:
        tasks.put(batch)
    workers = [context.Process(target=work, args=(tasks, results)) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    counts: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    running: dict[int, tuple[str, int]] = {}
    slowest, largest = 0.0, 0
    while any(worker.is_alive() for worker in workers) or not results.empty():
        try:
            outcome, kind, number, rest = results.get(timeout=90)
        except Exception:
            for worker in workers:
                if worker.is_alive() and worker.pid in running:
                    wrong.append({"what": "hang in C", "input": running[worker.pid]})
                    worker.kill()
            continue
        if outcome == "begin":
            counts[f"{kind} inputs"] += 1
            running[rest] = (kind, number)
            continue
        if outcome == "input":
            wrong.append({"what": "no input", "input": (kind, number), "why": rest})
            continue
        which, seconds, grown, seen = rest
        slowest, largest = max(slowest, seconds), max(largest, grown)
        counts[f"{kind} {outcome.partition(':')[0]}"] += 1
        if counts.total() % 2000 == 0:
            print(dict(counts), len(wrong), flush=True)
        problems = [outcome] if outcome not in ("read", "refused") else []
        problems += ["memory"] if grown > BYTES else []
        problems += ["slow"] if seconds > SECONDS else []
        problems += [f"code run: {one}" for one in seen]
        if problems:
            wrong.append(
                {
                    "what": problems,
                    "input": (kind, number),
                    "reader": which,
                    "seconds": seconds,
                    "bytes": grown,
                }
            )
    dead = [worker.exitcode for worker in workers if worker.exitcode]
    found = {
        "counts": dict(sorted(counts.items())),
        "slowest_s": slowest,
        "largest_bytes": largest,
        "dead": dead,
        "wrong": wrong,
    }
    Path(options.out).write_text(json.dumps(found, indent=1, default=str))
    print(json.dumps({**found, "wrong": len(wrong)}, indent=1))
    for one in wrong[:20]:
        print(one["input"], one["what"], one.get("why", ""))


if __name__ == "__main__":
    main()
