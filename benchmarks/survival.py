"""Kill every verb that writes at random moments: does the same command, started again, leave the same files?

    python -m benchmarks.survival [--json] [--kills 20] [--seed 0] [--verbs fit,export]

Each verb (`tests/helpers/kills.py`) is run once undisturbed, in a process of its own. Then it is run in other folders,
stopped at a moment drawn uniformly between its start and the end of the undisturbed run (two of three times by SIGKILL,
else by SIGTERM), and started again by the same command. The files are compared byte by byte, without what tells of the
clock, and no temporary file, lock or shard may be left. Kills are dealt over the verbs in turn. No timing is measured,
so a busy machine only makes it slower.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from kills import VERBS, made, make_world, spelt
from processes import Started, latentdd

from benchmarks.figures import parser_of, show

PATIENCE = 60  # seconds for what a killed verb has started to end


class Verb:
    """A verb's command in a world.

    Attributes:
        seconds: of the undisturbed run.
        expected: what that left.
    """

    def __init__(self, name: str, world: Path) -> None:
        self.name, self.world = name, world
        folder = self._folder("undisturbed")
        started = time.monotonic()
        self._run(folder)
        self.seconds = time.monotonic() - started
        self.expected = made(folder)
        assert self.expected, name

    def stopped_and_started_again(self, number: int, share: float, how: int) -> tuple[bool, str]:
        """Return whether it was running when the signal came, and what is wrong ("" for nothing)."""
        folder = self._folder(str(number))
        process = Started(latentdd, spelt(VERBS[self.name], self.world, folder), folder / "first.log")
        process.process.join(share * self.seconds)
        running = process.process.is_alive()
        if running:
            process.send(how)
        process.process.join(PATIENCE)
        if process.process.is_alive():
            return running, f"still running {PATIENCE} s after the signal"
        (folder / "first.log").unlink(missing_ok=True)
        try:
            self._run(folder)
            found = made(folder)
        except (AssertionError, RuntimeError) as error:
            return running, str(error)
        other = {name for name in {**found, **self.expected} if found.get(name) != self.expected.get(name)}
        return running, f"other files: {', '.join(sorted(other))}" if other else ""

    def _folder(self, name: str) -> Path:
        folder = self.world / self.name.replace(" ", "-") / name
        folder.mkdir(parents=True)
        return folder

    def _run(self, folder: Path) -> None:
        """Run to the end; a lock that a child of the killed process still holds is waited for."""
        log, until = folder.with_suffix(".log"), time.monotonic() + PATIENCE
        while code := Started(latentdd, spelt(VERBS[self.name], self.world, folder), log).result(600):
            said = log.read_text()
            if "is not empty; name a new folder" in said:  # it had written all before the signal came
                return
            if "is being written by" not in said or time.monotonic() > until:
                raise RuntimeError(f"exit code {code}: {said[-2000:]}")
            time.sleep(1)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--verbs", default=",".join(VERBS), help="names, separated by commas")
    arguments = parser.parse_args()
    os.chdir(Path(__file__).parents[1])
    draws, outcomes = random.Random(arguments.seed), Counter[str]()
    names = arguments.verbs.split(",")
    with tempfile.TemporaryDirectory() as base:
        world = Path(base)
        make_world(world)
        verbs: dict[str, Verb] = {}
        for number in range(arguments.kills):
            name = names[number % len(names)]
            verb = verbs.setdefault(name, None) or Verb(name, world)  # type: ignore[arg-type]
            verbs[name] = verb
            share, how = draws.random(), signal.SIGTERM if number % 3 == 2 else signal.SIGKILL
            running, wrong = verb.stopped_and_started_again(number, share, how)
            when = f"{how.name} at {100 * share:.0f} %" if running else "had ended before the signal"
            outcomes["stopped"] += running
            outcomes["the same files, nothing left"] += not wrong
            print(f"{number:>2} {name:<14} {when:<28} {wrong or 'the same files'}", flush=True)
    show({"kills": arguments.kills, "verbs": len(verbs), **outcomes}, arguments.json)


if __name__ == "__main__":
    main()
