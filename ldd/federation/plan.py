"""What a federation consists of: the recipe as resolved, the classes of each sub-task, and one job for each."""

import json
import shlex
import shutil
import sys
import traceback
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ldd.callbacks.experts import needs_of
from ldd.disk.files import check_writable, holds_files, read_json, write_json
from ldd.errors import UserError
from ldd.federation import ClassPartition
from ldd.federation.jobs import Job
from ldd.federation.partition import check_blocks
from ldd.runs.command_line import distil
from ldd.runs.folder import fit_or_resume
from ldd.runs.recipe import Recipe
from ldd.runs.verb import run_verb
from ldd.runtime.ledger import PRUNE, Stages, total

PLAN, CONFIG, PARTITION = "federation.json", "config.yaml", "partition.json"
EXPERTS = "experts"
"""Name of the job that records the experts of the whole task, which label the merged set."""

_DONE = "finished"  # an empty file in the folder of a job that ran to its end

_OWN = (
    *("subtasks", "slurm", "distilled", "evaluated", "evaluation.csv", "evaluation.json"),
    *(PLAN, CONFIG, PARTITION),
)


@dataclass(frozen=True)
class Plan:
    """A federation in a folder.

    Attributes:
        folder: absolute; it becomes a run folder.
        partition: classes of each sub-task.
        seed: of sub-task 0; sub-task k has seed + k.
        labelled: whether experts of the whole task label the merged set.
        directory: in which it was planned, and all jobs run: paths of the recipe are relative to it.
    """

    folder: Path
    partition: ClassPartition
    seed: int
    labelled: bool
    directory: str

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """The plan in a folder.

        Raises:
            UserError: there is none, or it is damaged.
        """
        folder = folder.resolve()
        if not (folder / PLAN).is_file():
            raise UserError(f"--out ({folder}) holds no federation; start one with --config and --subtasks")
        try:
            content = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            partition = ClassPartition.load(folder / PARTITION)
            return cls(
                folder, partition, int(content["seed"]), bool(content["labelled"]), str(content["directory"])
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / PLAN} is damaged ({error}); start anew with --overwrite") from error

    @classmethod
    def make(cls, recipe: Recipe, partition: ClassPartition, folder: Path) -> "Plan":
        """Write the plan of a new federation, the recipe with all its settings beside it.

        Raises:
            UserError: the folder cannot be written.
        """
        plan = cls(folder.resolve(), partition, recipe.seed, recipe.model.labels is not None, str(Path.cwd()))
        check_writable(plan.folder)
        recipe.write(plan.folder / CONFIG)
        partition.save(plan.folder / PARTITION)
        facts = {"seed": plan.seed, "labelled": plan.labelled, "directory": plan.directory}
        write_json(plan.folder / PLAN, facts)  # last: what has it is complete
        return plan

    def adopt(self, recipe: Recipe) -> None:
        """Go on with the settings of a recipe that `find` has let pass, and name those that are new.

        Raises:
            UserError: the folder cannot be written.
        """
        others = recipe.changes(self.folder / CONFIG).others
        if others:
            recipe.write(self.folder / CONFIG)
            print(f"settings from now on: {'; '.join(others)}")

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe for all classes."""
        return Recipe(["--config", str(self.folder / CONFIG)], self.folder)

    @property
    def names(self) -> list[str]:
        """Of all jobs: the numbers of the sub-tasks, and that of the experts of the whole task."""
        numbers = [str(number) for number in range(len(self.partition.blocks))]
        return numbers + [EXPERTS] * self.labelled

    def subtask(self, number: int) -> Path:
        """Run folder of a sub-task."""
        return self.folder / "subtasks" / str(number)

    def command(self, number: int) -> list[str]:
        """Arguments of `latentdd` for a sub-task: its classes alone, with hard labels, not evaluated."""
        arguments = (
            "--config",
            str(self.folder / CONFIG),
            "--data.subset",
            json.dumps(self.partition.blocks[number]),
            "--model.labels",
            "null",
            "--trainer.limit_val_batches",
            "0",
        )
        return fit_or_resume(arguments, self.seed + number, self.subtask(number))

    def job(self, name: str) -> Job:
        """What an engine runs for it."""
        arguments = ("federate", "--out", str(self.folder), "--only", name, "--end_with_parent", "true")
        log = self.folder / "subtasks" / name / "output.log"
        return Job(name, arguments, Path(self.directory), log)

    def is_finished(self, name: str) -> bool:
        """Whether it ran to its end."""
        return (self.folder / "subtasks" / name / _DONE).is_file()

    def run(self, name: str) -> int:
        """Run one job in this process, or continue it; its exit code.

        Raises:
            UserError: no job of this name, or experts that cannot be recorded.
            KeyboardInterrupt: it was told to stop, and has.
        """
        if name not in self.names:
            raise UserError(
                f"--only ({name}) is no job of this federation; choose from {', '.join(self.names)}"
            )
        if self.is_finished(name):
            return 0
        folder = self.folder / "subtasks" / name
        folder.mkdir(parents=True, exist_ok=True)
        code = self._record() if name == EXPERTS else _run_here(self.command(int(name)))
        if code == 0 and name != EXPERTS and not (folder / "distilled" / "manifest.json").is_file():
            code = 1
        if code == 0:
            (folder / _DONE).touch()
        return code

    def _record(self) -> int:
        """Record the experts that label, or see that they are there."""
        model, data = self.recipe.model, self.recipe.data
        assert model.labels is not None
        data.setup()
        if self.recipe.experts.num_experts:
            epochs = max([need.epochs for need in needs_of(model)], default=1)
            self.recipe.experts.record(model.labels.experts(), data, epochs=epochs, all_experts=False)
        model.labels.check(data)
        if data.pruning_cost is not None:
            pruning = {PRUNE: data.pruning_cost}
            write_json(
                self._cost, total([pruning, self.cost_of_recording()] if self._cost.is_file() else [pruning])
            )
        return 0

    def cost_of_recording(self) -> Stages:
        """What the job of the experts took beside them, whose recording keeps its own cost: scoring the real images.

        Raises:
            UserError: a damaged file.
        """
        costs: Stages = read_json(self._cost, "delete it") if self._cost.is_file() else {}
        return costs

    @property
    def _cost(self) -> Path:
        return self.folder / "subtasks" / EXPERTS / "cost.json"


def _run_here(arguments: list[str]) -> int:
    """Exit code of `latentdd fit ...` in this process; what is raised is printed and becomes 1.

    Raises:
        KeyboardInterrupt: it was told to stop, and has.
    """
    before = sys.argv
    try:
        code = run_verb(arguments[0], distil, arguments[1:])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception:
        print(f"latentdd {shlex.join(arguments)}", file=sys.stderr)
        traceback.print_exc()
        code = 1
    finally:
        sys.argv = before
    if code > 128:
        raise KeyboardInterrupt
    return code


def clear(folder: Path) -> None:
    """Remove a federation, and only what belongs to one.

    Raises:
        UserError: the folder holds something else.
    """
    if holds_files(folder) and not (folder / PLAN).is_file():
        raise UserError(f"--out ({folder}) holds files that are no federation; choose another folder")
    for path in (folder / name for name in _OWN):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def find(recipe: Recipe, folder: Path) -> Plan | None:
    """The plan that a folder holds, if it is one of these settings; None where there is none.

    Args:
        recipe: resolved.
        folder: of the federation.

    Raises:
        UserError: the folder holds a federation whose sub-tasks have other settings or other classes, or files of
            another kind; other paths from another directory than that of the plan.
    """
    if not (folder / PLAN).is_file():
        if holds_files(folder):
            raise UserError(f"--out ({folder}) holds files that are no federation; choose another folder")
        return None
    plan = Plan.load(folder)
    changes = recipe.changes(folder / CONFIG)
    if changes.of_sets:
        raise UserError(
            f"--out ({folder}) holds a federation of other settings ({'; '.join(changes.of_sets[:5])}); choose another "
            "folder, or replace it with --overwrite"
        )
    if changes.others:
        try:
            check_blocks(plan.partition.blocks, recipe.data.classes)
        except UserError as error:
            raise UserError(
                f"--out ({folder}): data.root ({recipe.config.data.root}) has other classes than its sub-tasks "
                f"({error}); give a root with the same, or choose another folder"
            ) from error
        if Path.cwd() != Path(plan.directory):
            raise UserError(
                f"--out ({folder}) was planned in {plan.directory}, to which all its paths are relative; change "
                f"settings ({'; '.join(changes.others[:5])}) from there"
            )
    return plan
