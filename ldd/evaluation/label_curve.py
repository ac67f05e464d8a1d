"""Accuracy over bytes, for one set with its soft labels stored in every form."""

import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure

from ldd.artefact import soft_labels
from ldd.artefact.set import DistilledSet
from ldd.artefact.soft_labels import Precision
from ldd.disk.files import atomic_file, write_csv
from ldd.errors import UserError
from ldd.evaluation.baselines.stored import StoredSet
from ldd.evaluation.comparison import compare
from ldd.evaluation.request import Request
from ldd.evaluation.results.rows import DISTILLED, Score
from ldd.labels.base import Labeller
from ldd.runtime.plain import in_chart

CSV_NAME, PLOT_NAME = "label_curve.csv", "label_curve.png"
TOP_K = (1, 2, 5, 10)
"""How many of the largest probabilities are kept, where there are more classes; all are kept too."""


@dataclass(frozen=True)
class Point:
    """One form of the labels: `hard`, or precision and number kept, such as `int8 top 5`.

    Attributes:
        label_bytes: of all labels, hard ones included.
        bytes: of the whole set, as students use it.
        score: mean over networks, over the repeats.
    """

    form: str
    label_bytes: int
    bytes: int
    score: Score


def check_curve(request: Request) -> None:
    """Raise if a curve cannot be drawn under the protocol of `request`."""
    if request.protocol.has_teacher:
        raise UserError(
            f"protocol ({request.protocol.id}) has a teacher's labels; a curve needs one with the set's own labels"
        )


def label_curve(distilled: DistilledSet, labeller: Labeller, request: Request) -> list[Point]:
    """Train students on a set with hard labels, and with the labeller's in each form; points in the order of bytes.

    The points differ in their labels alone: images, networks and draws are the same.
    """
    check_curve(request)
    forms = _forms(distilled, labeller)
    others = [StoredSet(name, part) for name, part in forms.items() if name != "hard"]
    report = compare(forms["hard"], replace(request, baselines=others, labeller=labeller))
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


def _forms(distilled: DistilledSet, labeller: Labeller) -> dict[str, DistilledSet]:
    """Return the set with its labels in each form, by the name of the form."""
    distilled.refuse_packed("labelling")
    plain = replace(distilled, soft_labels=None, label_top_k=None)
    exact = labeller.probabilities(distilled.images)
    forms = {"hard": plain}
    for precision in get_args(Precision):
        for top_k in (*(k for k in TOP_K if k < distilled.num_classes), None):
            name = f"{precision} {'all' if top_k is None else f'top {top_k}'}"
            labels = soft_labels.quantise(exact, top_k, precision)
            forms[name] = replace(plain, soft_labels=labels, label_top_k=top_k)
    return forms


def write_curve(points: Sequence[Point], folder: Path, title: str) -> None:
    """Write `label_curve.csv` and `label_curve.png`."""
    rows = [(one.form, one.label_bytes, one.bytes, *astuple(one.score)) for one in points]
    write_csv(folder / CSV_NAME, [("form", "label_bytes", "bytes", "mean", "std", "n"), *rows])
    with atomic_file(folder / PLOT_NAME) as beside:
        draw_curve(points, title).savefig(beside, format="png", dpi=150)


def draw_curve(points: Sequence[Point], title: str) -> Figure:
    """Draw mean accuracy in % over bytes of labels, a line for each precision, and one for hard labels."""
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
    plane.set_title(in_chart(title), fontsize="small")
    plane.legend()
    return figure
