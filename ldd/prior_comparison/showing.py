"""What a comparison of priors shows: a table, a file of each kind, and one picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldd.artefact.picture import MAX_ROWS, draw_grid
from ldd.disk.files import atomic_file, write_json
from ldd.disk.records import to_json
from ldd.evaluation.results.rows import REFERENCE, Score
from ldd.images import ClassInfo
from ldd.prior_comparison.comparing import Compared, Comparison
from ldd.prior_comparison.figures import Likeness
from ldd.report.charts import styles
from ldd.runtime.plain import in_chart
from ldd.runtime.tables import PlainTable

JSON_NAME, TABLE_NAME, PICTURE_NAME = "comparison.json", "comparison.md", "comparison.png"

_MARKS = "osD^v"  # of numbers of images
_SHOWN = 10  # classes in the picture


def table_of(comparison: Comparison) -> PlainTable:
    """Return a row for each prior, and one for random real images."""
    budgets, facts = comparison.budgets, comparison.facts
    head = (
        *("prior", "test images", "steps", "guidance"),
        *(f"accuracy, {budget} a class" for budget in budgets),
        *("coverage", "density", "copies by pixels, %", "copies by features, %", "high frequencies, dB"),
        *(f"{comparison.unit} a sample", "MiB a sample"),
        *(f"{comparison.unit} a step", "MiB a step", "MiB kept an image"),
    )
    rows = [
        (
            name,
            one.test_images[0],
            *_settings(one),
            *_likeness(budgets, one.means, one.figures.likeness),
            *(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in _costs(comparison, name)),
        )
        for name, one in comparison.priors.items()
    ]
    real = (REFERENCE, "", "", "", *_likeness(budgets, comparison.real_means, comparison.real), *("",) * 5)
    return PlainTable(
        f"Priors on {facts['test_images']} test images, protocol {facts['protocol']['id']}",
        "accuracy: top-1 in %, mean ± population standard deviation over repeats, of networks that learned from plain "
        "samples (one draw, of which the smaller sets are the first) or from as many random real images (a new draw "
        "for each repeat); steps, guidance: of samples / of a step of distillation; coverage and density by features; "
        "copies: nearer to a training image than half the usual distance between these; high frequencies: power above "
        "that of real images; MiB: the most that tensors hold at one time, and what the graph of an image keeps for "
        "backward in a step, weights left out; a step: one image a class, distribution matching; test images: whether "
        "the prior has seen them",
        head,
        2,
        (*rows, real),
        frozenset({len(rows)}),
    )


def _costs(comparison: Comparison, name: str) -> tuple[float, ...]:
    figures, (sample, step) = comparison.priors[name].figures, comparison.seconds(name)
    return sample, figures.sampling.peak_mib, step, figures.step.peak_mib, figures.step.kept_mib


def _settings(one: Compared) -> tuple[str, str]:
    sampling, step = one.figures.sampling, one.figures.step
    return (
        f"{sampling.num_steps} / {step.num_steps}",
        f"{sampling.guidance_scale:g} / {step.guidance_scale:g}",
    )


def _likeness(budgets: Sequence[int], means: Mapping[int, Score], found: Likeness) -> Iterator[str]:
    yield from (str(means[budget]) for budget in budgets)
    yield from (f"{found.coverage:.3f}", f"{found.density:.3f}")
    for rate in (found.copies_by_pixels, found.copies_by_features):
        yield "" if rate is None else f"{100 * rate:.1f}"
    yield f"{found.high_frequency_gap:+.1f}"


def summary(comparison: Comparison) -> dict[str, Any]:
    """Return what `comparison.json` holds."""
    priors = {
        name: {
            "prior": one.typed,
            "licence": one.licence,
            "test_images": dict(zip(("seen", "because"), one.test_images, strict=True)),
            "accuracy": _accuracies(one.accuracies, one.means),
            **to_json(one.figures),
        }
        for name, one in comparison.priors.items()
    }
    real = {
        "accuracy": _accuracies(comparison.real_accuracies, comparison.real_means),
        "likeness": to_json(comparison.real),
    }
    return {**comparison.facts, "priors": priors, REFERENCE: real}


def _accuracies(scores: Mapping[int, Mapping[str, Score]], means: Mapping[int, Score]) -> dict[str, Any]:
    return {
        str(budget): {
            "mean": asdict(means[budget]),
            "networks": {network: asdict(score) for network, score in of_budget.items()},
        }
        for budget, of_budget in scores.items()
    }


def write(comparison: Comparison, classes: Sequence[ClassInfo], folder: Path) -> list[Path]:
    """Write `comparison.json`, `.md` and `.png`, and return their paths."""
    files = [folder / name for name in (JSON_NAME, TABLE_NAME, PICTURE_NAME)]
    write_json(files[0], summary(comparison))
    with atomic_file(files[1]) as beside:
        beside.write_text(table_of(comparison).markdown(), encoding="utf-8")
    with atomic_file(files[2]) as beside:
        picture(comparison, classes).savefig(beside, format="png", dpi=110)
    return files


def picture(comparison: Comparison, classes: Sequence[ClassInfo]) -> Figure:
    """Draw accuracies against the seconds of a step, with lines for random real images, and a sample of each class."""
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_accuracies(left, comparison)
    shown = classes[:_SHOWN]
    rows = dict(list(comparison.rows.items())[-MAX_ROWS:])
    labels = torch.arange(len(shown)).repeat(len(rows))
    images = torch.cat([of_classes[: len(shown)] for of_classes in rows.values()])
    right.imshow(np.asarray(draw_grid(images, labels, shown)))
    right.set_axis_off()
    right.set_title(in_chart("from above: " + ", ".join(rows)), fontsize="small", wrap=True)
    return figure


def _draw_accuracies(axes: Axes, comparison: Comparison) -> None:
    looks = styles(list(comparison.priors))
    for budget, mark in zip(comparison.budgets, _MARKS * len(comparison.budgets), strict=False):
        real = comparison.real_means[budget]
        axes.axhline(100 * real.mean, color="grey", linestyle="--", linewidth=1)
        axes.annotate(
            f"{budget} real images a class", (0.01, 100 * real.mean), xycoords=("axes fraction", "data"),
            fontsize="x-small", va="bottom",
        )  # fmt: skip
        for name, one in comparison.priors.items():
            score = one.means[budget]
            axes.errorbar(
                comparison.seconds(name)[1],
                100 * score.mean,
                yerr=100 * score.std if score.n > 1 else None,
                fmt=mark,
                capsize=3,
                color=looks[name][0],
                label=in_chart(f"{name}, {budget} a class"),
            )
    axes.set_xlim(left=0)
    axes.set_xlabel(f"a step of distillation, {comparison.unit}")
    axes.set_ylabel(f"top-1 accuracy in %, protocol {in_chart(comparison.facts['protocol']['id'])}")
    axes.set_title("students of plain samples; bars: one standard deviation", fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
