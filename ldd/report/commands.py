"""The commands that made a run's set, as they were recorded, and the one that would complete its evaluation."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from ldd.disk.public import public_command, public_configuration
from ldd.evaluation.results.report import LEFT_OUT, Report
from ldd.evaluation.results.rows import DISTILLED, DISTILLED_HARD
from ldd.evaluation.results.scores import TEACHER
from ldd.report.runs import Run
from ldd.runs.history import recorded_commands
from ldd.runtime.ledger import STEPS

_BYTES, _SAMPLES, _SOFT = "_bytes", "prior_samples", "_soft"
_OF_MADE_SETS = ("check", "evaluate", "validate")
"""Verbs that are recorded with a set but do not make one."""


@dataclass(frozen=True)
class Again:
    """How a set was made."""

    commands: tuple[str, ...]  # for a shell, one after the other
    note: str
    settings: str  # the resolved configuration as YAML; empty where the manifest has none


@dataclass(frozen=True)
class Lacking:
    """Baselines that a run's evaluation by one protocol lacks."""

    sentence: str
    command: str  # adds them to the run's own evaluation


def again(run: Run) -> Again:
    """Return the commands that made and evaluated a run; where they were not recorded, say so."""
    settings = yaml.safe_dump(public_configuration(run.config), sort_keys=False) if run.config else ""
    found = recorded_commands(run.folder)
    commands = [one.command for one in found]
    if any(one.verb not in _OF_MADE_SETS for one in found):
        note = "Relative paths start in the folder in which the commands were run; ROOT stands for the data."
    elif "model" in run.config:
        note = "The set was made by an earlier version, which recorded no commands; its settings are in config.yaml."
        words = ["fit", "--config", "config.yaml", "--trainer.default_root_dir", "again"]
        if parts := run.manifest.subtasks:
            words = ["federate", "--config", "config.yaml", "--subtasks", str(len(parts)), "--out", "again"]
        commands.insert(0, shlex.join(["latentdd", *words]))
    else:
        note = "How the set was made was not recorded."
        commands.insert(0, public_command(["inspect", str(run.folder)]))
    # Anybody may have written the version, so that it is quoted.
    install = shlex.join(["pip", "install", f"latentdd=={run.manifest.package_version}"])
    return Again((install, *commands), note, settings)


def lacking(run: Run) -> list[Lacking]:
    """Return one item for each protocol of the run by which a baseline is missing that can be had."""
    found = []
    for protocol, report in run.evaluations.items():
        if missing := missing_baselines(run, report):
            verb = "is" if len(missing) == 1 else "are"
            sentence = (
                f"{run.name}, protocol {protocol}: {_listed(missing)} {verb} missing for an equal comparison."
            )
            found.append(Lacking(sentence, _evaluation(run, protocol, report, missing)))
    return found


def missing_baselines(run: Run, report: Report) -> list[str]:
    """Return the names of baselines that have no row of the latest step, and could have.

    Soft labels are wanted where students learned from the set's own, samples of the prior where codes hold conditions
    of its classes, equal steps where as many real images were seen to take others. What evaluations by the protocol
    left out is not asked for again, unless all that it needs is the labels.
    """
    # Here: a page without evaluations needs no networks.
    from ldd.evaluation.baselines.base import bytes_of_real
    from ldd.evaluation.baselines.equal import DRAWN, candidates

    sets = {row.set for row in report.latest()}
    left_out = report.facts.get(LEFT_OUT, {})
    sampled = "conditioning" in (run.distilled.codes or {})
    images_paid = run.distilled.storage.total().bytes // bytes_of_real(run.distilled.image_size)
    known = report.cost()
    steps = {known[name]["training"].get(STEPS) for name in (DISTILLED, *DRAWN) if name in known}
    steps.discard(None)
    wanted = candidates(
        run.distilled, own=TEACHER not in report.facts, soft=DISTILLED_HARD in sets, steps=len(steps) > 1
    )
    return [
        name
        for name in (baseline.name for baseline in wanted)
        if name not in sets
        and (sampled or not name.startswith(_SAMPLES))
        and (images_paid or _BYTES not in name)
        and (name not in left_out or (name.endswith(_SOFT) and name.removesuffix(_SOFT) not in left_out))
    ]


def _evaluation(run: Run, protocol: str, report: Report, baselines: Sequence[str]) -> str:
    """Return a command with names in capitals for files that the run's folder need not hold."""
    from ldd.students.protocol import shipped

    words = ["evaluate", str(run.folder), "--data", "DATA.yaml"]
    words += ["--protocol", protocol if protocol in shipped() else "PROTOCOL.yaml"]
    words += [
        "--repeats",
        str(1 + max(row.repeat for row in report.rows)),
        "--seed",
        str(report.rows[-1].seed),
    ]
    if report.split != "test":
        words += ["--split", report.split]
    if TEACHER in report.facts or any(_SOFT in name for name in baselines):
        words += ["--labels", "LABELS.yaml"]
    return public_command([*words, "--baselines", ",".join(baselines), "--out", str(run.folder)])


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
