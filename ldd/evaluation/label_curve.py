"""Accuracy against bytes: one set with its soft labels stored in every form."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure

from ldd.artefact import soft_labels
from ldd.artefact.set import DistilledSet
from ldd.artefact.soft_labels import Precision
from ldd.data.real import EvaluationData
from ldd.disk.files import atomic_file
from ldd.evaluation.baselines.stored import StoredSet
from ldd.evaluation.comparison import evaluate
from ldd.evaluation.results.rows import DISTILLED, Score
from ldd.labels.base import Labeller
from ldd.students.protocol import Protocol
from ldd.students.workers import NumWorkers

CSV_NAME, PLOT_NAME = "label_curve.csv", "label_curve.png"
TOP_K = (1, 2, 5, 10)
"""Largest probabilities that are kept, as far as there are more classes; and all."""


@dataclass(frozen=True)
class Point:
    """One form of the labels.

    Attributes:
        form: `hard`, or precision and number kept, such as `int8 top 5`.
        label_bytes: of all labels, hard ones included.
        bytes: of the whole set, as students use it.
        score: mean over networks, over the repeats.
    """

    form: str
    label_bytes: int
    bytes: int
    score: Score


def label_curve(
    distilled: DistilledSet,
    labeller: Labeller,
    data: EvaluationData,
    protocol: Protocol,
    repeats: int,
    seed: int,
    *,
    records: Path | None = None,
    num_workers: NumWorkers = "auto",
) -> list[Point]:
    """Students on the set with hard labels, and with the labeller's in each precision and number, by their bytes.

    The points differ in their labels alone: images, networks and draws are the same.

    Args:
        distilled: its own soft labels, if any, are not used.
        labeller: whose; its own form is not used.
        data: real images, set up.
        protocol: with the labels of the set.
        repeats: students of each network and form.
        seed: of everything random.
        records: folder in which tested students are kept.
        num_workers: worker processes on a CPU.

    Raises:
        UserError: as `evaluate`.
    """
    plain = replace(distilled, soft_labels=None, label_top_k=None)
    exact = labeller.probabilities(distilled.images)
    forms = {"hard": plain}
    for precision in get_args(Precision):
        for top_k in (*(k for k in TOP_K if k < distilled.num_classes), None):
            name = f"{precision} {'all' if top_k is None else f'top {top_k}'}"
            labels = soft_labels.quantise(exact, top_k, precision)
            forms[name] = replace(plain, soft_labels=labels, label_top_k=top_k)
    others = [StoredSet(name, part) for name, part in forms.items() if name != "hard"]
    report = evaluate(
        plain,
        None,
        data,
        protocol,
        repeats,
        seed,
        baselines=others,
        labeller=labeller,
        records=records,
        num_workers=num_workers,
    )
    accuracies: dict[str, dict[int, list[float]]] = {}
    for row in report.rows:
        name = "hard" if row.set == DISTILLED else row.set
        accuracies.setdefault(name, {}).setdefault(row.repeat, []).append(row.accuracy)
    return [
        Point(
            name,
            part.storage.labels.bytes,
            part.storage.total().bytes,
            Score.of(statistics.fmean(values) for values in accuracies[name].values()),
        )
        for name, part in sorted(forms.items(), key=lambda item: item[1].storage.labels.bytes)
    ]


def write_curve(points: Sequence[Point], folder: Path, title: str) -> None:
    """Write `label_curve.csv` and `label_curve.png`.

    Raises:
        UserError: the folder cannot be written.
    """
    with atomic_file(folder / CSV_NAME) as beside, beside.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["form", "label_bytes", "bytes", "mean", "std", "n"])
        for point in points:
            score = point.score
            lines.writerow([point.form, point.label_bytes, point.bytes, score.mean, score.std, score.n])
    with atomic_file(folder / PLOT_NAME) as beside:
        draw_curve(points, title).savefig(beside, format="png", dpi=150)


def draw_curve(points: Sequence[Point], title: str) -> Figure:
    """Mean accuracy in % over bytes of labels, a line for each precision; hard labels as a horizontal line."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    plane = figure.subplots()
    for precision in get_args(Precision):
        own = [point for point in points if point.form.startswith(precision)]
        plane.errorbar(
            [point.label_bytes for point in own],
            [100 * point.score.mean for point in own],
            yerr=[100 * point.score.std for point in own],
            fmt="o-",
            capsize=4,
            label=precision,
        )
    for point in points:
        if point.form == "hard":
            plane.axhline(100 * point.score.mean, color="grey", linestyle="--", label="hard labels")
    plane.set_xscale("log")
    plane.set_xlabel("bytes of labels, hard ones included")
    plane.set_ylabel("mean top-1 accuracy in %")
    plane.set_title(title, fontsize="small")
    plane.legend()
    return figure
