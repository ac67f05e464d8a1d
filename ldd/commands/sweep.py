"""`latentdd sweep`: one run for each combination of named settings and each seed, then a table and a plot."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import rich
import yaml
from jsonargparse import ArgumentParser

from ldd.commands.sweep_results import Results
from ldd.errors import UserError
from ldd.files import write_json

_KEYS = {"base", "axes", "seeds"}
_CELL_NAME = "cell.json"
_STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        names: of its setting on each axis.
        seed: of the run.
        folder: its run folder.
        arguments: of `latentdd fit`, without seed and folder.
    """

    names: tuple[str, ...]
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether a sweep ran it to its end, evaluation included.

        Raises:
            UserError: its folder holds a cell of other settings.
        """
        path = self.folder / _CELL_NAME
        if not path.is_file():
            return False
        record = json.loads(path.read_text())
        if record["arguments"] != list(self.arguments):
            raise UserError(
                f"{self.folder} was run with other settings ({shlex.join(record['arguments'])}); choose another --out, "
                "or remove that folder"
            )
        return bool(record["finished"])

    def note(self, *, finished: bool) -> None:
        """Write what was run here."""
        record = {"arguments": list(self.arguments), "seed": self.seed, "finished": finished}
        write_json(self.folder / _CELL_NAME, record)

    def command(self) -> list[str]:
        """Arguments of `latentdd`: a new run, or the continuation of one that was stopped."""
        resume = (self.folder / "checkpoints" / "last.ckpt").is_file()
        folder = ("--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.folder))
        how = ("--ckpt_path", "last") if resume else ("--overwrite", "true")
        return ["fit", *self.arguments, *folder, *how]


@dataclass(frozen=True)
class Sweep:
    """A sweep file: `base` (a recipe, or a list of files that go one over the other), `axes` and `seeds`.

    Every axis maps names to settings, and a setting maps options of `latentdd fit` to values, in order; a value that
    ends in `.yaml` is a file, like `base` relative to the sweep file.

    Attributes:
        bases: recipes.
        axes: axis -> name -> options of `latentdd fit` as text.
        seeds: of the runs.
    """

    bases: tuple[str, ...]
    axes: Mapping[str, Mapping[str, tuple[str, ...]]]
    seeds: tuple[int, ...]

    @classmethod
    def load(cls, path: Path | str) -> "Sweep":
        """Read a sweep file.

        Raises:
            UserError: it is missing, or not a sweep.
        """
        folder = Path(path).parent
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"--config ({path}) cannot be read: {error}") from error
        if (
            not isinstance(content, dict)
            or not content.keys() <= _KEYS
            or not {"base", "axes"} <= content.keys()
        ):
            raise UserError(f"--config ({path}) is no sweep; it needs base and axes, and may have seeds")
        bases = content["base"] if isinstance(content["base"], list) else [content["base"]]
        seeds = content.get("seeds", [0])
        axes = content["axes"]
        if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
            raise UserError(f"{path}: seeds ({seeds}) must be a list of whole numbers")
        if (
            not isinstance(axes, dict)
            or not axes
            or not all(isinstance(a, dict) and a for a in axes.values())
        ):
            raise UserError(f"{path}: axes must map each axis to names and their settings")
        return cls(
            tuple(_file(folder, base) for base in bases),
            {
                str(axis): {
                    str(name): _options(folder, f"{axis}.{name}", found) for name, found in names.items()
                }
                for axis, names in axes.items()
            },
            tuple(seeds),
        )

    def cells(self, out: Path | str, extra: Sequence[str] = ()) -> list[Cell]:
        """All combinations.

        Args:
            out: folder of the sweep; a cell's is `<out>/<names, joined by _>/seed-<seed>`.
            extra: options of `latentdd fit` for all of them, before those of the axes.
        """
        base = [part for path in self.bases for part in ("--config", path)]
        return [
            Cell(
                names := tuple(name for name, _ in chosen),
                seed,
                Path(out) / "_".join(names) / f"seed-{seed}",
                (*base, *extra, *(option for _, options in chosen for option in options)),
            )
            for chosen in product(*(names.items() for names in self.axes.values()))
            for seed in self.seeds
        ]


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
        rich.print(f"[bold]cell {number} of {len(waiting)}:[/bold] {', '.join(cell.names)}, seed {cell.seed}")
        cell.note(finished=False)
        code = run_fit(cell.command())
        if code < 0 or code in _STOPPED:
            raise KeyboardInterrupt
        if code or not (cell.folder / "evaluation.json").is_file():
            failed.append(cell.folder)
        else:
            cell.note(finished=True)
    done = [(cell.names, cell.seed, cell.folder) for cell in cells if cell.folder not in failed]
    results = Results.collect(tuple(loaded.axes), done)
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


def _file(folder: Path, name: object) -> str:
    path = folder / str(name)
    if not path.is_file():
        raise UserError(f"{path} does not exist; name files relative to the sweep file")
    return str(path)


def _options(folder: Path, where: str, found: object) -> tuple[str, ...]:
    if "_" in where.split(".", 1)[1] or "/" in where:
        raise UserError(f"axes.{where}: a name may hold neither _ nor /, since folders are called by it")
    if not isinstance(found, dict):
        raise UserError(f"axes.{where} ({found}) must map options of latentdd fit to values")
    return tuple(part for key, value in found.items() for part in (f"--{key}", _as_text(folder, value)))


def _as_text(folder: Path, value: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    if isinstance(value, str):
        return _file(folder, value) if value.endswith(".yaml") else value
    return json.dumps(value)


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
