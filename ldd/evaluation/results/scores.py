"""What follows from the rows of an evaluation: scores, means, gains, recovered accuracy, costs."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldd.artefact.size import Units
from ldd.evaluation.results.rows import DISTILLED, FULL, REFERENCE, Row, Score
from ldd.runtime.ledger import DECODES, SECONDS, STEPS, whole

MEAN_UNSEEN = "mean_unseen"

SPLIT = "split"
"""The fact that says which split students were tested on, where that is not the test split."""

SETS, SUBTASKS, EVALUATIONS = "sets", "subtasks", "evaluations"
"""Facts of all evaluations: identity of the distilled set by step, sub-tasks behind it, facts by protocol."""

TEACHER, LABELLER = "teacher", "labeller"
"""Facts that say whose soft labels a protocol's students met: a teacher's of every crop, or those of compared sets."""

COST = "cost"
"""What each set stores, and what a student takes to train on it."""

_WAYS = {"last": "accuracy", "selected": "selected", "best_on_test": "best_on_test"}

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """Rows of one evaluation, or of all evaluations of a run, and what follows from them.

    Attributes:
        rows: one per trained network; the latest evaluation comes last.
        protocols: hash of each protocol by its id.
        facts: what else the JSON file says of the latest evaluation (test split, device, `cost`, `left_out`, ...);
            `sets`, the identity of the distilled set by step, `subtasks`, and `evaluations`, the facts of each
            protocol, are of all evaluations.
    """

    rows: tuple[Row, ...]
    protocols: Mapping[str, str]
    facts: Facts = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """Id of the latest evaluation's protocol."""
        return self.rows[-1].protocol

    @property
    def step(self) -> int:
        """Step of the latest evaluation."""
        return self.rows[-1].step

    @property
    def split(self) -> str:
        """The split that students were tested on: `test` or `selection`."""
        return str(self.facts.get(SPLIT, "test"))

    def latest(self) -> tuple[Row, ...]:
        """Return the rows of the latest evaluation: one protocol and one step."""
        return tuple(row for row in self.rows if (row.protocol, row.step) == (self.protocol, self.step))

    def networks(self) -> dict[str, bool]:
        """Return network -> whether it is unseen, of the latest evaluation."""
        return {row.network: row.unseen for row in self.latest()}

    def scores(self, column: str = "accuracy") -> dict[str, dict[str, Score]]:
        """Return set -> network -> score of a `column` over the repeats, of the latest evaluation."""
        found: dict[str, dict[str, list[float]]] = {}
        for row in self.latest():
            if (value := getattr(row, column)) is not None:
                found.setdefault(row.set, {}).setdefault(row.network, []).append(value)
        return {name: {n: Score.of(values) for n, values in of_set.items()} for name, of_set in found.items()}

    def selections(self) -> dict[str, dict[str, dict[str, Score]]]:
        """Return set -> network -> the three ways to report a student, of the latest evaluation; empty without looks.

        `last` is the epoch that counts, `selected` the one that is best on the selection split, `best_on_test` the one
        that is best on the test split, which no result of ours may be chosen by.
        """
        ways = {way: self.scores(column) for way, column in _WAYS.items()}
        return {
            name: {network: {way: found[name][network] for way, found in ways.items()} for network in of_set}
            for name, of_set in ways["selected"].items()
        }

    def mean_unseen(self, networks: Collection[str] | None = None) -> dict[str, Score]:
        """Return set -> mean over its unseen networks (None: all of them) of each one's mean over its repeats.

        The standard deviation is over the means of repeats, `n` of them, that all these networks share: it includes the
        draw of random images, which all networks of a repeat share. Where sets met different networks, their means do
        not compare (see `common_unseen`).
        """
        found: dict[str, dict[str, dict[int, float]]] = {}
        for row in self.latest():
            if row.unseen and (networks is None or row.network in networks):
                found.setdefault(row.set, {}).setdefault(row.network, {})[row.repeat] = row.accuracy
        return {name: _mean_of(list(of_set.values())) for name, of_set in found.items()}

    def common_unseen(self, *sets: str) -> list[str]:
        """Return the unseen networks that all these sets met in the latest evaluation; without names, all its sets."""
        scores = self.scores()
        met = [scores.get(name, {}) for name in sets or scores]
        unseen = [network for network, new in self.networks().items() if new]
        return [network for network in unseen if all(network in of_set for of_set in met)]

    def means_differ(self) -> bool:
        """Return whether the means over unseen networks of two sets are over different networks."""
        unseen = {(row.set, row.network) for row in self.latest() if row.unseen}
        each = [{network for name, network in unseen if name == one} for one in self.mean_unseen()]
        return any(networks != each[0] for networks in each)

    def gains(self) -> dict[str, float]:
        """Return by network (and `mean_unseen`) what the distilled set gains over equally many real images."""
        own, others = (self.scores().get(name, {}) for name in (DISTILLED, REFERENCE))
        gains = {network: own[network].mean - others[network].mean for network in own if network in others}
        if common := self.common_unseen(DISTILLED, REFERENCE):
            gains[MEAN_UNSEEN] = statistics.fmean(gains[network] for network in common)
        return gains

    def recovery(self) -> dict[str, dict[str, float]]:
        """Return set -> network (and `mean_unseen`) -> accuracy as a share of `full_real`'s; empty without that.

        With storage and the cost of training this is the third dimension by which D3 (arXiv 2403.00999) judges a set;
        its released code has no formulas, so these are ours.
        """
        scores = self.scores()
        full = {network: score.mean for network, score in scores.get(FULL, {}).items() if score.mean}
        found: dict[str, dict[str, float]] = {}
        for name, of_set in scores.items() if full else ():
            found[name] = {n: score.mean / full[n] for n, score in of_set.items() if n in full}
            if common := [network for network in self.common_unseen(name, FULL) if network in full]:
                own = statistics.fmean(of_set[network].mean for network in common)
                found[name][MEAN_UNSEEN] = own / statistics.fmean(full[network] for network in common)
        return found

    def cost(self) -> dict[str, dict[str, Any]]:
        """Return set -> `storage` and `training` (with `seconds`: mean over its students), of the latest evaluation."""
        seconds: dict[str, list[float]] = {}
        for row in self.latest():
            seconds.setdefault(row.set, []).append(row.seconds)
        return {
            name: {**found, "training": {**found["training"], "seconds": statistics.fmean(seconds[name])}}
            for name, found in self.facts.get(COST, {}).items()
            if name in seconds
        }

    def units(self) -> dict[str, Units]:
        """Return set -> images, pixels and bytes of each class, of the latest evaluation; earlier ones did not say."""
        return {name: Units(**found["units"]) for name, found in self.cost().items() if "units" in found}

    def spent(self) -> dict[str, float | None]:
        """Return what all students took: seconds of training and testing, steps and decodes (None where unknown)."""
        known = {protocol: facts.get(COST, {}) for protocol, facts in self.facts_by_protocol().items()}
        costs = [known.get(row.protocol, {}).get(row.set, {}).get("training", {}) for row in self.rows]
        each = [{name: found.get(name) for name in (STEPS, DECODES)} for found in costs]
        return {SECONDS: sum(row.seconds for row in self.rows), "students": len(self.rows), **whole(each)}

    def metrics(self) -> dict[str, float]:
        """Return log key -> mean accuracy of the distilled set."""
        means = {name: score.mean for name, score in self.scores().get(DISTILLED, {}).items()}
        if unseen := self.mean_unseen().get(DISTILLED):
            means[MEAN_UNSEEN] = unseen.mean
        return {f"val/accuracy/{name}": mean for name, mean in means.items()}

    def facts_by_protocol(self) -> dict[str, Facts]:
        """Return protocol id -> facts of its evaluations."""
        return by_protocol(self.facts, self.protocol if self.rows else None)


def shared_repeats(sets: Iterable[Mapping[int, float]]) -> list[int]:
    """Return the repeats that all of some accuracies by repeat have, in order."""
    return sorted(set.intersection(*map(set, sets)))


def _mean_of(networks: Sequence[Mapping[int, float]]) -> Score:
    """Return the score of the mean over networks, given by repeat."""
    shared = shared_repeats(networks)
    means = [statistics.fmean(network[repeat] for network in networks) for repeat in shared]
    if all(len(network) == len(shared) for network in networks):
        return Score.of(means)
    mean = statistics.fmean(statistics.fmean(network.values()) for network in networks)
    return Score(mean, statistics.pstdev(means) if means else 0.0, len(means))


def by_protocol(facts: Facts, latest: str | None) -> dict[str, Facts]:
    """Facts of each protocol, where those at the top are of the protocol `latest`."""
    own = {name: value for name, value in facts.items() if name not in (SETS, SUBTASKS, EVALUATIONS)}
    return {**facts.get(EVALUATIONS, {}), **({latest: own} if own and latest is not None else {})}
