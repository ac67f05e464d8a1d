"""A sweep's cells run side by side, in processes of their own, which free their memory whatever happens."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

import rich

from ldd.disk.locks import writing_in
from ldd.errors import UserError
from ldd.evaluation.results.report import JSON_NAME
from ldd.runs.ending import Ending, without
from ldd.runs.history import record_command
from ldd.runtime.devices import available_cores
from ldd.runtime.plain import on_terminal
from ldd.runtime.processes import no_orphans
from ldd.sweeps.file import LOG_NAME, Cell, Sweep
from ldd.sweeps.results import CSV_NAME, PLOT_NAME, Results

T = TypeVar("T")

_LAST_LINES = 15  # of the output of a cell that failed

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TOLD_TO_STOP = {
    code
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    for code in (-number, 128 + number)
}
"""Exit codes of a run that a signal ended."""

_ON_A_PAGE = 6  # runs that a page still shows well

_POLL = 0.1  # seconds between two looks at the processes


def sweep(
    config: str,
    out: str,
    jobs: int = 1,
    dry_run: bool = False,
    extra: Sequence[str] = (),
    typed: Sequence[str] = ("sweep",),
) -> Ending:
    """Run every cell that is not finished, and write sweep.csv and sweep.png.

    The same command continues a sweep that was stopped: finished cells are skipped, and those that were running go on
    from their last checkpoints. Options of `latentdd fit` for all cells follow `--`:
    `latentdd sweep --config configs/ablations/skip.yaml --out runs/skip -- --trainer.max_steps 500`.

    Args:
        config: sweep file.
        out: folder of the sweep.
        jobs: cells at a time. More than one share the cores of the machine: each has its part in threads (unless
            OMP_NUM_THREADS is set) and in evaluation.num_workers (unless that is given), and writes what it says to
            output.log in its folder.
        dry_run: print the commands of the cells that are not finished and run none.
        extra: options of `latentdd fit` for all cells.
        typed: the command, which is recorded in the folder.

    Raises:
        UserError: a bad sweep file, a folder of another sweep, or cells that failed (after all others were run).
        KeyboardInterrupt: a cell was told to stop, and all have.
    """
    if jobs < 1:
        raise UserError(f"jobs ({jobs}) must be at least 1: the number of cells that run at a time")
    loaded = Sweep.load(config)
    cells = loaded.cells(out, extra)
    waiting = [cell for cell in cells if not cell.finished]
    if dry_run:
        print("\n".join(shlex.join(["latentdd", *cell.command()]) for cell in waiting))
        return Ending(next=without("--dry_run", typed))
    with writing_in(out):
        _check(waiting)
        record_command(out, typed)
        return _run_cells(loaded, cells, waiting, Path(out), jobs)


def _check(cells: Sequence[Cell]) -> None:
    """Refuse settings that no run takes before the first cell runs; those of all seeds are the same."""
    for cell in {cell.arguments: cell for cell in reversed(cells)}.values():
        cell.recipe()


def _run_cells(loaded: Sweep, cells: Sequence[Cell], waiting: Sequence[Cell], out: Path, jobs: int) -> Ending:
    """Run those that wait, and write the results of all."""
    failed: list[Path] = []
    runs: Runs[Cell] = Runs(jobs)
    with closing(runs(_announced(waiting))) as ended:
        for cell, code in ended:
            complete = not code and (cell.folder / JSON_NAME).is_file()
            if complete:
                cell.note(finished=True)
            elif code not in _TOLD_TO_STOP:
                failed.append(cell.folder)
            if jobs > 1:
                _tell_the_end(cell, complete)
    done = [(cell.names, cell.seed, cell.folder) for cell in cells if cell.folder not in failed]
    results = Results.collect(tuple(loaded.axes), done, tuple(loaded.references), loaded.panels)
    if results.rows:
        results.write(out)
        rich.print(results.table())
    if failed:
        failed = [cell.folder for cell in cells if cell.folder in failed]  # not as they happened to end
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed or left no evaluation.json: "
            f"{', '.join(map(str, failed))}; see their messages above; the same command tries them again"
        )
    folders = [cell.folder for cell in cells]
    made = (out / CSV_NAME, out / PLOT_NAME)
    return Ending(made, ("report", *folders[:_ON_A_PAGE], "--out", out / "report.html"))


def _announced(cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[str], Path]]:
    for number, cell in enumerate(cells, 1):
        rich.print(on_terminal(f" {cell}", bold=f"cell {number} of {len(cells)}:"))
        cell.note(finished=False)
        yield cell, cell.command(), cell.folder


def _tell_the_end(cell: Cell, complete: bool) -> None:
    log = cell.folder / LOG_NAME
    print(f"{cell}: {'finished' if complete else 'not finished'}; what it said is in {log}")
    if not complete:
        print("\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:]), file=sys.stderr)


class Runs(Generic[T]):
    """Runs `latentdd` commands, some at a time.

    Signals that would end this process are passed on to all of them and waited for, so that each keeps its last step.
    A run that was told to stop, by this process or another, stops the others too, and no more are started.

    Args:
        jobs: how many run at a time, 1 or more. One alone has the terminal and all cores; several write to
            `output.log` in their folder and share the cores, as threads (unless the environment has OMP_NUM_THREADS)
            and as worker processes of the evaluation (unless their arguments say how many).
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._running: dict[subprocess.Popen[bytes], T] = {}
        self._told: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def __call__(self, commands: Iterable[tuple[T, Sequence[str], Path]]) -> Generator[tuple[T, int]]:
        """Yield the name and the exit code of each run as soon as it has ended.

        `commands` are (name, verb with arguments, folder that exists), taken one by one when there is room. Raises
        KeyboardInterrupt once all have ended, if one was told to stop.
        """
        waiting = iter(commands)
        with self._signals_passed_on(), no_orphans():
            try:
                while True:
                    while len(self._running) < self.jobs and not self._stopping:
                        if (following := next(waiting, None)) is None:
                            break
                        self._start(*following)
                    if not self._running:
                        break
                    time.sleep(_POLL)
                    for process in [p for p in self._running if p.poll() is not None]:
                        if process.returncode in _TOLD_TO_STOP:
                            self._stop()
                        yield self._running.pop(process), process.returncode
            finally:
                for process in self._running:  # some are left where an error ends the loop
                    self._tell(process, signal.SIGTERM)
                for process in self._running:
                    process.wait()
        if self._stopping:
            raise KeyboardInterrupt

    def _start(self, name: T, arguments: Sequence[str], folder: Path) -> None:
        environment = None
        if self.jobs > 1:
            share = max(1, available_cores() // self.jobs)
            verb, *options = arguments
            arguments = [verb, "--evaluation.num_workers", str(share), *options]
            environment = {"OMP_NUM_THREADS": str(share)} | os.environ
        with open(folder / LOG_NAME, "ab") if self.jobs > 1 else nullcontext() as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "ldd", *arguments],
                # A session of its own: Ctrl-C in a terminal would otherwise reach the run twice, and stop it at once.
                start_new_session=True,
                stdout=output,
                stderr=output,
                env=environment,
            )
        self._running[process] = name
        if self._stopping:  # the signal came while it was started
            self._tell(process, signal.SIGTERM)

    def _stop(self) -> None:
        """Tell those that were not told yet: a second signal would interrupt what they save after the first."""
        self._stopping = True
        for process in self._running:
            self._tell(process, signal.SIGTERM)

    def _tell(self, process: subprocess.Popen[bytes], number: int, *, again: bool = False) -> None:
        if again or process not in self._told:
            self._told.add(process)
            process.send_signal(number)

    @contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        def forward(number: int, frame: FrameType | None) -> None:
            self._stopping = True
            for process in list(self._running):
                self._tell(process, signal.SIGTERM if number == signal.SIGHUP else number, again=True)

        before = {number: signal.signal(number, forward) for number in _CAUGHT}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
