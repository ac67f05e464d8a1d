"""Runs as a report reads them from their folders, and whether several may stand on one page."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

from ldd.artefact import manifest as manifests
from ldd.artefact.manifest import Manifest
from ldd.artefact.set import DistilledSet
from ldd.disk.files import read_json
from ldd.disk.text import read_text
from ldd.errors import UserError, listed
from ldd.evaluation.results.report import CSV_NAME, JSON_NAME, Report
from ldd.evaluation.results.rows import INITIAL
from ldd.runs import history

_LARGEST = 1e30  # of a loss in a chart, whose axes cannot hold more

Curve = list[tuple[float, float]]
"""Points (step, value)."""


@dataclass(frozen=True)
class Run:
    """A run's folder, or the folder of a distilled set alone.

    Attributes:
        name: tells it from the others of the report.
        folder: of the run.
        distilled: its set, checked.
        evaluations: protocol id -> results of the evaluations by it, with their facts; empty where there is none.
        summary: the content of `evaluation.json`.
    """

    name: str
    folder: Path
    distilled: DistilledSet
    evaluations: Mapping[str, Report]
    summary: Mapping[str, Any]

    @property
    def manifest(self) -> Manifest:
        """The manifest of the set."""
        return self.distilled.manifest

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration; empty where the manifest has none."""
        return self.manifest.config or {}

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the test split that it was evaluated on, else of the one it was made with."""
        found: str | None = self.summary.get("test_split_fingerprint") or self.manifest.test_split_fingerprint
        return found

    @property
    def split(self) -> str | None:
        """The split that students were tested on, of which a folder holds one; None without an evaluation."""
        return next((report.split for report in self.evaluations.values()), None)

    @property
    def objective(self) -> str:
        """Class name of the objective."""
        objective = (self.config.get("model") or {}).get("objective") or {}
        return str(objective.get("class_path", "unknown")).rpartition(".")[2]

    @cached_property
    def initial(self) -> DistilledSet | None:
        """The set before the first step, where the run kept it."""
        folder = self.folder / INITIAL
        if not (folder / manifests.NAME).is_file():
            return None
        manifests.refuse_escape(folder, self.folder)
        return DistilledSet.load(folder)

    @cached_property
    def losses(self) -> Curve:
        """Training loss by step, over all starts of the run."""
        points: dict[float, float] = {}
        for file in sorted(self.folder.glob("logs/version_*/metrics.csv"), key=_version):
            manifests.refuse_escape(file, self.folder)
            try:
                rows = list(csv.DictReader(StringIO(read_text(file))))
            except (OSError, ValueError, csv.Error) as error:
                raise UserError(f"{file} cannot be read ({error}); move it away") from error
            for row in rows:
                try:
                    step, loss = float(row["step"]), float(row["train/loss"])
                except (KeyError, TypeError, ValueError):  # a row of other values, or one cut by a kill
                    continue
                if abs(step) < _LARGEST and abs(loss) < _LARGEST:
                    points[step] = loss
        return sorted(points.items())


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read and check runs.

    Args:
        paths: folders of runs or of distilled sets.

    Raises:
        UserError: no such run, a damaged set or evaluation, or one named twice.
    """
    folders: list[Path] = []
    for path in paths:
        found = manifests.find_artefact(path)
        whole = found.parent if found.name == "distilled" else found
        manifests.refuse_escape(found, whole)
        if whole.resolve() in [folder.resolve() for folder in folders]:
            raise UserError(f"{path} is named twice; name each run once")
        folders.append(whole)
    return [_read(name, folder) for name, folder in zip(_names(folders), folders, strict=True)]


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise unless the numbers of all runs may stand side by side.

    Raises:
        UserError: other test images, other classes, results on different splits or by different protocols of one id;
            both are shown.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.fingerprint != first.fingerprint:
            raise UserError(
                f"{first.name} and {run.name} are of different data: the fingerprint of the test split is "
                f"{first.fingerprint or 'unknown'} for {first.folder} and {run.fingerprint or 'unknown'} for "
                f"{run.folder}; make a report for each"
            )
        wnids = [[info.wnid for info in one.distilled.classes] for one in (first, run)]
        if wnids[0] != wnids[1]:
            raise UserError(
                f"{first.name} and {run.name} are of different classes: {listed(wnids[0])}, and {listed(wnids[1])}; "
                "make a report for each"
            )
    splits = {run.split: run for run in runs if run.split}
    if len(splits) > 1:
        one, other = splits.values()
        raise UserError(
            f"{one.name} was tested on the {one.split} split, and {other.name} on the {other.split} split; make a "
            "report for each"
        )
    hashes: dict[str, tuple[str, Run]] = {}
    for run in runs:
        for name, report in run.evaluations.items():
            found, other = hashes.setdefault(name, (report.protocols[name], run))
            if found != report.protocols[name]:
                raise UserError(
                    f"{other.name} and {run.name} were evaluated by different protocols of one id, {name}: hash "
                    f"{found} and {report.protocols[name]}; their numbers do not belong in one table. Evaluate one of "
                    "them anew"
                )


def _read(name: str, folder: Path) -> Run:
    for file in (CSV_NAME, JSON_NAME, history.NAME):
        manifests.refuse_escape(folder / file)
    whole = Report.read(folder)
    evaluations = {}
    if whole is not None:
        for protocol in dict.fromkeys(row.protocol for row in whole.rows):
            if protocol not in whole.protocols:
                raise UserError(
                    f"{folder / JSON_NAME} lacks the hash of protocol {protocol}; evaluate the run anew"
                )
            evaluations[protocol] = whole.of_protocol(protocol)
    summary = read_json(folder / JSON_NAME) if evaluations and (folder / JSON_NAME).is_file() else {}
    return Run(name, folder, DistilledSet.load(folder), evaluations, summary)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("folders differ")


def _version(file: Path) -> tuple[int, str]:
    number = file.parent.name.rpartition("_")[2]
    return (int(number) if number.isdigit() else 0, str(file))
