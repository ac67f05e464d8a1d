"""What an evaluation says beside its rows, by protocol, and how a later evaluation's facts join those before it."""

from collections.abc import Collection, Mapping
from typing import Any

Facts = Mapping[str, Any]

SETS, SUBTASKS, EVALUATIONS = "sets", "subtasks", "evaluations"
"""Facts of all evaluations: identity of the distilled set by step, sub-tasks behind it, facts by protocol."""

COST, LEFT_OUT = "cost", "left_out"
"""What each set stores and takes; baselines that could not be had, with the reasons."""

BY_SET = ("images_per_set", COST, LEFT_OUT)
"""Facts that say something of each set: those of earlier sets stay."""

_OF_ROWS = {
    *("protocol", "step", "std", "unseen", "accuracy", "mean_unseen", "gain_over_random_real", "selection"),
    *("ddranking", "recovery", "history", "protocols"),
}


def by_protocol(facts: Facts, latest: str | None) -> dict[str, Facts]:
    """Facts of the evaluations by each protocol.

    Args:
        facts: of a report.
        latest: id of its latest evaluation's protocol, whose facts stand at the top; None without rows.
    """
    found: dict[str, Facts] = dict(facts.get(EVALUATIONS, {}))
    own = {name: value for name, value in facts.items() if name not in (SETS, SUBTASKS, EVALUATIONS)}
    if own and latest is not None:
        found[latest] = own
    return found


def joined(earlier: Facts, later: Facts, evaluated: Collection[str]) -> dict[str, Any]:
    """Facts of two evaluations by one protocol: the later one's, and of each set what either says.

    Args:
        earlier: facts, maybe none.
        later: facts.
        evaluated: sets with a row of the latest step, which are left out no more.
    """
    whole = {**later}
    for name in BY_SET:
        if merged := {**earlier.get(name, {}), **later.get(name, {})}:
            whole[name] = merged
    if LEFT_OUT in whole:
        whole[LEFT_OUT] = {name: why for name, why in whole[LEFT_OUT].items() if name not in evaluated}
    return whole


def assembled(evaluations: Mapping[str, Facts], latest: str, *reports: Facts) -> dict[str, Any]:
    """Facts of a report.

    Args:
        evaluations: facts by protocol.
        latest: id of the latest evaluation's protocol, whose facts come to the top.
        reports: facts of reports, the later ones last, for what is of all evaluations.
    """
    whole = {**evaluations.get(latest, {})}
    if sets := {step: one for facts in reports for step, one in facts.get(SETS, {}).items()}:
        whole[SETS] = sets
    if counts := [facts[SUBTASKS] for facts in reports if SUBTASKS in facts]:
        whole[SUBTASKS] = counts[-1]
    return {**whole, EVALUATIONS: dict(evaluations)} if evaluations else whole


def read_facts(summary: Mapping[str, Any], latest: str | None) -> dict[str, Any]:
    """Facts of a report, from what its `evaluation.json` holds.

    A file from before facts were kept by protocol has those of its latest evaluation.

    Args:
        summary: the file's content.
        latest: id of the protocol of the last row; None without rows.

    Raises:
        ValueError, TypeError, AttributeError: they are of the wrong kind.
    """
    facts = {name: value for name, value in summary.items() if name not in _OF_ROWS}
    written_by = summary.get("protocol", {}).get("id")
    evaluations = {
        name: {key: dict(value) if key in BY_SET else value for key, value in found.items()}
        for name, found in dict(facts.get(EVALUATIONS) or by_protocol(facts, written_by)).items()
    }
    return assembled(evaluations, latest or "", {**facts, SETS: dict(facts.get(SETS, {}))})
