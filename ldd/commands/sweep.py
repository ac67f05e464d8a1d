"""`latentdd sweep`: one run for each combination of named settings and each seed, then a table and a plot."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import rich
from jsonargparse import ArgumentParser

from ldd.errors import UserError
from ldd.sweeps.file import Cell, Sweep
from ldd.sweeps.results import Results
from ldd.sweeps.running import LOG_NAME, TOLD_TO_STOP, Runs

_LAST_LINES = 15  # of a cell that failed beside others


def sweep(config: str, out: str, jobs: int = 1, dry_run: bool = False, extra: Sequence[str] = ()) -> None:
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

    Raises:
        UserError: a bad sweep file, a folder of another sweep, or cells that failed (after all others were run).
        KeyboardInterrupt: a cell was told to stop, and all have.
    """
    if jobs < 1:
        raise UserError(f"jobs ({jobs}) must be at least 1: so many cells run at a time")
    loaded = Sweep.load(config)
    cells = loaded.cells(out, extra)
    waiting = [cell for cell in cells if not cell.finished]
    if dry_run:
        print("\n".join(shlex.join(["latentdd", *cell.command()]) for cell in waiting))
        return
    failed = []
    runs: Runs[Cell] = Runs(jobs)
    with closing(runs(_announced(waiting))) as ended:
        for cell, code in ended:
            complete = not code and (cell.folder / "evaluation.json").is_file()
            if complete:
                cell.note(finished=True)
            elif code not in TOLD_TO_STOP:
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


def _announced(cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[str], Path]]:
    for number, cell in enumerate(cells, 1):
        rich.print(f"[bold]cell {number} of {len(cells)}:[/bold] {cell}")
        cell.note(finished=False)
        yield cell, cell.command(), cell.folder


def _tell_the_end(cell: Cell, complete: bool) -> None:
    log = cell.folder / LOG_NAME
    print(f"{cell}: {'finished' if complete else 'not finished'}; what it said is in {log}")
    if not complete:
        print("\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:]), file=sys.stderr)


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb; what follows `--` goes to every cell."""
    own, extra = list(arguments), list[str]()
    if "--" in own:
        split = own.index("--")
        own, extra = own[:split], own[split + 1 :]
    parser = ArgumentParser(
        prog=f"latentdd {verb}",
        description=(sweep.__doc__ or "").partition("\n\n    Args")[0],
        usage="latentdd sweep --config SWEEP.yaml --out DIR [--jobs N] [--dry_run true] [-- options of latentdd fit]",
    )
    parser.add_function_arguments(sweep, skip={"extra"}, as_positional=False)
    sweep(**vars(parser.parse_args(own)), extra=extra)
