"""The file that names the settings of a sweep, and its cells: a run for each combination and each seed."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldd.disk.files import read_json, read_yaml, write_json
from ldd.disk.records import read_record, to_json
from ldd.disk.shipped import shipped_file
from ldd.errors import UserError
from ldd.evaluation.results.report import JSON_NAME
from ldd.runs.folder import fit_or_resume

if TYPE_CHECKING:
    from ldd.runs.recipe import Recipe

_NEEDED = {"base", "axes"}
_KEYS = _NEEDED | {"options", "panels", "references", "seeds"}
# Paths of protocols: these are compared by what they hold.
_WITHOUT_EFFECT = ("evaluation.num_workers:", "evaluation.protocol:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
CELL_NAME = "cell.json"
"""In the folder of a cell: which settings were run there, and whether to the end."""

LOG_NAME = "output.log"
"""Output of a run that shares the terminal with others."""


@dataclass(frozen=True)
class _Record:
    """What `cell.json` holds."""

    arguments: tuple[str, ...]
    seed: int
    finished: bool
    content: str | None = None
    """Hash over the arguments with what their files held; None in records that are older."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        names: of its setting on each axis; of a reference its own name, then empty ones.
        seed: of the run.
        folder: its run folder.
        arguments: of `latentdd fit`, without seed and folder.
    """

    names: tuple[str, ...]
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        """Return names and seed."""
        return f"{', '.join(filter(None, self.names))}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether a sweep ran it to its end, evaluation included; raises UserError if it ran other settings.

        Settings are those that the arguments and the files that they name come to, however these are spelt.
        """
        record = self._noted()
        if record is None:
            return False
        # A run that goes on refuses by itself what its checkpoint cannot take, and may correct the rest.
        as_told = record.arguments == self.arguments and (record.content is None or not record.finished)
        if not as_told and record.content != _content(self.arguments) and (changed := self._changed(record)):
            raise UserError(
                f"{self.folder} was run with other settings ({changed}); choose another --out, or remove that folder"
            )
        return record.finished

    def _noted(self) -> _Record | None:
        path = self.folder / CELL_NAME
        return read_record(path, _Record, f"remove {self.folder}") if path.is_file() else None

    def _changed(self, record: _Record) -> str:
        """Return in words which settings of what was run here are others now; empty where none is."""
        config, evaluation = self.folder / "config.yaml", self.folder / JSON_NAME
        if not config.is_file():
            edited = record.arguments == self.arguments
            return "files that it names were edited since" if edited else shlex.join(record.arguments)
        from ldd.students.protocol import Protocol  # here: it brings all networks, and few sweeps come here

        recipe = self.recipe()
        of_sets, others = recipe.changes(config)
        changed = of_sets + [
            text
            for text in others
            if text.startswith(("evaluation.", "trainer.limit_val_batches:"))
            and not text.startswith(_WITHOUT_EFFECT)
        ]
        if evaluation.is_file():
            protocol = Protocol.load(recipe.resolved["evaluation"]["protocol"])
            now, then = {"id": protocol.id, "hash": protocol.hash}, read_json(evaluation).get("protocol")
            changed += [f"evaluation.protocol: {then} -> {now}"] * (now != then)
        return "; ".join(changed[:5])

    def recipe(self) -> "Recipe":
        """Return its settings, resolved; raises UserError for those that no run takes."""
        from ldd.runs.recipe import Recipe  # here: most sweeps that are planned alone need not wait for it

        try:
            told = (*self.arguments, "--seed_everything", str(self.seed))
            return Recipe(told, self.folder, program=f"latentdd sweep: {self}")
        except SystemExit as stop:  # the parser has said why
            raise UserError(
                f"cell {self} cannot be run (see above); correct the sweep file, or what follows --"
            ) from stop

    def note(self, *, finished: bool) -> None:
        """Write down which settings are run here, or that they were run to the end."""
        begun = self._noted() if finished else None
        # Files may be edited while it runs: what they held at its start is what counts.
        content = _content(self.arguments) if begun is None else begun.content
        write_json(self.folder / CELL_NAME, to_json(_Record(self.arguments, self.seed, finished, content)))

    def command(self) -> list[str]:
        """Return the arguments of `latentdd` that start this run, or continue it where it was stopped."""
        return fit_or_resume(self.arguments, self.seed, self.folder)


@dataclass(frozen=True)
class Sweep:
    """A sweep file: `base` (a recipe, or a list of files that go one over the other), `axes`, and optional keys.

    Every axis maps names to settings, and a setting maps options of `latentdd fit` to values, in order; a value that
    ends in `.yaml` is a file, like `base` relative to the sweep file. `options` is such a setting for all runs, and
    `references` are settings that run in addition to the combinations of the axes, each once for every seed. `panels`
    names an axis whose settings are not to be compared (budgets, data): the plot has a panel for each.

    Attributes:
        bases: recipes.
        axes: axis -> name -> options of `latentdd fit` as text.
        seeds: of the runs.
        options: of all runs.
        references: name -> options.
        panels: an axis, or None.
    """

    bases: tuple[str, ...]
    axes: Mapping[str, Mapping[str, tuple[str, ...]]]
    seeds: tuple[int, ...]
    options: tuple[str, ...] = ()
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    panels: str | None = None

    @classmethod
    def load(cls, path: Path | str) -> "Sweep":
        """Read a sweep file, or raise UserError if it is missing or is not a sweep."""
        folder, content = Path(path).parent, read_yaml(path, "name a sweep file in --config")
        if not isinstance(content, dict) or not _NEEDED <= content.keys() <= _KEYS:
            raise UserError(
                f"--config ({path}) is not a sweep; it needs base and axes, and may have options, panels, references, "
                "and seeds"
            )
        bases = content["base"] if isinstance(content["base"], list) else [content["base"]]
        seeds = content.get("seeds", [0])
        axes, references = content["axes"], content.get("references", {})
        if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
            raise UserError(f"{path}: seeds ({seeds}) must be a list of whole numbers")
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise UserError(
                f"{path}: seeds ({seeds}) name {twice[0]} twice, which would be two runs in one folder"
            )
        named = list(axes.values()) if isinstance(axes, dict) else []
        if not named or not all(named) or not all(isinstance(group, dict) for group in [*named, references]):
            raise UserError(
                f"{path}: axes must map each axis to names and their settings, references likewise"
            )
        if clash := {name for names in axes.values() for name in map(str, names)} & set(map(str, references)):
            raise UserError(
                f"{path}: {sorted(clash)[0]!r} is the name of a reference and on an axis; rename one"
            )
        panels = content.get("panels")
        if panels is not None and (panels not in axes or len(axes) < 2 or references):
            raise UserError(
                f"{path}: panels ({panels}) must be one of several axes ({', '.join(map(str, axes))}), in a sweep "
                "without references"
            )
        return cls(
            tuple(_file(folder, base) for base in bases),
            {str(axis): _settings(folder, f"axes.{axis}", names) for axis, names in axes.items()},
            tuple(seeds),
            _options(folder, "options", content.get("options", {})),
            _settings(folder, "references", references),
            panels,
        )

    def cells(self, out: Path | str, extra: Sequence[str] = ()) -> list[Cell]:
        """Return all combinations, then the references, in folders `<out>/<names, joined by _>/seed-<seed>`.

        `extra` are options of `latentdd fit` for all cells: after the file's options, before the axes'.
        """
        base = [part for path in self.bases for part in ("--config", path)]
        runs = [
            (tuple(name for name, _ in chosen), tuple(option for _, options in chosen for option in options))
            for chosen in product(*(names.items() for names in self.axes.values()))
        ]
        runs += [((name,), options) for name, options in self.references.items()]
        return [
            Cell(
                names + ("",) * (len(self.axes) - len(names)),
                seed,
                Path(out) / "_".join(names) / f"seed-{seed}",
                (*base, *self.options, *extra, *options),
            )
            for names, options in runs
            for seed in self.seeds
        ]


def _content(arguments: Sequence[str]) -> str:
    """Return a hash over arguments, with what the files that they name hold in the place of these names."""
    words = [part for word in arguments for part in (word.split("=", 1) if word[:2] == "--" else (word,))]
    held = json.dumps(_held(words, Path()), sort_keys=True, default=str)
    return hashlib.sha256(held.encode()).hexdigest()[:16]


def _held(value: Any, folder: Path, above: tuple[Path, ...] = ()) -> Any:  # noqa: ANN401 - whatever YAML holds
    if isinstance(value, dict):
        return {str(key): _held(part, folder, above) for key, part in value.items()}
    if isinstance(value, list):
        return [_held(part, folder, above) for part in value]
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        path = next(filter(os.path.isfile, (folder / value, Path(value))), None)
        if path is not None and path not in above:
            return _held(read_yaml(path), path.parent, (*above, path))
    return value


def _file(folder: Path, name: object) -> str:
    path = folder / str(name)
    if os.path.isfile(path):  # False, not an error, for names that no file system takes
        return str(path)
    if (shipped := shipped_file(str(name), "base")) is not None:
        return str(shipped)
    raise UserError(
        f"{path} does not exist; name files relative to the sweep file, or a recipe of latentdd configs"
    )


def _settings(folder: Path, where: str, found: Mapping[object, object]) -> dict[str, tuple[str, ...]]:
    names = [str(name) for name in found]
    for name in names:
        if not name or name.startswith(".") or _CONTROL.search(name) or {"_", "/", "\\"} & {*name}:
            raise UserError(
                f"{where}.{name!r}: a name may hold neither _ nor / nor control characters, nor start with a dot, "
                "since folders are called by it"
            )
        if names.count(name) > 1:
            raise UserError(f"{where}.{name} is there twice, in two spellings; rename one")
    return {str(name): _options(folder, f"{where}.{name}", options) for name, options in found.items()}


def _options(folder: Path, where: str, found: object) -> tuple[str, ...]:
    if not isinstance(found, dict):
        raise UserError(f"{where} ({found}) must map options of latentdd fit to values")
    return tuple(part for key, value in found.items() for part in (f"--{key}", _as_text(folder, value)))


def _as_text(folder: Path, value: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    if isinstance(value, str):
        return _file(folder, value) if value.endswith(".yaml") else value
    return json.dumps(value, ensure_ascii=False)  # YAML reads a surrogate pair as two characters
