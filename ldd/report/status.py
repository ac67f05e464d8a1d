"""Where runs, sweeps and federations stand: waiting, running, stopped, failed or finished, and what to type next."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from ldd.artefact.location import located
from ldd.artefact.manifest import NAME as MANIFEST, Manifest
from ldd.disk.files import read_yaml
from ldd.disk.locks import holder_of
from ldd.disk.stores import as_named
from ldd.errors import UserError
from ldd.evaluation.results.report import JSON_NAME
from ldd.runs import history
from ldd.runs.folder import CHECKPOINTS
from ldd.runtime.logs import RANKS
from ldd.sweeps.file import CELL_NAME, LOG_NAME

State = Literal["waiting", "running", "stopped", "failed", "finished"]

_CONFIG, _PLAN = "config.yaml", "federation.json"
_DEPTH = 5  # of folders below the one that is named
_MOST_BYTES = 2**16  # of a log
_SAID_BY_FAILURES = (": error: ", "a defect of the program")


@dataclass(frozen=True)
class Part:
    """One run, or what holds several: a sweep or a federation.

    Attributes:
        folder: of it.
        kind: "run", "cell" of a sweep, "job" of a federation, "prior", "sweep" or "federation".
        state: a run that was killed is stopped; one whose log ends with an error has failed.
        step: training steps that its newest checkpoint, or else its set, has; of a sweep or a federation, its finished
            parts. None before the first.
        steps: how many there are to be; None if unknown.
        note: who writes there, or why it failed.
        next: arguments of `latentdd` that go on with it, or show what it made; empty where nothing is to be typed.
    """

    folder: Path
    kind: str
    state: State
    step: int | None
    steps: int | None
    note: str = ""
    next: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        command = shlex.join(("latentdd", *self.next)) if self.next else None
        return {
            **vars(self),
            "folder": as_named(self.folder),
            "next": command,
            "logs": [*map(as_named, logs_of(self.folder))],
        }


def logs_of(folder: Path) -> list[Path]:
    """Return the logs in the folder of a part: of its ranks, and of the jobs and cells that ran beside others."""
    found = [folder / LOG_NAME, *(folder / RANKS).glob("*.log"), *(folder / "slurm").glob("*.log")]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log that fit in 64 KiB, without empty ones and without what would steer a terminal."""
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_BYTES))
        text = file.read(_MOST_BYTES).decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()][-count:] if count else []
    return ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines]


def parts_of(folder: Path | str) -> Iterator[Part]:
    """Yield the parts of what lies in a folder, and what holds them after them.

    Args:
        folder: of a run, a sweep or a federation, or one with such folders in it. Links in it are not followed.

    Raises:
        UserError: the folder is missing or holds none of these, or a federation is damaged.
    """
    folder = located(folder, "folder")
    if not folder.is_dir():
        raise UserError(
            f"folder ({folder}) does not exist; name the folder of a run, a sweep or a federation"
        )
    found = list(_within(folder, _DEPTH))
    if not found:
        raise UserError(
            f"folder ({folder}) holds no run, sweep or federation; name one that latentdd fit has written"
        )
    yield from found


def _within(folder: Path, depth: int) -> Iterator[Part]:
    if (folder / _PLAN).is_file():
        yield from _federation(folder)
        return
    if (folder / _CONFIG).is_file():
        yield _Run(folder).part()
        return
    cells = []
    if depth:
        for entry in sorted(os.scandir(folder), key=lambda each: each.name):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                for part in _within(Path(entry.path), depth - 1):
                    cells += [part] if part.kind == "cell" else []
                    yield part
    command = _recorded(folder, "sweep")
    if command:
        yield _whole(folder, "sweep", cells, command)


def _federation(folder: Path) -> Iterator[Part]:
    from ldd.federation.folder import Federation  # here: it imports the trainer, which no other folder needs

    federation, jobs = Federation.load(folder), []
    for name in federation.names:
        folder = federation.folder_of(name)
        part = (
            _Run(folder).part()
            if (folder / _CONFIG).is_file()
            else Part(folder, "job", "waiting", None, None)
        )
        if name not in federation.waiting:
            part = replace(part, state="finished", note="")
        elif part.state == "finished":  # the set is there, its job has not ended
            part = replace(part, state="stopped")
        jobs.append(replace(part, kind="job", next=()))
    yield from jobs
    whole = _whole(federation.folder, "federation", jobs, ("federate", "--out", str(federation.folder)))
    if whole.state == "finished" and not (federation.folder / "distilled" / MANIFEST).is_file():
        whole = replace(whole, state="stopped", next=("federate", "--out", str(federation.folder)))
    yield whole


def _whole(folder: Path, kind: str, parts: list[Part], again: tuple[str, ...]) -> Part:
    """Return the state of what holds parts: finished when all are, failed when one has and nobody works on it."""
    done = sum(part.state == "finished" for part in parts)
    holder = holder_of(folder)
    state: State = "finished" if parts and done == len(parts) else "stopped"
    if holder:
        state = "running"
    elif any(part.state == "failed" for part in parts):
        state = "failed"
    following = {"running": (), "finished": _report(folder)}.get(state, again)
    if kind == "sweep" and state == "finished":
        following = ()  # its table and its plot are there
    return Part(folder, kind, state, done, len(parts), holder or "", following)


class _Run:
    """A run's folder as it is found; nothing in it is trusted to be whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def part(self) -> Part:
        """Return what it says of the run."""
        holder, failure = holder_of(self._folder), self._failure
        state: State = (
            "running" if holder else "finished" if self._is_finished else "failed" if failure else "stopped"
        )
        note = {"running": holder, "failed": failure}.get(state) or ""
        is_cell = (self._folder / CELL_NAME).is_file()
        kind = "cell" if is_cell else "prior" if self._is_prior else "run"
        following = {"running": (), "finished": () if self._is_prior else _report(self._folder)}.get(
            state, self._again
        )
        return Part(self._folder, kind, state, self._step, self._steps, note, () if is_cell else following)

    @cached_property
    def _trainer(self) -> Mapping[str, Any]:
        with suppress(UserError):
            config = read_yaml(self._folder / _CONFIG, "restore it")
            if isinstance(config, dict) and isinstance(found := config.get("trainer"), dict):
                return found
        return {}

    @property
    def _steps(self) -> int | None:
        steps = self._trainer.get("max_steps")
        return steps if type(steps) is int and steps >= 0 else None

    @cached_property
    def _step(self) -> int | None:
        for name in CHECKPOINTS:
            with suppress(Exception):  # a damaged archive raises whatever the damaged field leads to
                path = self._folder / "checkpoints" / name
                return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
        with suppress(UserError):
            return Manifest.read(self._folder / "distilled" / MANIFEST).step
        return None

    @property
    def _is_prior(self) -> bool:
        return bool(_recorded(self._folder, "prior"))

    @property
    def _is_finished(self) -> bool:
        if self._is_prior:
            return (self._folder / "prior" / "prior.json").is_file()
        trained = self._step is not None and self._steps is not None and self._step >= self._steps
        made = (self._folder / "distilled" / MANIFEST).is_file()
        judged = self._trainer.get("limit_val_batches") == 0 or (self._folder / JSON_NAME).is_file()
        return trained and made and judged

    @cached_property
    def _failure(self) -> str:
        """The error with which the log of a run that shared its terminal ends."""
        with suppress(OSError):
            last = "".join(last_lines(self._folder / LOG_NAME, 1))
            if any(sign in last for sign in _SAID_BY_FAILURES):
                return last
        return ""

    @property
    def _again(self) -> tuple[str, ...]:
        verb = ("prior", "train") if self._is_prior else ("fit",)
        where = ("--config", str(self._folder / _CONFIG), "--trainer.default_root_dir", str(self._folder))
        return (*verb, *where, "--ckpt_path", "auto")


def _report(folder: Path) -> tuple[str, ...]:
    return ("report", str(folder), "--out", str(folder / "report.html"))


def _recorded(folder: Path, verb: str) -> tuple[str, ...]:
    """Arguments of the newest command of a verb that is recorded in a folder; empty without one."""
    with suppress(UserError):
        commands = [each for each in history.recorded_commands(folder) if each.verb == verb]
        return tuple(shlex.split(commands[-1].command)[1:]) if commands else ()
    return ()
