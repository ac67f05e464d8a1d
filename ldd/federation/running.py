"""A federation from its recipe to the merged set: planned or found, its jobs run, what they left merged."""

import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple, cast

import rich

from ldd.disk.locks import writing_in
from ldd.distiller.module import Distiller
from ldd.errors import UserError, check_at_least
from ldd.federation.finish import finish
from ldd.federation.folder import CONFIG, JOINT, Federation, clear, find
from ldd.federation.jobs import Job, Machines, failures
from ldd.federation.partition import ClassPartition, Rule, class_means
from ldd.federation.ray_engine import import_ray, run_jobs
from ldd.federation.slurm import check_folder, write_slurm
from ldd.initializers import StoredCodes
from ldd.networks.scoring import ScoringNetwork
from ldd.runs.ahead import check_run
from ldd.runs.ending import Ending
from ldd.runs.history import record_command
from ldd.runs.recipe import Recipe
from ldd.runtime import processes
from ldd.runtime.plain import on_terminal


def federate(
    machines: Machines,
    out: str,
    config: str | None = None,
    subtasks: int | None = None,
    partition: Rule = "contiguous",
    overlap: int = 0,
    joint_steps: int = 0,
    only: str | None = None,
    overwrite: bool = False,
    end_with_parent: bool = False,
    settings: Sequence[str] = (),
    typed: Sequence[str] = ("federate",),
) -> Ending:
    """Distil the classes of a recipe in disjoint sub-tasks, each a run of its own, and merge the sets.

    The same command continues a federation that was stopped: finished sub-tasks are skipped, others go on from their
    last checkpoints. All other options (--data.root ROOT, --trainer.max_steps 500, ...) are those of `latentdd fit` and
    go to every sub-task. DIR becomes a run folder: DIR/distilled is the merged set over all classes; DIR/subtasks/<k>
    are runs.

    Args:
        machines: where jobs run.
        out: folder; without --config, one that is there.
        config: a recipe of `latentdd fit`.
        subtasks: number of sub-tasks.
        partition: classes in the data's order (D3), at random, or similar ones together: balanced k-means on their mean
            features in a small network trained on the data.
        overlap: classes of other sub-tasks that each one learns besides its own, experts included, so that its images
            differ from theirs; what it has made of them is left out of the merge.
        joint_steps: training steps of all sub-tasks' codes together after the merge, in a job of its own.
        only: run this one job of DIR: a sub-task's number, experts or joint.
        overwrite: replace the federation in DIR.
        end_with_parent: end when the process that started this one does.
        settings: options of `latentdd fit`, which go over the recipe's.
        typed: the command, which is recorded in DIR.
    """
    folder, wanted = Path(out), _wanted(config, subtasks, partition, overlap, joint_steps)
    if end_with_parent:
        processes.end_with_parent()
    if only is not None:
        return _run_alone(folder, only, [*settings, *filter(None, [config]), *wanted.words])
    if machines.engine == "slurm":
        check_folder(folder.resolve())
    with writing_in(folder):
        if overwrite:
            clear(folder)
        if config is None:
            federation = _continued(folder, machines, [*settings, *wanted.words])
        else:
            federation = _from_recipe(folder, config, wanted, machines, settings)
        record_command(folder, typed)
        if machines.engine == "slurm":
            return _write_for_slurm(federation, machines)
        _run_all(federation, machines)
        return finish(federation)


class _Wanted(NamedTuple):
    """How a task is split, and what comes after the merge."""

    subtasks: int
    rule: Rule
    overlap: int
    joint_steps: int

    def __str__(self) -> str:
        overlap = f", {self.overlap} classes of others each" if self.overlap else ""
        joint = f", {self.joint_steps} joint steps" if self.joint_steps else ""
        return f"{self.subtasks} sub-tasks, {self.rule}{overlap}{joint}"

    @property
    def words(self) -> list[str]:
        """The options that say more than which federation it is."""
        options = {"--overlap": self.overlap, "--joint_steps": self.joint_steps}
        return [word for option, value in options.items() if value for word in (option, str(value))]


def _wanted(config: str | None, subtasks: int | None, rule: Rule, overlap: int, joint_steps: int) -> _Wanted:
    if subtasks is not None and subtasks < 1:
        raise UserError(f"--subtasks ({subtasks}) must be at least 1")
    check_at_least(0, "", overlap=overlap, joint_steps=joint_steps)
    if (config is None) != (subtasks is None):
        raise UserError(
            "--config and --subtasks belong together: both start a federation, neither continues one"
        )
    return _Wanted(subtasks or 0, rule, overlap, joint_steps)


def _run_alone(folder: Path, name: str, settings: Sequence[str]) -> Ending:
    if settings:
        raise UserError(
            "--only runs a job of a federation as it was planned; leave --config and other options out"
        )
    federation = Federation.load(folder)
    federation.run(name)
    return Ending((federation.folder_of(name),), ("federate", "--out", folder))


def _continued(folder: Path, machines: Machines, settings: Sequence[str]) -> Federation:
    if settings:
        raise UserError(
            f"{settings[0]}: without --config a federation keeps its settings; give --config and --subtasks too"
        )
    federation = Federation.load(folder)
    other = Federation.load(folder)  # its own recipe would stay in memory
    _check_the_end(federation, other.recipe, machines, _as_planned(federation))
    return federation


def _from_recipe(
    folder: Path, config: str, wanted: _Wanted, machines: Machines, settings: Sequence[str]
) -> Federation:
    """Return a new federation, or the one in the folder with the recipe's settings."""
    if not Path(config).is_file():
        raise UserError(f"--config ({config}) does not exist; name a recipe")
    recipe = Recipe(["--config", config, *settings, "--trainer.default_root_dir", str(folder)], folder)
    federation = find(recipe, folder)
    if federation is None:
        classes = recipe.data.classes
        partition = ClassPartition.contiguous(classes, wanted.subtasks)  # or refuses the number
        partition.overlapping(classes, wanted.overlap, recipe.seed)  # likewise
        _check_run(recipe, folder, wanted, machines)
        if wanted.rule != "contiguous":
            partition = _partition(recipe, wanted.subtasks, wanted.rule)
        partition = partition.overlapping(classes, wanted.overlap, recipe.seed)
        return Federation.make(recipe, partition, folder, wanted.joint_steps)
    found = _as_planned(federation)
    if wanted not in (found, found._replace(joint_steps=found.joint_steps or wanted.joint_steps)):
        raise UserError(
            f"--out ({folder}) holds a federation of {found}; choose another folder, or replace it with --overwrite"
        )
    changed = wanted.joint_steps != found.joint_steps
    _check_the_end(federation, recipe, machines, wanted, anyway=changed)
    federation.adopt(recipe)
    if not changed:
        return federation
    print(f"settings from now on: joint_steps: 0 -> {wanted.joint_steps}")
    return federation.with_joint_steps(wanted.joint_steps)


def _as_planned(federation: Federation) -> _Wanted:
    """Return how a federation was split; every rule that it may have is one of `Rule`."""
    partition = federation.partition
    rule = cast("Rule", partition.rule)
    return _Wanted(len(partition.blocks), rule, partition.overlap, federation.joint_steps)


def _check_the_end(
    federation: Federation, recipe: Recipe, machines: Machines, wanted: _Wanted, anyway: bool = False
) -> None:
    """Before any job that is left is run, and before settings are replaced."""
    folder = federation.folder
    if anyway or federation.waiting or recipe.changes(folder / CONFIG).others:
        _check_run(recipe, folder, wanted, machines)


def _check_run(recipe: Recipe, folder: Path, wanted: _Wanted, machines: Machines) -> None:
    """Refuse jobs that could not all be run, and a merged set that could not be labelled and evaluated."""
    machines.needs(vars(recipe.config.trainer))  # or refuses
    if machines.workers and machines.engine == "ray":
        import_ray()
    model, steps = recipe.model, recipe.config.trainer.max_steps != 0
    if wanted.joint_steps:
        _check_joint(recipe, wanted)
    check_run(
        model,
        recipe.data,
        recipe.experts,
        recipe.evaluation if recipe.evaluates else None,
        steps=steps,
        folder=folder,
        subtasks=wanted.subtasks,
        here=machines.engine != "slurm",
    )


def _check_joint(recipe: Recipe, wanted: _Wanted) -> None:
    """Refuse joint steps that could not start from what the sub-tasks leave."""
    model, option = recipe.model, f"--joint_steps ({wanted.joint_steps})"
    if wanted.subtasks == 1:
        raise UserError(f"{option} are for two sub-tasks or more; raise trainer.max_steps instead")
    if model.codes.packing > 1:
        raise UserError(f"{option} go on from codes, which packed sets do not keep; choose other codes, or 0")
    if model.rediffusion is not None:
        raise UserError(
            f"{option}: sub-tasks would make their images anew before they are merged; set rediffusion null"
        )
    if _have_own_decoders(model):
        raise UserError(
            f"{option} need one decoder, and each sub-task would train its own; let all start from one run over all "
            "classes (model.initializer: ldd.initializers.StoredCodes) with lr_decoder 0, or choose a frozen prior"
        )
    check_run(model, recipe.data, recipe.experts, None, steps=True)


def _have_own_decoders(model: Distiller) -> bool:
    """Return whether sub-tasks end with decoders that differ: they train them, or start from random ones."""
    optimizers = model.objective.optimizers(model.codes, model.prior)
    trained = {id(parameter) for parameter in model.prior.trainable()}
    rates = [
        group["lr"]
        for optimizer in optimizers.values()
        for group in optimizer.param_groups
        if trained & {*map(id, group["params"])}
    ]
    return bool(trained) and (any(rates) or not isinstance(model.initializer, StoredCodes))


def _partition(recipe: Recipe, subtasks: int, rule: Rule) -> ClassPartition:
    data = recipe.data
    if rule == "random":
        return ClassPartition.random(data.classes, subtasks, recipe.seed)
    data.setup()
    features = class_means(data, ScoringNetwork(), recipe.seed)
    return ClassPartition.semantic(data.classes, subtasks, features, recipe.seed)


def _write_for_slurm(federation: Federation, machines: Machines) -> Ending:
    folder = federation.folder / "slurm"
    arguments = ("federate", "--out", str(federation.folder))
    # The joint steps are taken by the last job.
    last = Job("last", arguments, Path(federation.directory), folder / "last.log")
    waiting = [name for name in federation.waiting if name != JOINT]
    jobs = [federation.job(name) for name in waiting or federation.names[:1]]
    needs = machines.needs(vars(federation.recipe.config.trainer))
    script = write_slurm(jobs, last, needs, folder, f"latentdd-{federation.folder.name}")
    print(f"hand the jobs in with {script} [--partition=... --time=...]; when they have ended:")
    run = federation.folder
    return Ending((script,), ("report", run, "--out", run / "report.html"))


def _run_all(federation: Federation, machines: Machines) -> None:
    """Run all jobs that are not finished, the joint one after all others."""
    federation.check_images()
    _run_each(federation, [name for name in federation.waiting if name != JOINT], machines)
    if JOINT in federation.waiting:
        federation.prepare_joint()
        _run_each(federation, [JOINT], machines)


def _run_each(federation: Federation, waiting: Sequence[str], machines: Machines) -> None:
    """Run jobs that do not wait for each other, or raise when all have ended and some of them failed."""
    jobs = [federation.job(name) for name in waiting]
    needs = machines.needs(vars(federation.recipe.config.trainer))
    codes: dict[str, int] = {}

    def ended(name: str, code: int) -> None:
        codes[name] = code
        what = "finished" if code == 0 else f"failed (exit code {code}), see {federation.job(name).log}"
        rich.print(on_terminal(f"job {name} {what}; {len(waiting) - len(codes)} of {len(waiting)} left"))

    if machines.workers == 0:
        for name in waiting:
            rich.print(on_terminal(f" of {', '.join(federation.names)}", bold=f"job {name}"))
            ended(name, _attempt(federation, name))
    elif jobs:
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            run_jobs(federation.folder, jobs, needs, machines, ended)
        finally:
            signal.signal(signal.SIGTERM, before)
    if any(codes.values()):
        only = ", ".join(f"--only {name}" for name, code in codes.items() if code)
        raise UserError(
            f"{sum(map(bool, codes.values()))} of {len(federation.names)} jobs failed: {failures(codes, jobs)}; the "
            f"same command runs them again, and `latentdd federate --out {federation.folder}` with {only} one alone"
        )


def _attempt(federation: Federation, name: str) -> int:
    """Exit code of a job in this process; one that fails must not keep the others from running."""
    try:
        federation.run(name)
    except UserError as error:
        print(f"job {name}: error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
