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
from dataclasses import asdict, dataclass
from math import e, exp
from typing import Any

from ldd.evaluation.results.rows import DISTILLED, DISTILLED_HARD, FULL, PLAIN, REFERENCE, Score
from ldd.evaluation.results.scores import Scores, shared_repeats


def scaled(value: float) -> float:
    """Return f of the module's docstring."""
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
        """Return `hlr`, `ior`, `lrs` and `ars`.

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


def robustness(report: Scores, weight: float = 0.5) -> dict[str, Any]:
    """Return network -> scores of the latest evaluation; empty where sets that they need are missing.

    A network's scores are means over the repeats that all its sets share (`full_real`: the mean of its own), each with
    its population standard deviation; `percent_scale` holds the scores on the released package's scale.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in report.latest():
        found.setdefault(row.network, {}).setdefault(row.set, {})[row.repeat] = row.accuracy
    scored = {network: _of_network(sets, weight) for network, sets in found.items()}
    return {network: scores for network, scores in scored.items() if scores}


def _of_network(sets: Mapping[str, Mapping[int, float]], weight: float) -> dict[str, Any]:
    soft = DISTILLED_HARD in sets
    random = f"{REFERENCE}_soft" if soft else REFERENCE
    names = {
        "own": DISTILLED,
        "random": random,
        "hard": DISTILLED_HARD if soft else DISTILLED,
        "own_plain": DISTILLED + PLAIN,
        "random_plain": random + PLAIN,
    }
    if not {FULL, *names.values()} <= sets.keys():
        return {}
    full = statistics.fmean(sets[FULL].values())
    repeats = [
        Accuracies(full, **{part: sets[name][repeat] for part, name in names.items()})
        for repeat in shared_repeats(sets[name] for name in names.values())
    ]

    def means(unit: float, *scores: str) -> dict[str, dict[str, float]]:
        each = [one.scores(weight, unit) for one in repeats]
        return {name: asdict(Score.of(one[name] for one in each)) for name in scores}

    return {
        **means(1.0, "hlr", "ior", "lrs", "ars"),
        "percent_scale": means(100.0, "lrs", "ars"),
        "weight": weight,
    }
