"""Scores that take the recipe out of an accuracy: label- and augmentation-robust, after DD-Ranking (arXiv 2505.13300).

With accuracies in [0, 1]:
    HLR = acc(all real images, hard labels) - acc(distilled, hard labels)
    IOR = acc(distilled, its own labels) - acc(as many random real images, labels of the same kind)
    LRS = f(w IOR - (1 - w) HLR)
    ARS = f(g (distilled - random real, with augmentation) + (1 - g) (the same without)), w = g = 1/2
    f(a) = (e^a - e^-1) / (e - e^-1), which maps -1 to 0, 0 to 0.269 and 1 to 1.
The released package (0.2) puts percentage points into f; that scale is computed too, to compare with its leaderboard.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from math import e, exp
from typing import TYPE_CHECKING, Any

from ldd.evaluation.results.plain_table import PlainTable

if TYPE_CHECKING:
    from ldd.evaluation.results.report import Report

PLAIN = "_plain"
"""What a set's name ends with where its students see no augmentation."""

_OWN, _HARD, _RANDOM, _FULL = "distilled", "distilled_hard", "random_real", "full_real"
_SOFT = f"{_RANDOM}_soft"


def scaled(value: float) -> float:
    """F of the module's docstring."""
    return (exp(value) - 1 / e) / (e - 1 / e)


@dataclass(frozen=True)
class Accuracies:
    """What the scores follow from, of one network and repeat, in [0, 1].

    Attributes:
        full: all real images with hard labels.
        own, random: the distilled set with its own labels, and random real images with labels of the same kind.
        hard: the distilled set with hard labels.
        own_plain, random_plain: as `own` and `random`, without augmentation.
    """

    full: float
    own: float
    random: float
    hard: float
    own_plain: float
    random_plain: float

    def scores(self, weight: float = 0.5, unit: float = 1.0) -> dict[str, float]:
        """`hlr`, `ior`, `lrs` and `ars`.

        Args:
            weight: w and g.
            unit: 1 for fractions, 100 for the percentage points of the released package.
        """
        hlr, ior = unit * (self.full - self.hard), unit * (self.own - self.random)
        plain = unit * (self.own_plain - self.random_plain)
        return {
            "hlr": hlr,
            "ior": ior,
            "lrs": scaled(weight * ior - (1 - weight) * hlr),
            "ars": scaled(weight * ior + (1 - weight) * plain),
        }


def robustness(report: "Report", weight: float = 0.5) -> dict[str, Any]:
    """Network -> scores of the latest evaluation; empty where sets that they need are missing.

    A network's scores are means over the repeats that all its sets share (`full_real`: the mean of its own), each with
    its population standard deviation; `percent_scale` holds those of the released package's scale.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in report.latest():
        found.setdefault(row.network, {}).setdefault(row.set, {})[row.repeat] = row.accuracy
    scored = {network: _of_network(sets, weight) for network, sets in found.items()}
    return {network: scores for network, scores in scored.items() if scores}


def _of_network(sets: Mapping[str, Mapping[int, float]], weight: float) -> dict[str, Any]:
    soft = _HARD in sets
    random = _SOFT if soft else _RANDOM
    names = {
        "own": _OWN,
        "random": random,
        "hard": _HARD if soft else _OWN,
        "own_plain": _OWN + PLAIN,
        "random_plain": random + PLAIN,
    }
    if not {_FULL, *names.values()} <= sets.keys():
        return {}
    full = statistics.fmean(sets[_FULL].values())
    shared = sorted(set.intersection(*(set(sets[name]) for name in names.values())))
    repeats = [
        Accuracies(full, **{part: sets[name][repeat] for part, name in names.items()}) for repeat in shared
    ]
    fractions = [one.scores(weight) for one in repeats]
    points = [one.scores(weight, unit=100.0) for one in repeats]
    return {
        **{name: _mean(fractions, name) for name in fractions[0]},
        "percent_scale": {name: _mean(points, name) for name in ("lrs", "ars")},
        "weight": weight,
    }


def _mean(scores: list[dict[str, float]], name: str) -> dict[str, float]:
    values = [one[name] for one in scores]
    return {"mean": statistics.fmean(values), "std": statistics.pstdev(values), "n": len(values)}


def table(report: "Report") -> PlainTable | None:
    """A line for each network; None without scores."""
    scores = robustness(report)
    if not scores:
        return None
    columns = ("HLR", "IOR", "LRS", "ARS")
    rows = [
        (
            network,
            *(f"{of[name.lower()]['mean']:.3f} ± {of[name.lower()]['std']:.3f}" for name in columns),
            *(f"{of['percent_scale'][name]['mean']:.2f}" for name in ("lrs", "ars")),
        )
        for network, of in scores.items()
    ]
    return PlainTable(
        f"Label- and augmentation-robust scores (protocol {report.protocol}, step {report.step})",
        "of accuracies as fractions, mean ± population standard deviation over repeats; HLR: full data less distilled, "
        "both with hard labels (lower is better); IOR: distilled less random real, same recipe; 0.269: as good as "
        "random. Last columns: the scale of the released package",
        ("network", *columns, "LRS %", "ARS %"),
        1,
        tuple(rows),
    )
