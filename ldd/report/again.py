"""Commands that make a run's set again, and judge it, as far as its folder tells."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldd.artefact.manifest import SUBTASKS
from ldd.errors import UserError
from ldd.evaluation.baselines.equal import baselines_by_name
from ldd.evaluation.results.report import Report
from ldd.evaluation.results.rows import DISTILLED, DISTILLED_HARD, PLAIN, REFERENCE, budget_name
from ldd.evaluation.sets import INITIAL
from ldd.federation import ClassPartition
from ldd.report.commands import data_of, evaluation_command, labels_of, protocol_of
from ldd.report.runs import Run

AGAIN = "again"
PARTITION = "partition.json"


@dataclass(frozen=True)
class Again:
    """How to make a set again.

    Attributes:
        commands: for a shell, one after the other.
        notes: what the commands cannot say.
        files: name -> content of those that they name.
    """

    commands: tuple[str, ...]
    notes: tuple[str, ...]
    files: dict[str, str]


def again(run: Run) -> Again:
    """Commands that make and judge the run again; where its folder does not tell, words."""
    files: dict[str, str] = {}
    notes: list[str] = []
    made = _made(run, files, notes)
    path = AGAIN if made else str(run.folder)
    commands = [f"pip install latentdd=={run.manifest['package_version']}", *made]
    if not made:
        commands = [shlex.join(["latentdd", "inspect", path])]
    if made and run.manifest.get("labels") and not (run.config.get("model") or {}).get("labels"):
        path = f"{AGAIN}/labelled"
        data, labels = data_of(run, files, notes), labels_of(run, files, notes)
        words = ["latentdd", "label", AGAIN, "--data", data, "--labels", labels, "--out", path]
        commands.append(shlex.join(words))
    for protocol, report in run.evaluations.items():
        baselines, budgets = _sets(report, notes)
        out = f"{AGAIN}/evaluation-{re.sub(r'[^A-Za-z0-9_.-]', '_', protocol)}"
        command = evaluation_command(run, report, path, out, baselines, budgets)
        commands.append(command.text)
        notes += command.notes
        files |= command.files
    return Again(tuple(commands), tuple(dict.fromkeys(notes)), files)


def _made(run: Run, files: dict[str, str], notes: list[str]) -> list[str]:
    """The commands that made the set; none where the folder does not tell."""
    config = run.config
    if "drawn_at" in config and "prior" in config:
        return [_sampled(run, files, notes)]
    if "model" not in config:
        notes.append(
            "How the set was made is not in its manifest, so that there is no command that makes it again."
        )
        return []
    files["run.yaml"] = yaml.safe_dump(dict(config), sort_keys=False)
    options = _protocol_option(run, files, notes)
    if (run.folder / PARTITION).is_file() or SUBTASKS in run.manifest:
        federated = _federated(run, options, notes)
        return [federated] if federated else []
    return [
        shlex.join(["latentdd", "fit", "--config", "run.yaml", *options, "--trainer.default_root_dir", AGAIN])
    ]


def _protocol_option(run: Run, files: dict[str, str], notes: list[str]) -> list[str]:
    """What goes over a path in run.yaml that is known on the machine of the run alone."""
    own = str((run.config.get("evaluation") or {}).get("protocol") or "")
    if Path(own).suffix not in (".yaml", ".yml"):
        return []
    for report in run.evaluations.values():
        found: dict[str, str] = {}
        _, name = protocol_of(run, report, found, [])
        if found:
            files |= found
            return ["--evaluation.protocol", name]
    notes.append(
        f"run.yaml names the protocol file {own}; give --evaluation.protocol where it lies elsewhere."
    )
    return []


def _federated(run: Run, options: Sequence[str], notes: list[str]) -> str | None:
    """`latentdd federate` by the partition in the run's folder, or the one that the manifest's sub-tasks follow."""
    classes, seed = run.distilled.classes, int(run.config.get("seed_everything") or 0)
    if (run.folder / PARTITION).is_file():
        partition = ClassPartition.load(run.folder / PARTITION)
        rule, count = partition.rule, len(partition.blocks)
    else:
        blocks = tuple(tuple(part["classes"]) for part in run.manifest[SUBTASKS])
        count = len(blocks)
        rules = (ClassPartition.contiguous(classes, count), ClassPartition.random(classes, count, seed))
        rule = next((one.rule for one in rules if one.blocks == blocks), "")
    if not rule:
        listed = "; ".join(", ".join(block) for block in blocks)
        notes.append(
            f"The set was merged of {count} sub-tasks of these classes: {listed}. Its folder does not tell by which "
            "partition, so that there is no command that makes it again; latentdd federate --partition semantic may."
        )
        return None
    words = ["latentdd", "federate", "--config", "run.yaml", *options, "--subtasks", str(count)]
    return shlex.join([*words, "--partition", rule, "--out", AGAIN])


def _sampled(run: Run, files: dict[str, str], notes: list[str]) -> str:
    config: dict[str, Any] = dict(run.config)
    words = ["latentdd", "prior", "sample", str(config["prior"]), "--data", data_of(run, files, notes)]
    for name in ("per_class", "num_steps", "guidance_scale", "seed"):
        if name in config:
            words += ["--" + name.replace("_", "-"), str(config[name])]
    notes.append("Whether the samples had a --prompt of their own, the set does not tell.")
    return shlex.join([*words, "--out", AGAIN])


def _sets(report: Report, notes: list[str]) -> tuple[list[str], list[int]]:
    """Baselines by name, and nested budgets, of what the latest evaluation compared."""
    sets = list(report.scores())
    found = (re.fullmatch(rf"{DISTILLED}_ipc(\d+)", name) for name in sets)
    budgets = sorted(int(match[1]) for match in found if match)
    nested = {budget_name(kind, n) for n in budgets for kind in (DISTILLED, REFERENCE)}
    baselines, strange = [], []
    for name in sets:
        if name in (DISTILLED, DISTILLED_HARD, INITIAL) or name in nested or name.endswith(PLAIN):
            continue
        try:
            baselines_by_name(name)
        except UserError:
            strange.append(name)
        else:
            baselines.append(name)
    if strange:
        notes.append(
            f"{', '.join(strange)} under protocol {report.protocol} are no baselines by name: add the dotted names of "
            "their classes to --baselines."
        )
    return baselines, budgets
