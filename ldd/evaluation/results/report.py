"""The report of an evaluation: its rows, what follows from them, and the files that hold them."""

import csv
import statistics
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from ldd.disk.files import atomic_file, read_json, write_json
from ldd.errors import UserError
from ldd.evaluation.results import tables
from ldd.evaluation.results.robustness import robustness
from ldd.evaluation.results.rows import COLUMNS, DISTILLED, FULL, LOOKS, REFERENCE, Row, Score
from ldd.runtime.ledger import DECODES, SECONDS, STEPS, whole

CSV_NAME = "evaluation.csv"
JSON_NAME = "evaluation.json"
MEAN_UNSEEN = "mean_unseen"

SETS, SUBTASKS, EVALUATIONS = "sets", "subtasks", "evaluations"
"""Facts of all evaluations: identity of the distilled set by step, sub-tasks behind it, facts by protocol."""

COST, LEFT_OUT = "cost", "left_out"
"""What each set stores and takes; baselines that could not be had, with the reasons."""

_BY_SET = (
    "images_per_set",
    COST,
    LEFT_OUT,
)  # facts that say something of each set: those of earlier sets stay
_OF_ROWS = {  # what `summary` works out anew
    *("protocol", "step", "std", "unseen", "accuracy", MEAN_UNSEEN, f"gain_over_{REFERENCE}", "selection"),
    *("ddranking", "recovery", "history", "protocols"),
}
_WAYS = {"last": "accuracy", "selected": "selected", "best_on_test": "best_on_test"}
_TEXT_WIDTH = 120  # columns

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """Rows of one evaluation, or of all evaluations of a run.

    Attributes:
        rows: one per trained network; those of the latest evaluation come last.
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

    def latest(self) -> tuple[Row, ...]:
        """Return the rows of the latest evaluation: one protocol and one step."""
        return tuple(row for row in self.rows if (row.protocol, row.step) == (self.protocol, self.step))

    def networks(self) -> dict[str, bool]:
        """Return network -> whether it is unseen, of the latest evaluation."""
        return {row.network: row.unseen for row in self.latest()}

    def scores(self, column: str = "accuracy") -> dict[str, dict[str, Score]]:
        """Return set -> network -> score over the repeats, of the latest evaluation.

        Args:
            column: of the rows; those without a value are left out.
        """
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
        """Return set -> score over repeats of the mean over its unseen networks; sets without any are left out.

        The standard deviation is that of the per-repeat means: it includes the draw of random images, which all
        networks of a repeat share. Where sets met different networks, their means do not compare.

        Args:
            networks: means over these alone (see `common_unseen`); None takes all.
        """
        repeats: dict[str, dict[int, list[float]]] = {}
        for row in self.latest():
            if row.unseen and (networks is None or row.network in networks):
                repeats.setdefault(row.set, {}).setdefault(row.repeat, []).append(row.accuracy)
        return {name: Score.of(map(statistics.fmean, of_set.values())) for name, of_set in repeats.items()}

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
        """Return network (and `mean_unseen`) -> accuracy of the distilled set less that of equally many real images.

        Networks that only one of the two met are left out, of the mean too.
        """
        own, others = (self.scores().get(name, {}) for name in (DISTILLED, REFERENCE))
        gains = {network: own[network].mean - others[network].mean for network in own if network in others}
        if common := self.common_unseen(DISTILLED, REFERENCE):
            gains[MEAN_UNSEEN] = statistics.fmean(gains[network] for network in common)
        return gains

    def recovery(self) -> dict[str, dict[str, float]]:
        """Return set -> network (and `mean_unseen`) -> accuracy as a share of `full_real`'s; empty without that.

        Networks that `full_real` did not meet are left out, of the mean over unseen ones too. With storage and the cost
        of training this is the third dimension by which D3 (arXiv 2403.00999) judges a set; its released code has no
        formulas, so these are ours.
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
        return _by_protocol(self.facts, self.protocol if self.rows else None)

    def of_protocol(self, protocol: str) -> "Report":
        """Return what the evaluations by one protocol have said, as a report of its own."""
        rows = tuple(row for row in self.rows if row.protocol == protocol)
        return Report(rows, self.protocols, self.facts_by_protocol().get(protocol, {}))

    def after(self, earlier: "Report") -> "Report":
        """Return these rows after those of `earlier` that they do not replace."""
        new = {row.key for row in self.rows}
        rows = tuple(row for row in earlier.rows if row.key not in new) + self.rows
        evaluations = earlier.facts_by_protocol()
        for protocol, facts in self.facts_by_protocol().items():
            found = _joined(evaluations.get(protocol, {}), facts)
            if LEFT_OUT in found:  # what has been evaluated by now is left out no more
                there = Report(tuple(row for row in rows if row.protocol == protocol), {}).scores()
                found[LEFT_OUT] = {name: why for name, why in found[LEFT_OUT].items() if name not in there}
            evaluations[protocol] = found
        facts = _assembled(evaluations, self.protocol, earlier.facts, self.facts)
        return Report(rows, {**earlier.protocols, **self.protocols}, facts)

    def beside(self, others: "Report") -> "Report":
        """Return these rows, then those of sets that do not depend on the step, as if of this step; facts of both."""
        moved = tuple(replace(row, step=self.step) for row in others.rows)
        facts = {**others.facts, **_joined(others.facts, self.facts)}
        return Report(self.rows + moved, {**others.protocols, **self.protocols}, facts)

    def check_protocol(self, name: str, contents: str) -> None:
        """Raise if rows of the protocol `name` come from other contents.

        Args:
            name: id of a protocol.
            contents: its hash.

        Raises:
            UserError: two protocols would be mixed under one id.
        """
        if self.protocols.get(name, contents) != contents:
            raise UserError(
                f"protocol {name} has changed since {CSV_NAME} was written (hash {self.protocols[name]}, now "
                f"{contents}); give the changed protocol an id of its own, or evaluate into another folder"
            )

    def check_set(self, step: int, identity: str) -> None:
        """Raise if rows of this step come from another distilled set.

        Args:
            step: of the set that is to be evaluated.
            identity: its hash.

        Raises:
            UserError: rows of other images or labels would be replaced.
        """
        there = self.facts.get(SETS, {}).get(str(step), identity)
        if there != identity:
            raise UserError(
                f"{CSV_NAME} holds the results of another distilled set of step {step} (its identity is {there}, this "
                f"one's {identity}), which would be replaced; evaluate into another folder"
            )

    def write(self, folder: Path | str) -> None:
        """Write `evaluation.csv` and `evaluation.json`, each atomically.

        Raises:
            UserError: the folder cannot be written.
        """
        with atomic_file(Path(folder) / CSV_NAME) as beside, beside.open("w", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            columns = COLUMNS + LOOKS * any(row.selected is not None for row in self.rows)
            lines.writerow(columns)
            lines.writerows(row.to_text(columns) for row in self.rows)
        write_json(Path(folder) / JSON_NAME, self.summary())

    def summary(self) -> dict[str, Any]:
        """Return what `evaluation.json` holds: scores of the latest evaluation, means of all steps, and the facts."""
        selections, robust = self.selections(), robustness(self)
        return {
            "protocol": {"id": self.protocol, "hash": self.protocols[self.protocol]},
            "step": self.step,
            "std": "population standard deviation over n repeats (ddof 0)",
            "unseen": self.networks(),
            "accuracy": _plain(self.scores()),
            MEAN_UNSEEN: _plain(self.mean_unseen()),
            f"gain_over_{REFERENCE}": self.gains(),
            **({"selection": _plain(selections)} if selections else {}),
            **({"ddranking": robust} if robust else {}),
            "recovery": self.recovery(),
            "history": self._history(),
            "protocols": dict(self.protocols),
            **self.facts,
            COST: self.cost(),
            EVALUATIONS: self.facts_by_protocol(),
        }

    def _history(self) -> list[dict[str, Any]]:
        moments = sorted({(row.protocol, row.step) for row in self.rows if row.set == DISTILLED})
        parts = (
            Report(tuple(row for row in self.rows if (row.protocol, row.step) == moment), self.protocols)
            for moment in moments
        )
        return [{"protocol": part.protocol, "step": part.step, **part.metrics()} for part in parts]

    @classmethod
    def read(cls, folder: Path | str) -> "Report | None":
        """Read the report of a folder; None where it holds none.

        Raises:
            UserError: files that are not a report.
        """
        path, summary = Path(folder) / CSV_NAME, Path(folder) / JSON_NAME
        if not path.is_file():
            return None
        try:
            with path.open(newline="") as file:
                lines = csv.DictReader(file)
                rows = tuple(map(Row.from_text, lines))
                if tuple(lines.fieldnames or ()) not in (COLUMNS, COLUMNS + LOOKS):
                    raise ValueError(f"its columns are {lines.fieldnames}")
            known = read_json(summary) if summary.is_file() else {"protocols": {}}
            return cls(rows, dict(known["protocols"]), _read_facts(known, rows[-1].protocol if rows else ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise UserError(
                f"{path} is not an evaluation of this program ({error}); move it away, or use another folder"
            ) from error

    def tables(self) -> list[tables.PlainTable]:
        """Return all that the latest evaluation has to show."""
        made = (tables.accuracy_table, tables.looks_table, tables.robustness_table, tables.dimensions_table)
        return [shown for table in made if (shown := table(self)) is not None]

    def __str__(self) -> str:
        """Return the table of accuracies as plain text: networks down, sets across."""
        console = Console(file=StringIO(), width=_TEXT_WIDTH, color_system=None)
        with console.capture() as captured:
            console.print(tables.accuracy_table(self))
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _plain(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(of) if isinstance(of, Score) else _plain(of) for name, of in scores.items()}


def _by_protocol(facts: Facts, latest: str | None) -> dict[str, Facts]:
    """Facts of each protocol, where those at the top are of the protocol `latest`."""
    own = {name: value for name, value in facts.items() if name not in (SETS, SUBTASKS, EVALUATIONS)}
    return {**facts.get(EVALUATIONS, {}), **({latest: own} if own and latest is not None else {})}


def _joined(earlier: Facts, later: Facts) -> dict[str, Any]:
    """Facts of two evaluations by one protocol: the later one's, and of each set what either says."""
    each = {name: {**earlier.get(name, {}), **later.get(name, {})} for name in _BY_SET}
    return {**later, **{name: merged for name, merged in each.items() if merged}}


def _assembled(evaluations: Mapping[str, Facts], latest: str, *reports: Facts) -> dict[str, Any]:
    """Facts of a report: those of its latest protocol at the top, and what `reports` say of all evaluations."""
    found = {**evaluations.get(latest, {})}
    if sets := {step: one for facts in reports for step, one in facts.get(SETS, {}).items()}:
        found[SETS] = sets
    if counts := [facts[SUBTASKS] for facts in reports if SUBTASKS in facts]:
        found[SUBTASKS] = counts[-1]
    return {**found, EVALUATIONS: dict(evaluations)} if evaluations else found


def _read_facts(summary: Facts, latest: str) -> dict[str, Any]:
    """Facts in an `evaluation.json`; one from before they were kept by protocol has those of its latest evaluation."""
    facts = {name: value for name, value in summary.items() if name not in _OF_ROWS}
    written_by = summary.get("protocol", {}).get("id")
    by_protocol = facts.get(EVALUATIONS) or _by_protocol(facts, written_by)
    evaluations = {
        name: {key: dict(value) if key in _BY_SET else value for key, value in found.items()}
        for name, found in dict(by_protocol).items()
    }
    return _assembled(evaluations, latest, facts)
