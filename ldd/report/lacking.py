"""Baselines at equal budgets that an evaluation lacks, and the command that adds them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ldd.evaluation.baselines.equal import candidates
from ldd.evaluation.results.report import LEFT_OUT, Report
from ldd.evaluation.results.rows import DISTILLED_HARD
from ldd.report.commands import SOFT, evaluation_command
from ldd.report.runs import Run

_BYTES, _SAMPLES = "_bytes", "prior_samples"


@dataclass(frozen=True)
class Lacking:
    """Of one run's evaluation by one protocol.

    Attributes:
        sentence: which.
        command: adds them to the run's own evaluation.
        files: name -> content of those that the command names, as far as the run knows them.
        notes: on what it names in capitals.
    """

    sentence: str
    command: str
    files: dict[str, str]
    notes: tuple[str, ...]


def lacking(run: Run) -> list[Lacking]:
    """One for each protocol of the run by which a baseline is missing that can be had, as far as its folder tells."""
    found = []
    for protocol, report in run.evaluations.items():
        missing = missing_baselines(run, report)
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            sentence = (
                f"{run.name}, protocol {protocol}: {_listed(missing)} {verb} missing for an equal comparison."
            )
            command = evaluation_command(run, report, str(run.folder), str(run.folder), missing)
            found.append(Lacking(sentence, command.text, command.files, command.notes))
    return found


def missing_baselines(run: Run, report: Report) -> list[str]:
    """Names of baselines that have no row of the latest step, and could have.

    Soft labels are wanted where students learned from the set's own, samples of the prior where codes hold conditions
    of its classes. What evaluations by the protocol left out is not asked for again, unless all that it needs is the
    labels.
    """
    sets = {row.set for row in report.latest()}
    left_out = report.facts.get(LEFT_OUT, {})
    sampled = "conditioning" in (run.distilled.codes or {})
    images_paid = run.distilled.storage.total().bytes // (3 * run.distilled.image_size**2 + 8)
    wanted = candidates(run.distilled, own="teacher" not in report.facts, soft=DISTILLED_HARD in sets)
    names = [part.name for part in wanted]
    return [
        name
        for name in names
        if name not in sets
        and (sampled or not name.startswith(_SAMPLES))
        and (images_paid or _BYTES not in name)
        and (name not in left_out or (name.endswith(SOFT) and name.removesuffix(SOFT) not in left_out))
    ]


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
