"""The command that evaluates a run as it was evaluated, as far as the run's folder tells."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from ldd.errors import UserError
from ldd.evaluation.results.report import Report
from ldd.report.runs import Run
from ldd.students.protocol import Protocol, shipped

SOFT = "_soft"
DATA, LABELS, PROTOCOL = "DATA.yaml", "LABELS.yaml", "PROTOCOL.yaml"
"""Stand for files that the run's folder does not tell of."""


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        text: ready for a shell.
        files: name -> content of those that it names, as far as the run knows them.
        notes: sentences on what it names in capitals, and on what it cannot say.
    """

    text: str
    files: dict[str, str]
    notes: tuple[str, ...] = ()


def evaluation_command(
    run: Run,
    report: Report,
    path: str,
    out: str,
    baselines: Sequence[str],
    budgets: Sequence[int] = (),
) -> Command:
    """`latentdd evaluate` for a set, as a report has it.

    Args:
        run: whose evaluation it is.
        report: by one protocol.
        path: of the set, as the command says it.
        out: folder of the results.
        baselines: names.
        budgets: nested ones.
    """
    files: dict[str, str] = {}
    notes: list[str] = []
    recipe, name = protocol_of(run, report, files, notes)
    words = ["latentdd", "evaluate", path, *_data(run, report, files, notes), "--protocol", name]
    words += ["--repeats", str(1 + max(row.repeat for row in report.rows))]
    words += ["--seed", str(report.rows[-1].seed), *_networks(run, report, recipe, notes)]
    teacher = "teacher" in report.facts or (recipe is not None and recipe.labels == "teacher")
    if teacher or any(SOFT in baseline for baseline in baselines):
        words += ["--labels", labels_of(run, files, notes)]
    words += ["--baselines", ",".join(baselines)]
    if budgets:
        words += ["--budgets", json.dumps(list(budgets), separators=(",", ":"))]
    return Command(shlex.join([*words, "--out", out]), files, tuple(notes))


def protocol_of(
    run: Run, report: Report, files: dict[str, str], notes: list[str]
) -> tuple[Protocol | None, str]:
    """The protocol of a report, if it can be read, and what `--protocol` is given for it.

    A file of the run's recipe is added to `files`; it must still be what the results were made by.
    """
    found, contents = report.protocol, report.protocols[report.protocol]
    own = str((run.config.get("evaluation") or {}).get("protocol") or "")
    for name in dict.fromkeys((*[found] * (found in shipped()), own)):
        try:
            recipe = Protocol.load(name)
            if (recipe.id, recipe.hash) != (found, contents):
                continue
            if name in shipped():
                return recipe, name
            text = Path(name).read_text(encoding="utf-8")
        except (UserError, OSError, ValueError):
            continue
        file = f"protocol-{re.sub(r'[^A-Za-z0-9_.-]', '_', found)}.yaml"
        files[file] = text
        return recipe, file
    notes.append(
        f"{PROTOCOL}: the file of protocol {found} (hash {contents}), which is not in the run's folder."
    )
    return None, PROTOCOL


def data_of(run: Run, files: dict[str, str], notes: list[str]) -> str:
    """The file with the run's data, which is added to `files`; capitals where its configuration has none."""
    if isinstance(own := run.config.get("data"), Mapping):
        files["data.yaml"] = yaml.safe_dump(dict(own), sort_keys=False)
        return "data.yaml"
    notes.append(f"{DATA}: the data, which the run's folder does not tell.")
    return DATA


def labels_of(run: Run, files: dict[str, str], notes: list[str]) -> str:
    """The file with what labelled the run's set, which is added to `files`; capitals where that is not known."""
    if isinstance(own := (run.config.get("model") or {}).get("labels"), Mapping):
        files["labels.yaml"] = yaml.safe_dump(dict(own), sort_keys=False)
        return "labels.yaml"
    known = run.manifest.get("labels") or run.summary.get("teacher") or {}
    whose = f" by {known['network']}" if "network" in known else ""
    notes.append(f"{LABELS}: the settings of the labels{whose}, which the run's folder does not tell.")
    return LABELS


def _data(run: Run, report: Report, files: dict[str, str], notes: list[str]) -> list[str]:
    tested, made = (report.facts.get(name) for name in ("test_split_fingerprint", "test_split_of_the_set"))
    if tested and made and tested != made:
        notes.append(f"{DATA}: the data of the test split {tested}, which is another than the set's.")
        return ["--data", DATA, "--other_data", "true"]
    return ["--data", data_of(run, files, notes)]


def _networks(run: Run, report: Report, recipe: Protocol | None, notes: list[str]) -> list[str]:
    """Options for networks other than all of the protocol's."""
    met = list(dict.fromkeys(row.network for row in report.latest()))
    own = (run.config.get("evaluation") or {}).get("networks") or {}
    if own.keys() == set(met):
        return ["--networks", json.dumps(own)]
    known = {} if recipe is None else recipe.networks
    if known.keys() == set(met):
        return []
    if known and known.keys() >= set(met):
        return ["--networks", json.dumps({name: asdict(known[name]) for name in met})]
    if recipe is not None or own:
        notes.append(
            f"Networks were {', '.join(met)}, not all of them the protocol's: give them as --networks; the run's "
            "folder does not tell their settings."
        )
    return []
