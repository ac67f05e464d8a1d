"""Results of an evaluation: rows, their means, and the files and the table that show them."""

import csv
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from ldd.disk.files import atomic_file, read_json, write_json
from ldd.errors import UserError
from ldd.evaluation.results.dimensions import cost, recovery, table as dimensions_table
from ldd.evaluation.results.facts import COST, EVALUATIONS, assembled, by_protocol, joined, read_facts
from ldd.evaluation.results.plain_table import PlainTable
from ldd.evaluation.results.robustness import PLAIN, robustness, table as robustness_table
from ldd.evaluation.results.tables import accuracy_table, looks_table

CSV_NAME = "evaluation.csv"
JSON_NAME = "evaluation.json"
DISTILLED = "distilled"
DISTILLED_HARD = "distilled_hard"
"""The distilled images with hard labels, where the set has soft ones."""

REFERENCE = "random_real"
"""The set that the distilled one is measured against: real images at an equal budget."""

_BUDGET = "_ipc"


def budget_name(name: str, images_per_class: int) -> str:
    """Name of a set's first so many images of each class."""
    return f"{name}{_BUDGET}{images_per_class}"


def of_a_step(name: str) -> bool:
    """Whether the set of this name is another one at each training step."""
    return name in (DISTILLED, DISTILLED_HARD, DISTILLED + PLAIN) or name.startswith(DISTILLED + _BUDGET)


MEAN_UNSEEN = "mean_unseen"

_TEXT_WIDTH = 120  # columns


@dataclass(frozen=True)
class Row:
    """One trained network.

    Attributes:
        step: training step of the codes that were evaluated; sets that do not depend on it carry the step of the
            latest evaluation they were compared in.
        set: name of the set it learned from.
        network: its name.
        unseen: its class took no part in distillation.
        repeat: from 0.
        seed: of the evaluation; with network and repeat it fixes everything random.
        accuracy: top-1 on the test split after the last epoch, in [0, 1].
        seconds: of training and testing.
        protocol: id.
        selected: accuracy of the epoch that is best on the selection split; None where the protocol does not look.
        best_on_test: the largest accuracy of any look, chosen on the test split itself.
    """

    step: int
    set: str
    network: str
    unseen: bool
    repeat: int
    seed: int
    accuracy: float
    seconds: float
    protocol: str
    selected: float | None = None
    best_on_test: float | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """New rows replace all earlier ones with their key; of all sets, only the distilled ones differ by step."""
        return self.step if of_a_step(self.set) else None, self.protocol, self.set, self.network

    @classmethod
    def from_text(cls, text: Mapping[str, str]) -> Self:
        """The row of one line of a CSV file."""
        if text["unseen"] not in ("true", "false"):
            raise ValueError(text["unseen"])
        return cls(
            step=int(text["step"]),
            set=text["set"],
            network=text["network"],
            unseen=text["unseen"] == "true",
            repeat=int(text["repeat"]),
            seed=int(text["seed"]),
            accuracy=float(text["accuracy"]),
            seconds=float(text["seconds"]),
            protocol=text["protocol"],
            **{name: float(text[name]) for name in LOOKS if text.get(name)},
        )


LOOKS = ("selected", "best_on_test")
"""Columns that are there only where a protocol looks at its students during training."""

COLUMNS = tuple(f.name for f in fields(Row) if f.name not in LOOKS)


@dataclass(frozen=True)
class Score:
    """Mean over repeats.

    Attributes:
        mean: of the accuracies.
        std: population standard deviation over the repeats (ddof 0), as the papers print it.
        n: repeats.
    """

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Of accuracies, at least one."""
        values = list(values)
        return cls(statistics.fmean(values), statistics.pstdev(values), len(values))

    def __str__(self) -> str:
        spread = f" ± {100 * self.std:.1f}" if self.n > 1 else ""
        return f"{100 * self.mean:.1f}{spread}"


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
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """Id of the latest evaluation's protocol."""
        return self.rows[-1].protocol

    @property
    def step(self) -> int:
        """Step of the latest evaluation."""
        return self.rows[-1].step

    def latest(self) -> tuple[Row, ...]:
        """Rows of the latest evaluation: one protocol and one step."""
        return tuple(row for row in self.rows if (row.protocol, row.step) == (self.protocol, self.step))

    def scores(self) -> dict[str, dict[str, Score]]:
        """Set -> network -> score over the repeats, of the latest evaluation."""
        accuracies: dict[str, dict[str, list[float]]] = {}
        for row in self.latest():
            accuracies.setdefault(row.set, {}).setdefault(row.network, []).append(row.accuracy)
        return {
            name: {network: Score.of(values) for network, values in of_set.items()}
            for name, of_set in accuracies.items()
        }

    @staticmethod
    def _looked(rows: Iterable[Row]) -> bool:
        return any(row.selected is not None for row in rows)

    def selections(self) -> dict[str, dict[str, dict[str, Score]]]:
        """Set -> network -> the three ways to report a student, of the latest evaluation; empty without looks.

        `last` is the epoch that counts, `selected` the one that is best on the selection split, `best_on_test` the one
        that is best on the test split, which no result of ours may be chosen by.
        """
        found: dict[str, dict[str, dict[str, list[float]]]] = {}
        for row in self.latest():
            if row.selected is not None and row.best_on_test is not None:
                ways = found.setdefault(row.set, {}).setdefault(row.network, {})
                ways.setdefault("last", []).append(row.accuracy)
                ways.setdefault("selected", []).append(row.selected)
                ways.setdefault("best_on_test", []).append(row.best_on_test)
        return {
            name: {n: {way: Score.of(values) for way, values in ways.items()} for n, ways in of_set.items()}
            for name, of_set in found.items()
        }

    def mean_unseen(self, networks: Collection[str] | None = None) -> dict[str, Score]:
        """Set -> score over repeats of the mean over its unseen networks; sets without any are left out.

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
        """Unseen networks that all these sets met, of the latest evaluation; of all its sets where none is named."""
        scores = self.scores()
        met = [scores.get(name, {}) for name in sets or scores]
        unseen = dict.fromkeys(row.network for row in self.latest() if row.unseen)
        return [network for network in unseen if all(network in of_set for of_set in met)]

    def gains(self) -> dict[str, float]:
        """Network (and `mean_unseen`) -> mean accuracy of the distilled set less that of equally many real images.

        Networks that only one of the two met are left out, of the mean too.
        """
        own, others = (self.scores().get(name, {}) for name in (DISTILLED, REFERENCE))
        gains = {network: own[network].mean - others[network].mean for network in own if network in others}
        if common := self.common_unseen(DISTILLED, REFERENCE):
            gains[MEAN_UNSEEN] = statistics.fmean(gains[network] for network in common)
        return gains

    def metrics(self) -> dict[str, float]:
        """Log key -> mean accuracy of the distilled set."""
        metrics = {
            f"val/accuracy/{name}": score.mean for name, score in self.scores().get(DISTILLED, {}).items()
        }
        if DISTILLED in (means := self.mean_unseen()):
            metrics[f"val/accuracy/{MEAN_UNSEEN}"] = means[DISTILLED].mean
        return metrics

    def after(self, earlier: "Report") -> "Report":
        """These rows after those of `earlier` that they do not replace."""
        new = {row.key for row in self.rows}
        rows = tuple(row for row in earlier.rows if row.key not in new) + self.rows
        evaluations = earlier.facts_by_protocol()
        for protocol, facts in self.facts_by_protocol().items():
            found = Report(tuple(row for row in rows if row.protocol == protocol), {}).scores().keys()
            evaluations[protocol] = joined(evaluations.get(protocol, {}), facts, found)
        facts = assembled(evaluations, self.protocol, earlier.facts, self.facts)
        return Report(rows, {**earlier.protocols, **self.protocols}, facts)

    def facts_by_protocol(self) -> dict[str, Mapping[str, Any]]:
        """Protocol id -> facts of its evaluations (see `ldd.evaluation.results.facts`)."""
        return by_protocol(self.facts, self.protocol if self.rows else None)

    def of_protocol(self, protocol: str) -> "Report":
        """What the evaluations by one protocol have said, as a report of its own."""
        rows = tuple(row for row in self.rows if row.protocol == protocol)
        return Report(rows, self.protocols, self.facts_by_protocol().get(protocol, {}))

    def beside(self, others: "Report") -> "Report":
        """These rows, then those of sets that do not depend on the step, as if of this step; facts of both."""
        moved = tuple(replace(row, step=self.step) for row in others.rows)
        merged = {
            key: {**others.facts.get(key, {}), **self.facts.get(key, {})} for key in ("images_per_set", COST)
        }
        return Report(
            self.rows + moved,
            {**others.protocols, **self.protocols},
            {**others.facts, **self.facts, **merged},
        )

    def check_protocol(self, name: str, contents: str) -> None:
        """Refuse to mix two protocols under one id.

        Args:
            name: id of a protocol.
            contents: its hash.

        Raises:
            UserError: rows of the same id come from other contents.
        """
        if self.protocols.get(name, contents) != contents:
            raise UserError(
                f"protocol {name} has changed since {CSV_NAME} was written (hash {self.protocols[name]}, now "
                f"{contents}); give the changed protocol an id of its own, or evaluate into another folder"
            )

    def check_set(self, step: int, identity: str) -> None:
        """Refuse to replace the rows of another distilled set.

        Args:
            step: of the set that is to be evaluated.
            identity: its hash.

        Raises:
            UserError: rows of that step come from other images or labels.
        """
        there = self.facts.get("sets", {}).get(str(step), identity)
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
            columns = COLUMNS + LOOKS * self._looked(self.rows)
            lines.writerow(columns)
            lines.writerows([_text(getattr(row, name)) for name in columns] for row in self.rows)
        write_json(Path(folder) / JSON_NAME, self.summary())

    def summary(self) -> dict[str, Any]:
        """What `evaluation.json` holds: means and standard deviations of the latest evaluation, and all steps'."""
        accuracies = self.scores()
        return {
            "protocol": {"id": self.protocol, "hash": self.protocols[self.protocol]},
            "step": self.step,
            "std": "population standard deviation over n repeats (ddof 0)",
            "unseen": {row.network: row.unseen for row in self.latest()},
            "accuracy": {s: {n: asdict(score) for n, score in of.items()} for s, of in accuracies.items()},
            MEAN_UNSEEN: {name: asdict(score) for name, score in self.mean_unseen().items()},
            f"gain_over_{REFERENCE}": self.gains(),
            **self._selection_summary(),
            **({"ddranking": scores} if (scores := robustness(self)) else {}),
            "recovery": recovery(self),
            "history": self._history(),
            "protocols": dict(self.protocols),
            **self.facts,
            COST: cost(self),
            EVALUATIONS: self.facts_by_protocol(),
        }

    def _selection_summary(self) -> dict[str, Any]:
        ways = {
            name: {n: {way: asdict(score) for way, score in of.items()} for n, of in of_set.items()}
            for name, of_set in self.selections().items()
        }
        return {"selection": ways} if ways else {}

    def _history(self) -> list[dict[str, Any]]:
        moments = sorted({(row.protocol, row.step) for row in self.rows if row.set == DISTILLED})
        parts = (
            Report(tuple(row for row in self.rows if (row.protocol, row.step) == moment), self.protocols)
            for moment in moments
        )
        return [{"protocol": part.protocol, "step": part.step, **part.metrics()} for part in parts]

    @classmethod
    def read(cls, folder: Path | str) -> "Report | None":
        """The report of a folder; None where it holds none.

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
            protocols = dict(known["protocols"])
            facts = read_facts(known, rows[-1].protocol if rows else None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise UserError(
                f"{path} is not an evaluation of this program ({error}); move it away, or use another folder"
            ) from error
        return cls(rows, protocols, facts)

    def __str__(self) -> str:
        """The table as plain text."""
        console = Console(file=StringIO(), width=_TEXT_WIDTH, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def tables(self) -> list[Table | PlainTable]:
        """All that the latest evaluation has to show."""
        shown = (accuracy_table(self), looks_table(self), robustness_table(self), dimensions_table(self))
        return [table for table in shown if table is not None]

    def table(self) -> Table:
        """Mean and standard deviation in %, networks down, sets across."""
        return accuracy_table(self)


def _text(value: object) -> object:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
