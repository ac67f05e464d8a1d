"""`latentdd inspect`: what a distilled set holds, after checking that it is whole."""

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldd.artefact.set import DistilledSet
from ldd.artefact.size import span
from ldd.images import ClassInfo
from ldd.runs.ending import Ending
from ldd.runs.verb import run_function

_MAX_CLASSES = 20


def inspect(path: str, json: bool = False) -> Ending:
    """Check a distilled set (hashes, class order, format version) and show what it holds.

    Args:
        path: folder of the set, or of the run that made it.
        json: print one JSON object instead of tables.
    """
    distilled = DistilledSet.load(path)
    summary = distilled.summary()
    if json:
        print(dumps({**summary, "sha256_ok": True}))  # a damaged set does not load
        return Ending()
    console = Console()
    console.print(_facts(path, distilled, summary))
    console.print(_classes(distilled.classes))
    return Ending(next=("report", path, "--out", f"{Path(path).name or 'set'}.html"))


def _facts(path: str, distilled: DistilledSet, summary: dict[str, Any]) -> Table:
    table = Table(title=Text(path), show_header=False)
    size = summary["image_size"]
    charged = ", ".join(f"{name} {count:,}" for name, count in summary["ledger"]["bytes"].items() if count)
    rows = {
        "images": f"{summary['num_images']} of {size} x {size} px",
        "classes": str(summary["num_classes"]),
        "images per class": span(distilled.counts),
        "bytes": f"{summary['bytes']:,} ({charged})",
        **{f"storage as {form}": _storage(figures) for form, figures in summary["storage"]["forms"].items()},
        "frozen generator": _generator(summary["storage"]["parts"]["generator"]),
        "packing": f"{distilled.packing} x {distilled.packing} small images in each"
        if distilled.packing > 1
        else "none",
        "re-diffused": f"{len(summary.get('rediffused') or ())} x",
        "codes": ", ".join(f"{name} {tuple(shape)}" for name, shape in summary["codes"].items()) or "none",
        "soft labels": "yes" if summary["soft_labels"] else "no",
        "normalisation": "mean {mean}, std {std}".format(**summary["normalisation"]),
        "made with": ", ".join(summary["seen_networks"]) or "no network",
        "seed": str(summary["seed"]),
        "test split": str(summary["test_split_fingerprint"]),
        "licence of the prior": summary["licences"]["prior"],
        "licence of the data": summary["licences"]["data"],
        **{f"cost of {name}": _cost(stage) for name, stage in summary["ledger"]["stages"].items()},
        "format": f"version {summary['format_version']}, written by latentdd {summary['package_version']}",
        "sha256": "all files as written",
    }
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))  # Text, since names and licences may look like console markup
    return table


def _classes(classes: Sequence[ClassInfo]) -> Table:
    table = Table("label", "id", "wnid", "name")
    for info in classes[:_MAX_CLASSES]:
        table.add_row(*map(Text, (str(info.label), str(info.id), info.wnid, info.name)))
    if len(classes) > _MAX_CLASSES:
        table.caption = f"and {len(classes) - _MAX_CLASSES} more; --json lists all"
    return table


def _storage(figures: dict[str, Any]) -> str:
    with_generator = figures["ipc_equivalents_with_generator"]
    others = [f"{figures['ipc_equivalents_without_labels']:.2f} without labels"]
    if with_generator != figures["ipc_equivalents"]:
        shown = "unknown" if with_generator is None else f"{with_generator:,.2f}"
        others.append(f"{shown} with the frozen generator")
    return (
        f"{figures['floats']:,} floats, {figures['bytes']:,} bytes, {figures['ipc_equivalents']:.2f} IPC-equivalents "
        f"({', '.join(others)}; {figures['ipc_equivalents_in_bytes']:.2f} in bytes)"
    )


def _generator(amount: dict[str, int] | None) -> str:
    return "unknown" if amount is None else f"{amount['floats']:,} floats, {amount['bytes']:,} bytes"


def _cost(stage: dict[str, float | None]) -> str:
    figures = {
        name: "unknown" if value is None else f"{value:,.{0 if float(value).is_integer() else 1}f}"
        for name, value in stage.items()
    }
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    return run_function(inspect, verb, arguments)
