"""The tables of a report: accuracies by protocol, bytes of each set, and the cost of each stage."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ldd.artefact.manifest import BYTES
from ldd.artefact.size import span
from ldd.evaluation.results.report import LEFT_OUT, Report
from ldd.evaluation.results.rows import DISTILLED, REFERENCE, Score
from ldd.evaluation.results.scores import EVALUATIONS, MEAN_UNSEEN
from ldd.evaluation.results.tables import (
    DIFFER,
    UNITS,
    dimensions_table,
    equal_table,
    looks_table,
    robustness_table,
)
from ldd.report.runs import Run
from ldd.runtime.ledger import DECODES, EVALUATE, PEAK, SECONDS, STEPS, total, whole
from ldd.runtime.progress import duration
from ldd.runtime.tables import PlainTable, of_runs


@dataclass(frozen=True)
class Judged:
    """All evaluations by one protocol, as the page shows them."""

    protocol: str
    tables: tuple[PlainTable, ...]  # accuracies; storage and cost; robust scores; ways to report a student
    left_out: dict[str, dict[str, str]]  # name of a run -> name of a baseline that could not be had -> why


def judged(runs: Sequence[Run]) -> list[Judged]:
    """Return one item for each protocol id, with all sets of all runs that were evaluated by it."""
    found = []
    for protocol in dict.fromkeys(name for run in runs for name in run.evaluations):
        reports = {run.name: run.evaluations[protocol] for run in runs if protocol in run.evaluations}
        shown = [_accuracies(protocol, reports)]
        for title, made in _BESIDE.items():
            tables = [(name, table) for name, one in reports.items() if (table := made(one)) and table.rows]
            if tables:
                split = next(iter(reports.values())).split
                shown.append(of_runs(f"{title}, {split} split, protocol {protocol}", tables))
        left_out = {name: dict(why) for name, one in reports.items() if (why := one.facts.get(LEFT_OUT))}
        found.append(Judged(protocol, tuple(shown), left_out))
    return found


_BESIDE: dict[str, Callable[[Report], PlainTable | None]] = {
    "Equal images and equal bytes, kept apart": equal_table,
    "Storage, training cost and recovered accuracy of each evaluated set": dimensions_table,
    "Label- and augmentation-robust scores": robustness_table,
    "Three ways to report a student, one of them chosen on the test images; top-1 in %": looks_table,
}


def _accuracies(protocol: str, by_run: Mapping[str, Report]) -> PlainTable:
    reports = list(by_run.values())
    networks = list(
        dict.fromkeys(network for report in reports for of in report.scores().values() for network in of)
    )
    seen = {row.network for report in reports for row in report.latest() if not row.unseen}
    rows = []
    for run, report in by_run.items():
        means, gains = report.mean_unseen(), report.gains()
        for name, scores in report.scores().items():
            gain = f"{100 * gains[MEAN_UNSEEN]:+.1f}" if name == "distilled" and MEAN_UNSEEN in gains else ""
            cells = [str(scores[network]) if network in scores else "" for network in networks]
            rows.append((run, name, str(report.step), *cells, str(means.get(name, "")), gain))
    repeats = sorted(
        {score.n for report in reports for of in report.scores().values() for score in of.values()}
    )
    return PlainTable(
        f"Top-1 accuracy in %, protocol {protocol}",
        f"{reports[0].split.capitalize()} split, mean ± population standard deviation over repeats "
        f"({_numbers(repeats)} of each network). Gain: "
        "distilled less random_real, mean of unseen networks that both met. "
        f"Protocol hash {reports[0].protocols[protocol]}."
        + f" In a run, {DIFFER}."
        * any(report.means_differ() for report in reports),
        (
            "run",
            "set",
            "step",
            *(f"{name} (seen)" if name in seen else name for name in networks),
            "mean of unseen",
            "gain",
        ),
        2,
        tuple(rows),
    )


def compared(report: Report) -> dict[str, Score]:
    """Return the means of the distilled set and of random real images over the unseen networks that met both.

    Where all networks were seen, the means are over all of them. Where no unseen network met both sets, one set stands
    alone: the distilled one, else random real images.
    """
    means = report.mean_unseen(report.common_unseen(DISTILLED, REFERENCE) or None)
    if not means:
        return {
            name: Score.of([statistics.fmean(score.mean for score in of_set.values())])
            for name in (DISTILLED, REFERENCE)
            if (of_set := report.scores().get(name))
        }
    found = {name: means[name] for name in (DISTILLED, REFERENCE) if name in means}
    both = report.common_unseen(DISTILLED, REFERENCE)
    return found if both else dict(list(found.items())[:1])


def byte_table(runs: Sequence[Run]) -> PlainTable:
    """Return what each set stores."""
    rows = []
    for run in runs:
        charged, storage = run.distilled.bytes, run.distilled.storage
        rows.append(
            (
                run.name,
                span(run.distilled.unpacked().counts),
                f"{storage.units(None).pixels:,.0f}",
                f"{storage.units(None).bytes:,.0f}",
                *(f"{charged[name]:,}" for name in BYTES),
                f"{sum(charged.values()):,}",
                f"{storage.images_per_class(storage.total()):.2f}",
            )
        )
    return PlainTable(
        "Bytes of each set",
        "Labels include soft labels and weights. IPC-equivalents: numbers that a student needs, divided by classes x 3 "
        "x pixels.",
        ("run", *UNITS, *BYTES, "in all", "IPC-equivalents"),
        1,
        tuple(rows),
    )


def cost_table(runs: Sequence[Run]) -> PlainTable:
    """Return what each stage of each run took, with sums for each run and for all."""
    rows: list[tuple[str, ...]] = []
    strong: list[int] = []
    all_stages: list[Mapping[str, Mapping[str, float | None]]] = []
    for run in runs:
        stages = {**run.manifest.ledger.stages, **_evaluations(run)}
        all_stages.append(stages)
        rows += [(run.name, name, *_figures(figures)) for name, figures in stages.items()]
        if len(stages) > 1:
            strong.append(len(rows))
            rows.append((run.name, "in all", *_figures(whole(stages.values()))))
    if len(runs) > 1:
        for name, figures in total(all_stages).items():
            rows.append(("all runs", name, *_figures(figures)))
        strong.append(len(rows))
        rows.append(("all runs", "in all", *_figures(whole(total(all_stages).values()))))
    return PlainTable(
        "Cost of each stage",
        "Peak memory: of the process (of the device with a GPU) up to the end of the stage. Decodes: images decoded "
        "with their graph while distilling, without it elsewhere. Unknown: what the run did not record.",
        ("run", "stage", "time", "peak memory", "steps", "decodes"),
        2,
        tuple(rows),
        frozenset(strong),
    )


def _evaluations(run: Run) -> dict[str, Mapping[str, float | None]]:
    """Return all evaluations that lie in the run's folder, whichever command made them."""
    if not run.evaluations:
        return {}
    rows = tuple(row for report in run.evaluations.values() for row in report.rows)
    report = Report(rows, {}, {EVALUATIONS: {name: found.facts for name, found in run.evaluations.items()}})
    known = run.manifest.ledger.stages.get(EVALUATE, {})
    return {EVALUATE: {**({PEAK: known[PEAK]} if PEAK in known else {}), **report.spent()}}


def _figures(figures: Mapping[str, float | None]) -> tuple[str, ...]:
    shown: dict[str, Callable[[float], str]] = {
        SECONDS: duration,
        PEAK: "{:,.0f} MiB".format,
        STEPS: "{:,.0f}".format,
        DECODES: "{:,.0f}".format,
    }
    known = {
        name: "unknown" if (value := figures[name]) is None else shown[name](value)
        for name in shown
        if name in figures
    }
    return tuple(known.get(name, "") for name in shown)


def _numbers(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
