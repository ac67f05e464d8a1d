"""A federation in its folder: the recipe as resolved, the classes of each sub-task, and the state of each job."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Self

from ldd.artefact.classes import of_classes
from ldd.artefact.manifest import NAME, Manifest, find_artefact
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.data.fingerprints import differences
from ldd.data.sources import Source
from ldd.data.subsets import Subset
from ldd.disk.files import check_writable, holds_files, read_json, remove, write_json
from ldd.disk.records import read_record, to_json
from ldd.errors import UserError
from ldd.federation.jobs import DONE, Job
from ldd.federation.merging import after_joint_steps, merge
from ldd.federation.partition import ClassPartition
from ldd.federation.ray_worker import TOKEN
from ldd.runs import history
from ldd.runs.command_line import fit_or_validate
from ldd.runs.folder import fit_or_resume
from ldd.runs.recipe import Recipe
from ldd.runs.verb import run_verb
from ldd.runtime.ledger import EXPERTS as STAGE_OF_EXPERTS, PRUNE, Stages, total

CONFIG = "config.yaml"
EXPERTS = "experts"
"""Name of the job that records the experts of the whole task, which label the merged set."""

JOINT = "joint"
"""Name of the job that goes on with all sub-tasks' codes together, once all other jobs have ended."""

_START = "start"  # in that job's folder: the merged set from which it starts

_PLAN, _PARTITION = "federation.json", "partition.json"
_OWN = (
    *("subtasks", "slurm", "distilled", "evaluated", "evaluation.csv", "evaluation.json"),
    *(_PLAN, CONFIG, _PARTITION, history.NAME, TOKEN),
)


@dataclass(frozen=True)
class _Plan:
    """What `federation.json` holds."""

    seed: int
    labelled: bool
    directory: str
    joint_steps: int | None = None


@dataclass(frozen=True)
class Federation:
    """A federation in a folder.

    Attributes:
        folder: absolute; it becomes a run folder.
        partition: classes of each sub-task.
        seed: of sub-task 0; sub-task k has seed + k.
        labelled: whether experts of the whole task label the merged set.
        directory: in which it was planned, and all jobs run: paths of the recipe are relative to it.
        joint_steps: training steps of all sub-tasks' codes together, after the merge.
    """

    folder: Path
    partition: ClassPartition
    seed: int
    labelled: bool
    directory: str
    joint_steps: int = 0

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the federation in a folder, or raise UserError if there is none, or a damaged one."""
        folder = folder.resolve()
        path = folder / _PLAN
        if not path.is_file():
            raise UserError(f"--out ({folder}) holds no federation; start one with --config and --subtasks")
        plan = read_record(path, _Plan, "start anew with --overwrite")
        partition = ClassPartition.load(folder / _PARTITION)
        return cls(folder, partition, plan.seed, plan.labelled, plan.directory, plan.joint_steps or 0)

    @classmethod
    def make(cls, recipe: Recipe, partition: ClassPartition, folder: Path, joint_steps: int = 0) -> Self:
        """Write a new federation into a folder, with all settings of the recipe."""
        labelled = recipe.model.labels is not None
        made = cls(folder.resolve(), partition, recipe.seed, labelled, str(Path.cwd()), joint_steps)
        check_writable(made.folder)
        recipe.write(made.folder / CONFIG)
        partition.save(made.folder / _PARTITION)
        made._write_plan()  # last: a folder that has it is complete
        return made

    def _write_plan(self) -> None:
        plan = _Plan(self.seed, self.labelled, self.directory, self.joint_steps or None)
        write_json(self.folder / _PLAN, to_json(plan))

    def with_joint_steps(self, joint_steps: int) -> Self:
        """Return the federation with steps of all codes together; its sub-tasks stay as they are."""
        joined = replace(self, joint_steps=joint_steps)
        joined._write_plan()
        return joined

    def adopt(self, recipe: Recipe) -> None:
        """Take over the settings of a recipe that `find` has accepted, and print those that are new."""
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
        """Names of all jobs: the numbers of the sub-tasks, `experts` where those label the merged set, `joint`."""
        numbers = [str(number) for number in range(len(self.partition.blocks))]
        return numbers + [EXPERTS] * self.labelled + [JOINT] * bool(self.joint_steps)

    @property
    def waiting(self) -> list[str]:
        """Names of the jobs that have not run to their end."""
        return [name for name in self.names if not (self.folder_of(name) / DONE).is_file()]

    def folder_of(self, name: str | int) -> Path:
        """Return the folder of a job; a sub-task has a run folder."""
        return self.folder / "subtasks" / str(name)

    def arguments(self, name: str) -> list[str]:
        """Return the arguments of `latentdd` for a job that is a run, with hard labels and not evaluated.

        A sub-task has its own classes and those that it learns besides, the joint job all of them.
        """
        options = ["--config", str(self.folder / CONFIG)]
        if name == JOINT:
            start = {"class_path": "ldd.initializers.StoredCodes", "init_args": {"path": str(self._start)}}
            options += ["--model.initializer", json.dumps(start)]
            options += ["--trainer.max_steps", str(self.joint_steps)]
        else:
            learned = self.partition.learned(int(name))
            options += ["--data.subset", json.dumps(learned, ensure_ascii=False)]
        options += ["--model.labels", "null", "--trainer.limit_val_batches", "0"]
        return fit_or_resume(options, self.seed + (0 if name == JOINT else int(name)), self.folder_of(name))

    def job(self, name: str) -> Job:
        """Return what an engine runs for a job."""
        arguments = ("federate", "--out", str(self.folder), "--only", name, "--end_with_parent", "true")
        results = [self.folder_of(name)]
        if name == EXPERTS and self.recipe.model.labels is not None:
            results += [Path(need.trajectories).expanduser() for need in self.recipe.model.labels.experts()]
        return Job(name, arguments, Path(self.directory), results[0] / "output.log", tuple(results))

    @property
    def _start(self) -> Path:
        return self.folder_of(JOINT) / _START

    def merged(self) -> DistilledSet:
        """Return the sets of the sub-tasks as one, with what the joint steps have made of it where there are any."""
        data, recipe = self.recipe.data, self.recipe
        if self.joint_steps and (self.folder_of(JOINT) / DONE).is_file():
            start, tuned = DistilledSet.load(self._start), DistilledSet.load(self.folder_of(JOINT))
            elsewhere = [STAGE_OF_EXPERTS] if self.labelled else []  # charged by `finish`
            return after_joint_steps(start, tuned, elsewhere)
        parts = [
            of_classes(DistilledSet.load(self.folder_of(number)), block)
            for number, block in enumerate(self.partition.blocks)
        ]
        fingerprint, others = data.spec.fingerprint, self.partition.others
        merged = merge(
            parts, data.classes, config=recipe.resolved, test_split_fingerprint=fingerprint, others=others
        )
        return merged.with_facts(data_fingerprints=dict(data.fingerprints))

    def prepare_joint(self) -> None:
        """Write the merged set from which the joint job starts, unless it is there; sub-tasks must have ended."""
        if (self._start / NAME).is_file():
            return
        left = [name for name in self.waiting if name not in (EXPERTS, JOINT)]
        if left:
            raise UserError(
                f"--only {JOINT}: it starts once the sub-tasks have ended; run {', '.join(left)} first"
            )
        self.merged().save(self._start)

    def check_images(self) -> None:
        """Raise if a sub-task that has ended learned from other images than its classes have now."""
        data = self.recipe.data
        for number in range(len(self.partition.blocks)):
            if str(number) in self.waiting:
                continue
            before = Manifest.read(find_artefact(self.folder_of(number)) / NAME).data_fingerprints
            if before is None:
                continue
            learned = self.partition.learned(number)
            own = DistillationData(partial(_of_block, data.source, learned), on_error=data.on_error)
            if changed := differences(before, own.fingerprints):
                raise UserError(
                    f"sub-task {number} was distilled from other images ({'; '.join(changed)}); restore them, or "
                    "replace the federation with --overwrite"
                )

    def run(self, name: str) -> None:
        """Run one job in this process, or continue it; nothing where it has run to its end."""
        if name not in self.names:
            raise UserError(
                f"--only ({name}) is not a job of this federation; choose from {', '.join(self.names)}"
            )
        if name not in self.waiting:
            return
        folder = self.folder_of(name)
        folder.mkdir(parents=True, exist_ok=True)
        if name == EXPERTS:
            self._record()
        else:
            if name == JOINT:
                self.prepare_joint()
            _fit(self.arguments(name))
            if not (folder / "distilled" / NAME).is_file():
                raise RuntimeError(f"job {name} ended without a set in {folder}")
        (folder / DONE).touch()

    def _record(self) -> None:
        """Record the experts that label, or see that they are there."""
        model, data = self.recipe.model, self.recipe.data
        assert model.labels is not None
        data.setup()
        if self.recipe.experts.num_experts:
            epochs = max([need.epochs for need in model.needs()], default=1)
            self.recipe.experts.record(model.labels.experts(), data, epochs=epochs, all_experts=False)
        model.labels.check(data)
        if data.pruning_cost is not None:
            write_json(self._cost, total([{PRUNE: data.pruning_cost}, self.cost_of_recording()]))

    def cost_of_recording(self) -> Stages:
        """Return what the job of the experts took to score real images; recordings keep their own cost."""
        costs: Stages = read_json(self._cost, "delete it") if self._cost.is_file() else {}
        return costs

    @property
    def _cost(self) -> Path:
        return self.folder_of(EXPERTS) / "cost.json"


def _of_block(source: Source, block: Sequence[str], root: str | None) -> Source:
    """Return the images of a sub-task's classes: a `SourceFactory`, given the first two."""
    return Subset(source, block)


def _fit(arguments: Sequence[str]) -> None:
    """Run `latentdd ARGUMENTS` in this process, whose own arguments it leaves as they were."""
    before = sys.argv
    try:
        code = run_verb(arguments[0], fit_or_validate, arguments[1:])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = before
    if code > 128:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def clear(folder: Path) -> None:
    """Remove a federation, and only what belongs to one; raise UserError if the folder holds something else."""
    _refuse_others(folder)
    for path in (folder / name for name in _OWN):
        remove(path)


def find(recipe: Recipe, folder: Path) -> Federation | None:
    """Return the federation that a folder holds; None where it is empty."""
    _refuse_others(folder)
    if not (folder / _PLAN).is_file():
        return None
    found = Federation.load(folder)
    changes = recipe.changes(folder / CONFIG)
    if changes.of_sets:
        raise UserError(
            f"--out ({folder}) holds a federation of other settings ({'; '.join(changes.of_sets[:5])}); choose another "
            "folder, or replace it with --overwrite"
        )
    if changes.others:
        try:
            found.partition.check(recipe.data.classes)
        except UserError as error:
            raise UserError(
                f"--out ({folder}): data.root ({recipe.config.data.root}) has other classes than its sub-tasks "
                f"({error}); give a root with the same, or choose another folder"
            ) from error
        if Path.cwd() != Path(found.directory):
            raise UserError(
                f"--out ({folder}) was planned in {found.directory}, to which all its paths are relative; change "
                f"settings ({'; '.join(changes.others[:5])}) from there"
            )
    return found


def _refuse_others(folder: Path) -> None:
    if holds_files(folder) and not (folder / _PLAN).is_file():
        raise UserError(f"--out ({folder}) holds files that are no federation; choose another folder")
