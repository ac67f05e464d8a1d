"""`latentdd federate`: a task in sub-tasks of some classes each, distilled independently and merged into one set."""

import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Literal

import rich
import torch
from jsonargparse import ArgumentParser, Namespace

from ldd.data.pruning.training import ScoringNetwork
from ldd.errors import UserError
from ldd.federation import ClassPartition
from ldd.federation.checks import check_the_end
from ldd.federation.finish import finish
from ldd.federation.jobs import Job, Needs, failures, gpus_of
from ldd.federation.partition import class_means
from ldd.federation.plan import CONFIG, Plan, clear, find
from ldd.federation.ray_engine import run_jobs
from ldd.federation.slurm import write_slurm
from ldd.runs.recipe import Recipe
from ldd.runtime.devices import available_cores
from ldd.runtime.processes import end_with_parent

_DESCRIPTION = """Distil the classes of a recipe in disjoint sub-tasks, each a run of its own, and merge the sets.

The same command continues a federation that was stopped: finished sub-tasks are skipped, others go on from their last
checkpoints. All other options (--data.root ROOT, --trainer.max_steps 500, ...) are those of `latentdd fit` and go to
every sub-task.
DIR becomes a run folder: DIR/distilled is the merged set over all classes; DIR/subtasks/<k> are runs."""


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb."""
    parser = _parser(verb)
    own, of_recipe = split(
        arguments, {option for action in parser._actions for option in action.option_strings}
    )
    options = parser.parse_args(own)
    _check(options)
    folder = Path(options.out).expanduser()
    if options.end_with_parent:
        end_with_parent()
    if options.only is not None:
        _run_alone(folder, options, of_recipe)
        return
    plan = _plan(folder, options, of_recipe)
    needs = Needs(_cpus(options), _gpus(plan, options))
    waiting = [name for name in plan.names if not plan.is_finished(name)]
    if options.engine == "slurm":
        last = Job(
            "last",
            ("federate", "--out", str(plan.folder)),
            Path(plan.directory),
            plan.folder / "slurm" / "last.log",
        )
        jobs = [plan.job(name) for name in waiting] or [plan.job(plan.names[0])]
        script = write_slurm(jobs, last, needs, plan.folder / "slurm", f"latentdd-{plan.folder.name}")
        print(f"written: {script}; hand the jobs in with {script} [--partition=... --time=...]")
        return
    codes = _run(plan, waiting, needs, options)
    if any(codes.values()):
        jobs = [plan.job(name) for name in codes]
        only = ", ".join(f"--only {name}" for name, code in codes.items() if code)
        raise UserError(
            f"{sum(map(bool, codes.values()))} of {len(plan.names)} jobs failed: {failures(codes, jobs)}; the same "
            f"command runs them again, and `latentdd federate --out {folder}` with {only} one alone"
        )
    finish(plan)


def split(arguments: Sequence[str], known: set[str]) -> tuple[list[str], list[str]]:
    """The command's own words and those of the recipe: every option with the values that follow it."""
    own: list[str] = []
    others: list[str] = []
    part = own
    for word in arguments:
        if word == "--":
            continue
        if word.startswith("--") or word == "-h":
            part = own if word.partition("=")[0] in known else others
        part.append(word)
    return own, others


def _run_alone(folder: Path, options: Namespace, of_recipe: Sequence[str]) -> None:
    if of_recipe or options.config is not None:
        raise UserError(
            "--only runs a job of a federation as it was planned; leave --config and other options out"
        )
    code = Plan.load(folder).run(options.only)
    if code:
        raise SystemExit(code)


def _plan(folder: Path, options: Namespace, of_recipe: Sequence[str]) -> Plan:
    if options.overwrite:
        clear(folder)
    if options.config is None:
        if of_recipe:
            raise UserError(
                f"{of_recipe[0]}: without --config a federation keeps its settings; give --config and --subtasks too"
            )
        there = Plan.load(folder)
        _check_the_end(there, Plan.load(folder).recipe, options)  # not its own, which would stay in memory
        return there
    if not Path(options.config).is_file():
        raise UserError(f"--config ({options.config}) does not exist; name a recipe")
    recipe = Recipe(
        ["--config", options.config, *of_recipe, "--trainer.default_root_dir", str(folder)], folder
    )
    plan = find(recipe, folder)
    if plan is None:
        partition = _partition(recipe, options)
        check_the_end(recipe, folder, len(partition.blocks), here=options.engine != "slurm")
        return Plan.make(recipe, partition, folder)
    if len(plan.partition.blocks) != options.subtasks or plan.partition.rule != options.partition:
        raise UserError(
            f"--out ({folder}) holds a federation of {len(plan.partition.blocks)} sub-tasks, {plan.partition.rule}; "
            "choose another folder, or replace it with --overwrite"
        )
    _check_the_end(plan, recipe, options)
    plan.adopt(recipe)
    return plan


def _check_the_end(plan: Plan, recipe: Recipe, options: Namespace) -> None:
    """Before any job of a plan that has some left, and before its settings are replaced."""
    if not all(map(plan.is_finished, plan.names)) or recipe.changes(plan.folder / CONFIG).others:
        blocks = plan.partition.blocks
        check_the_end(recipe, plan.folder, len(blocks), here=options.engine != "slurm")


def _partition(recipe: Recipe, options: Namespace) -> ClassPartition:
    classes, data = recipe.data.classes, recipe.data
    _ = recipe.model  # refused now rather than in every sub-task
    if options.partition == "contiguous":
        return ClassPartition.contiguous(classes, options.subtasks)
    if options.partition == "random":
        return ClassPartition.random(classes, options.subtasks, recipe.seed)
    data.setup()
    features = class_means(data, ScoringNetwork(), recipe.seed)
    return ClassPartition.semantic(classes, options.subtasks, features, recipe.seed)


def _run(plan: Plan, names: Sequence[str], needs: Needs, options: Namespace) -> dict[str, int]:
    """Exit code of each job that was not finished."""
    codes: dict[str, int] = {}

    def ended(name: str, code: int) -> None:
        codes[name] = code
        left = len(names) - len(codes)
        what = "finished" if code == 0 else f"failed (exit code {code}), see {plan.job(name).log}"
        rich.print(f"job {name} {what}; {left} of {len(names)} left")

    if options.workers == 0:
        for name in names:
            rich.print(f"[bold]job {name}[/bold] of {', '.join(plan.names)}")
            ended(name, _attempt(plan, name))
        return codes
    if names:
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            jobs = [plan.job(name) for name in names]
            codes = run_jobs(
                jobs,
                needs,
                workers=options.workers,
                address=options.address,
                retries=options.retries,
                ended=ended,
            )
        finally:
            signal.signal(signal.SIGTERM, before)
    return codes


def _attempt(plan: Plan, name: str) -> int:
    """Exit code of a job in this process; one that fails must not keep the others from running."""
    try:
        return plan.run(name)
    except UserError as error:
        print(f"job {name}: error: {error}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _cpus(options: Namespace) -> int:
    if options.cpus_per_job != "auto":
        return int(options.cpus_per_job)
    local = options.engine == "ray" and options.address is None
    return max(1, available_cores() // options.workers) if local and options.workers else 1


def _gpus(plan: Plan, options: Namespace) -> int:
    if options.workers == 0 and options.engine == "ray":
        return 0  # in this process, which takes what the recipe says
    there = torch.cuda.is_available() or options.engine == "slurm" or options.address is not None
    return gpus_of(vars(plan.recipe.config.trainer), there)


def _check(options: Namespace) -> None:
    for name, least in (("subtasks", 1), ("workers", 0), ("retries", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} ({value}) must be at least {least}")
    if options.cpus_per_job != "auto" and options.cpus_per_job < 1:
        raise UserError(f"--cpus_per_job ({options.cpus_per_job}) must be 'auto' or at least 1")
    if (options.config is None) != (options.subtasks is None):
        raise UserError(
            "--config and --subtasks belong together: both start a federation, neither continues one"
        )
    if options.address is not None and options.workers == 0:
        raise UserError(f"--address ({options.address}) needs --workers: how many jobs run there at a time")


def _parser(verb: str) -> ArgumentParser:
    # By hand: --config is a recipe of another verb, not a file of this command's own options.
    parser = ArgumentParser(prog=f"latentdd {verb}", description=_DESCRIPTION)
    parser.add_argument("--config", type=str | None, default=None, help="A recipe of `latentdd fit`.")
    parser.add_argument("--subtasks", type=int | None, default=None, help="Number of sub-tasks.")
    parser.add_argument("--out", type=str, required=True, help="Folder; without --config, one that is there.")
    parser.add_argument(
        "--partition",
        type=str,
        choices=("contiguous", "random", "semantic"),
        default="contiguous",
        help="Classes in the data's order (D3), at random, or similar ones together: balanced k-means on their mean "
        "features in a small network trained on the data.",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="Jobs at a time, on Ray; 0 runs them one after the other in this process, without Ray.",
    )
    parser.add_argument(
        "--address",
        type=str | None,
        default=None,
        help="Of a running Ray cluster, or 'auto'; without it one is started on this machine.",
    )
    parser.add_argument(
        "--retries", type=int, default=3, help="Of a job that is killed, from its checkpoint."
    )
    parser.add_argument(
        "--cpus_per_job",
        type=int | Literal["auto"],
        default="auto",
        help="Cores and threads of a job; auto shares this machine's among the workers, and takes 1 elsewhere.",
    )
    parser.add_argument(
        "--engine",
        type=str,
        choices=("ray", "slurm"),
        default="ray",
        help="slurm runs nothing and writes DIR/slurm: an array of jobs, and what hands them in.",
    )
    parser.add_argument(
        "--only", type=str | None, default=None, help="Run this one job of DIR: a sub-task's number."
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace the federation in DIR.")
    parser.add_argument(
        "--end_with_parent", type=bool, default=False, help="End when the process that started this one does."
    )
    return parser
