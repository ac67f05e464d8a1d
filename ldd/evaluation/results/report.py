"""The report of an evaluation: what is shown of it, and the files that hold it."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ldd.data.fingerprints import differences
from ldd.disk.files import csv_beside, read_json, write_json
from ldd.disk.text import read_text
from ldd.errors import UserError
from ldd.evaluation.results import tables
from ldd.evaluation.results.robustness import robustness
from ldd.evaluation.results.rows import COLUMNS, DISTILLED, LOOKS, REFERENCE, Row, Score
from ldd.evaluation.results.scores import (
    COST,
    EVALUATIONS,
    LABELLER,
    MEAN_UNSEEN,
    SETS,
    SUBTASKS,
    TEACHER,
    Facts,
    Scores,
    by_protocol,
)
from ldd.runtime.tables import PlainTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV_NAME = "evaluation.csv"
JSON_NAME = "evaluation.json"
DATA = "data_fingerprints"
"""Which real images, see `ldd.data.fingerprints`."""

LEFT_OUT = "left_out"
"""Baselines that could not be had, with the reasons."""

_BY_SET = ("images_per_set", COST, LEFT_OUT)  # facts of each set: what earlier sets have stays
_NO_LABELS = ("selection_accuracy", "labelling")  # facts of a labeller that change none of its labels
_OF_ROWS = {  # what `summary` works out anew
    *("protocol", "step", "std", "unseen", "accuracy", MEAN_UNSEEN, f"gain_over_{REFERENCE}", "selection"),
    *("ddranking", "recovery", "history", "protocols"),
}
_TEXT_WIDTH = 120  # columns


class Report(Scores):
    """The report of an evaluation, or of all evaluations of a run: shown, joined with others, written and read."""

    def of_protocol(self, protocol: str) -> "Report":
        """Return what the evaluations by one protocol have said, as a report of its own."""
        rows = tuple(row for row in self.rows if row.protocol == protocol)
        return Report(rows, self.protocols, self.facts_by_protocol().get(protocol, {}))

    def after(self, earlier: "Report") -> "Report":
        """Return these rows after the rows of `earlier` that they do not replace."""
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
        """Return these rows and, as if of this step, the rows of sets that do not depend on it; facts of both."""
        moved = tuple(replace(row, step=self.step) for row in others.rows)
        facts = {**others.facts, **_joined(others.facts, self.facts)}
        return Report(self.rows + moved, {**others.protocols, **self.protocols}, facts)

    def check_protocol(self, name: str, contents: str) -> None:
        """Raise if rows of the protocol `name` come from other contents than those with the hash `contents`.

        Raises:
            UserError: two protocols would be mixed under one id.
        """
        if self.protocols.get(name, contents) != contents:
            raise UserError(
                f"protocol {name} has changed since {CSV_NAME} was written (hash {self.protocols[name]}, now "
                f"{contents}); give the changed protocol an id of its own, or evaluate into another folder"
            )

    def check_images(self, test_split: str, fingerprints: Mapping[str, str]) -> None:
        """Raise if rows come from other real images, by the contents of all splits.

        Results that are older than fingerprints of contents are compared by `test_split`, over names and sizes.

        Raises:
            UserError: accuracies on different images would be mixed in one table; with both fingerprints.
        """
        splits = {
            name: value for name, value in fingerprints.items() if name != "core_set"
        }  # which is pruned
        for protocol, facts in self.facts_by_protocol().items():
            changed = differences(facts.get(DATA), splits)
            before = facts.get("test_split_fingerprint", test_split)
            if DATA not in facts and before != test_split:
                changed = [f"the test split: fingerprint then {before}, now {test_split}"]
            if changed:
                raise UserError(
                    f"{CSV_NAME} holds results of protocol {protocol} on other images ({'; '.join(changed)}); restore "
                    "them, or evaluate into another folder"
                )

    def check_split(self, split: str) -> None:
        """Raise if students were tested on another split.

        Raises:
            UserError: accuracies on the selection split would stand in one table with those on the test split.
        """
        if self.rows and self.split != split:
            raise UserError(
                f"{CSV_NAME} holds accuracies on the {self.split} split, and split ({split}) asks for another; "
                "evaluate into another folder"
            )

    def check_labels(self, protocol: str, facts: Facts) -> None:
        """Raise if rows of this protocol rest on other soft labels than `facts` say (`teacher` or `labeller`).

        Raises:
            UserError: accuracies with the labels of two networks would stand in one table.
        """
        there = self.facts_by_protocol().get(protocol, {})
        for name in (TEACHER, LABELLER):
            before, now = there.get(name) or {}, json.loads(json.dumps(facts.get(name) or {}, default=str))
            keys = [key for key in now if key in before and key not in _NO_LABELS]  # older facts say less
            changed = [key for key in keys if before[key] != now[key]]
            if changed:
                shown = "; ".join(f"{key} then {before[key]!r}, now {now[key]!r}" for key in changed)
                raise UserError(
                    f"{CSV_NAME} holds results of protocol {protocol} with other soft labels ({name}: {shown}); give "
                    "the same --labels, or evaluate into another folder"
                )

    def check_set(self, step: int, identity: str) -> None:
        """Raise if rows of this step come from a distilled set with another `identity`.

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
        """Write `evaluation.csv` and `evaluation.json`, both or, where one cannot be written, neither.

        What refuses other splits, protocols, sets and labels is in the second, which takes its place first: a process
        that is killed between the two leaves no row without it.

        Raises:
            UserError: the folder cannot be written.
        """
        columns = COLUMNS + LOOKS * any(row.selected is not None for row in self.rows)
        with csv_beside(Path(folder) / CSV_NAME, [columns, *(row.to_text(columns) for row in self.rows)]):
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
            lines = csv.DictReader(StringIO(read_text(path)))
            rows = tuple(map(Row.from_text, lines))
            if tuple(lines.fieldnames or ()) not in (COLUMNS, COLUMNS + LOOKS):
                raise ValueError(f"its columns are {lines.fieldnames}")
            known = read_json(summary) if summary.is_file() else {"protocols": {}}
            return cls(rows, dict(known["protocols"]), _read_facts(known, rows[-1].protocol if rows else ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise UserError(
                f"{path} is not an evaluation of this program ({error}); move it away, or use another folder"
            ) from error

    def tables(self) -> list[PlainTable]:
        """Return all that the latest evaluation has to show."""
        made = (
            tables.accuracy_table,
            tables.equal_table,
            tables.looks_table,
            tables.robustness_table,
            _costs,
        )
        return [shown for table in made if (shown := table(self)) is not None]

    def plot(self) -> "Figure":
        """Draw the accuracies of the latest evaluation: networks from left to right, a mark for each set."""
        from ldd.evaluation.results.plot import draw_scores  # here: most reports are not drawn

        return draw_scores(self)

    def __repr__(self) -> str:
        """Return one line."""
        sets, networks = len(self.scores()), len(self.networks())
        means = ", ".join(f"{name} {score}" for name, score in self.mean_unseen().items())
        return (
            f"Report({sets} sets, {networks} networks, protocol {self.protocol}, step {self.step}"
            f"{f'; mean of unseen in %: {means}' * bool(means)})"
        )

    def _repr_html_(self) -> str:
        """Return HTML for a notebook."""
        return "".join(table._repr_html_() for table in self.tables())

    def __str__(self) -> str:
        """Return the table of accuracies as plain text: networks down, sets across."""
        console = Console(file=StringIO(), width=_TEXT_WIDTH, color_system=None)
        with console.capture() as captured:
            console.print(tables.accuracy_table(self))
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _costs(report: Report) -> PlainTable:
    return tables.dimensions_table(report).without_constants("bytes", "accuracy")


def _plain(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(of) if isinstance(of, Score) else _plain(of) for name, of in scores.items()}


def _joined(earlier: Facts, later: Facts) -> dict[str, Any]:
    """Return the facts of two evaluations by one protocol: the later one's, and of each set what either says.

    What labelled sets of the earlier one stays, since their rows do.
    """
    each = {name: {**earlier.get(name, {}), **later.get(name, {})} for name in _BY_SET}
    labels = {name: earlier[name] for name in (TEACHER, LABELLER) if name in earlier}
    return {**labels, **later, **{name: merged for name, merged in each.items() if merged}}


def _assembled(evaluations: Mapping[str, Facts], latest: str, *reports: Facts) -> dict[str, Any]:
    """Return the facts of a report: its latest protocol's at the top, and what `reports` say of all evaluations."""
    found = {**evaluations.get(latest, {})}
    if sets := {step: one for facts in reports for step, one in facts.get(SETS, {}).items()}:
        found[SETS] = sets
    if counts := [facts[SUBTASKS] for facts in reports if SUBTASKS in facts]:
        found[SUBTASKS] = counts[-1]
    return {**found, EVALUATIONS: dict(evaluations)} if evaluations else found


def _read_facts(summary: Facts, latest: str) -> dict[str, Any]:
    """Return the facts of an `evaluation.json`; an old one knows only its latest evaluation."""
    facts = {name: value for name, value in summary.items() if name not in _OF_ROWS}
    written_by = summary.get("protocol", {}).get("id")
    found_by_protocol = facts.get(EVALUATIONS) or by_protocol(facts, written_by)
    evaluations = {
        name: {key: dict(value) if key in _BY_SET else value for key, value in found.items()}
        for name, found in dict(found_by_protocol).items()
    }
    return _assembled(evaluations, latest, facts)
