"""The report as one self-contained HTML file: no network, no script, no other file."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ldd import __version__
from ldd.disk.files import atomic_file
from ldd.errors import UserError
from ldd.evaluation.results.report import JSON_NAME
from ldd.evaluation.results.rows import DISTILLED, REFERENCE
from ldd.evaluation.results.scores import MEAN_UNSEEN
from ldd.report.checks import checks_of
from ldd.report.commands import again, lacking
from ldd.report.pictures import gallery
from ldd.report.runs import Run, check_comparable
from ldd.report.tables import byte_table, compared, cost_table, judged


def write_report(runs: Sequence[Run], out: Path | str) -> None:
    """Write the page, as a whole or not at all. The same runs give the same bytes.

    Args:
        runs: at least one.
        out: the HTML file.

    Raises:
        UserError: runs that must not stand side by side, checks of another set than the run's, a damaged record of
            commands, or a file that cannot be written.
    """
    check_comparable(runs)
    try:
        page = _page(runs)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        files_of = ", ".join(f"{run.folder / JSON_NAME} and the manifest of its set" for run in runs)
        raise UserError(
            f"a value in {files_of} is of another kind than latentdd writes ({error!r}); restore the file, or evaluate "
            "anew"
        ) from error
    with atomic_file(out) as beside:
        beside.write_text(page, encoding="utf-8")


def _page(runs: Sequence[Run]) -> str:
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("ldd.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        version=__version__,
        runs=runs,
        data=_data(runs[0]),
        charts=_charts(runs),
        judged=judged(runs),
        lacking=[one for run in runs for one in lacking(run)],
        galleries=[
            (run, gallery(run.distilled), gallery(run.initial) if run.initial else None) for run in runs
        ],
        checks=[(run, found) for run in runs if (found := checks_of(run))],
        ledger=[byte_table(runs), cost_table(runs)],
        facts={run.name: _facts(run) for run in runs},
        recipes={run.name: again(run) for run in runs},
    )


def _data(run: Run) -> dict[str, str]:
    classes = run.distilled.classes
    names = ", ".join(info.name for info in classes[:20]) + (", ..." if len(classes) > 20 else "")
    return {
        "classes": f"{len(classes)}: {names}",
        "test split": run.fingerprint or "unknown",
        "tested on": f"{run.summary['test_images']:,} images of the {run.split} split"
        if "test_images" in run.summary
        else "unknown",
        "licence of the data": run.manifest.licences["data"],
    }


def _charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return title, drawing and legend of each chart that the runs have points for."""
    if not any(run.evaluations or run.losses for run in runs):
        return []
    from ldd.report.charts import bar_chart, line_chart, styles  # here: matplotlib takes half a second

    charts: list[dict[str, Any]] = []
    for number, protocol in enumerate(dict.fromkeys(name for run in runs for name in run.evaluations)):
        evaluated = [run for run in runs if protocol in run.evaluations]
        scores = [(run.name, compared(run.evaluations[protocol])) for run in evaluated]
        looks = styles((DISTILLED, REFERENCE))
        looks = {name: looks[name] for name in looks if any(name in found for _, found in scores)}
        measured = f"top-1 accuracy in % ({evaluated[0].split} split)"
        drawn = bar_chart(f"scores{number}", scores, looks, measured)
        charts.append(
            _chart(f"Accuracy by protocol {protocol} (mean of unseen networks, ± one std)", drawn, looks)
        )
        history = {
            run.name: [
                (float(entry["step"]), 100 * entry[f"val/accuracy/{MEAN_UNSEEN}"])
                for entry in run.evaluations[protocol].summary()["history"]
                if f"val/accuracy/{MEAN_UNSEEN}" in entry
            ]
            for run in evaluated
        }
        if any(len(points) > 1 for points in history.values()):
            history = {name: points for name, points in history.items() if points}
            looks = styles(list(history))
            drawn = line_chart(f"history{number}", history, looks, measured)
            charts.append(_chart(f"Accuracy over training steps, protocol {protocol}", drawn, looks))
    for number, objective in enumerate(dict.fromkeys(run.objective for run in runs if run.losses)):
        # Losses of different objectives share no unit.
        curves = {run.name: run.losses for run in runs if run.objective == objective and run.losses}
        looks = styles(list(curves))
        charts.append(
            _chart(f"Loss of {objective}", line_chart(f"loss{number}", curves, looks, "loss"), looks)
        )
    return charts


def _chart(title: str, drawn: str, looks: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    return {"title": title, "drawing": Markup(drawn), "legend": looks}


def _facts(run: Run) -> dict[str, str]:
    manifest = run.manifest
    prior = ((run.config.get("model") or {}).get("prior") or {}).get("class_path", "unknown")
    facts = {
        "prior": str(prior).rpartition(".")[2],
        "objective": run.objective,
        "training steps": str("unknown" if manifest.step is None else manifest.step),
        "seed": str(manifest.seed),
        "image size": f"{run.distilled.image_size} px",
        "soft labels": "no" if run.distilled.soft_labels is None else "yes",
        "made with": ", ".join(manifest.seen_networks) or "no network",
        "test split it was made with": str(manifest.test_split_fingerprint),
        "licence of the prior": manifest.licences["prior"],
        "written by": f"latentdd {manifest.package_version}",
        "images.safetensors": f"sha256 {manifest.sha256['images.safetensors']}",
    }
    if manifest.rediffused:
        facts["re-diffused"] = (
            f"{len(manifest.rediffused)} x, last by {manifest.rediffused[-1]['prior']['class_path']}"
        )
    if imported := manifest.imported:
        facts["imported from"] = f"{imported['form']}; {imported['normalisation']}"
    return facts
