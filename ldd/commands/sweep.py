"""`latentdd sweep`: one run for each combination of named settings and each seed, then a table and a plot."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import rich
from jsonargparse import ArgumentParser

from ldd.commands.sweep_file import Sweep
from ldd.commands.sweep_results import Results
from ldd.errors import UserError

_STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1}


def sweep(config: str, out: str, dry_run: bool = False, extra: Sequence[str] = ()) -> None:
    """Run every cell that is not finished, one after the other, and write sweep.csv and sweep.png.

    The same command continues a sweep that was stopped: finished cells are skipped, and the one that was running goes
    on from its last checkpoint. Options of `latentdd fit` for all cells follow `--`:
    `latentdd sweep --config configs/ablations/skip.yaml --out runs/skip -- --trainer.max_steps 500`.

    Args:
        config: sweep file.
        out: folder of the sweep.
        dry_run: print the commands of the cells that are not finished and run none.
        extra: options of `latentdd fit` for all cells.

    Raises:
        UserError: a bad sweep file, a folder of another sweep, or cells that failed (after all others were run).
        KeyboardInterrupt: a cell was told to stop, and has.
    """
    loaded = Sweep.load(config)
    cells = loaded.cells(out, extra)
    waiting = [cell for cell in cells if not cell.finished]
    if dry_run:
        print("\n".join(shlex.join(["latentdd", *cell.command()]) for cell in waiting))
        return
    failed = []
    for number, cell in enumerate(waiting, 1):
        rich.print(
            f"[bold]cell {number} of {len(waiting)}:[/bold] {', '.join(filter(None, cell.names))}, seed {cell.seed}"
        )
        cell.note(finished=False)
        code = run_fit(cell.command())
        if code < 0 or code in _STOPPED:
            raise KeyboardInterrupt
        if code or not (cell.folder / "evaluation.json").is_file():
            failed.append(cell.folder)
        else:
            cell.note(finished=True)
    done = [(cell.names, cell.seed, cell.folder) for cell in cells if cell.folder not in failed]
    results = Results.collect(tuple(loaded.axes), done, tuple(loaded.references))
    if results.rows:
        results.write(out)
        rich.print(results.table())
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed or left no evaluation.json: "
            f"{', '.join(map(str, failed))}; see their messages above; the same command tries them again"
        )


def run_fit(arguments: Sequence[str]) -> int:
    """Exit code of `latentdd ARGUMENTS` in a process of its own, which frees its memory whatever happens.

    Signals that would end this process are passed on and waited for, so that the run keeps its last step.
    """
    # A session of its own: Ctrl-C in a terminal would otherwise reach the run twice, and stop it at once.
    process = subprocess.Popen([sys.executable, "-m", "ldd", *arguments], start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in caught}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb; what follows `--` goes to every cell."""
    own, extra = list(arguments), list[str]()
    if "--" in own:
        split = own.index("--")
        own, extra = own[:split], own[split + 1 :]
    parser = ArgumentParser(
        prog=f"latentdd {verb}",
        description=(sweep.__doc__ or "").partition("\n\n    Args")[0],
        usage="latentdd sweep --config SWEEP.yaml --out DIR [--dry_run true] [-- options of latentdd fit]",
    )
    parser.add_function_arguments(sweep, skip={"extra"}, as_positional=False)
    sweep(**vars(parser.parse_args(own)), extra=extra)
