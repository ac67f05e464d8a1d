"""The three dimensions by which D3 (arXiv 2403.00999) judges a set: storage, cost of training, recovered accuracy.

The formulas are ours, since its released code has none: storage as `ldd.artefact.size` counts it, cost as the work of
training one student, recovery as top-1 over all classes and as a share of what the same network reaches on the full
training split.
"""

import statistics
from typing import TYPE_CHECKING, Any

from ldd.evaluation.results.facts import COST
from ldd.evaluation.results.plain_table import PlainTable
from ldd.runtime.ledger import DECODES, SECONDS, STEPS, whole

if TYPE_CHECKING:
    from ldd.evaluation.results.report import Report

FULL = "full_real"
"""The set whose accuracies are the whole."""

_HEAD = (
    *("set", "bytes", "IPC", "IPC, no labels", "epochs", "images", "steps", "decodes", "seconds"),
    "accuracy",
)


def recovery(report: "Report") -> dict[str, dict[str, float]]:
    """Set -> network (and `mean_unseen`) -> mean accuracy as a share of `full_real`'s; empty where that is missing.

    Networks that `full_real` did not meet are left out, of the mean over unseen ones too.
    """
    scores = report.scores()
    full = {network: score.mean for network, score in scores.get(FULL, {}).items() if score.mean}
    found: dict[str, dict[str, float]] = {}
    for name, of_set in scores.items() if full else ():
        found[name] = {n: score.mean / full[n] for n, score in of_set.items() if n in full}
        if common := [network for network in report.common_unseen(name, FULL) if network in full]:
            own = statistics.fmean(of_set[network].mean for network in common)
            found[name]["mean_unseen"] = own / statistics.fmean(full[network] for network in common)
    return found


def cost(report: "Report") -> dict[str, dict[str, Any]]:
    """Set -> `storage` and `training` (with `seconds`: mean over its students), of the latest evaluation."""
    seconds: dict[str, list[float]] = {}
    for row in report.latest():
        seconds.setdefault(row.set, []).append(row.seconds)
    return {
        name: {**found, "training": {**found["training"], "seconds": statistics.fmean(seconds[name])}}
        for name, found in report.facts.get(COST, {}).items()
        if name in seconds
    }


def spent(report: "Report") -> dict[str, float | None]:
    """What all students of a report took: seconds of training and testing, steps and decodes (None where unknown)."""
    known = {protocol: facts.get(COST, {}) for protocol, facts in report.facts_by_protocol().items()}
    costs = [known.get(row.protocol, {}).get(row.set, {}).get("training", {}) for row in report.rows]
    each = [{name: found.get(name) for name in (STEPS, DECODES)} for found in costs]
    return {SECONDS: sum(row.seconds for row in report.rows), "students": len(report.rows), **whole(each)}


def table(report: "Report") -> PlainTable:
    """A line for each set: storage, work and accuracy (mean over unseen networks, over all where all were seen)."""
    shares, means = recovery(report), report.mean_unseen()
    rows = []
    for name, found in cost(report).items():
        storage, training = found["storage"], found["training"]
        accuracies = [score.mean for score in report.scores()[name].values()]
        accuracy = means[name].mean if name in means else statistics.fmean(accuracies)
        share = shares.get(name, {})
        recovered = share.get(
            "mean_unseen", statistics.fmean(share.values()) if share and not means else None
        )
        cells = (
            name,
            f"{storage['bytes']:,}",
            f"{storage['ipc_equivalents']:.2f}",
            f"{storage['ipc_equivalents_without_labels']:.2f}",
            *(f"{training[key]:,}" for key in ("epochs", "images", "steps", "decodes")),
            f"{training['seconds']:.1f}",
            f"{100 * accuracy:.1f}",
        )
        rows.append(cells + ("" if recovered is None else f"{100 * recovered:.1f} %",) * bool(shares))
    return PlainTable(
        "Storage, training cost and recovered accuracy of each set",
        "IPC: stored numbers / (classes x 3 x pixels), with and without labels; images, steps, decodes and seconds: to "
        f"train one network; accuracy: mean over {'unseen networks' if means else 'all networks'}"
        + f"; {DIFFER}"
        * means_differ(report),
        (*_HEAD, *("of full data",) * bool(shares)),
        1,
        tuple(rows),
    )


DIFFER = "means over different unseen networks do not compare"


def means_differ(report: "Report") -> bool:
    """Whether the means over unseen networks of two sets are over different networks."""
    unseen = {(row.set, row.network) for row in report.latest() if row.unseen}
    each = [{network for name, network in unseen if name == one} for one in report.mean_unseen()]
    return any(networks != each[0] for networks in each)
