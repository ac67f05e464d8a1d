"""Baselines at equal budgets that an evaluation lacks, and the command that adds them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from ldd.evaluation.equal import candidates
from ldd.evaluation.facts import LEFT_OUT
from ldd.evaluation.report import DISTILLED_HARD, Report
from ldd.report.runs import Run

_SOFT, _BYTES, _SAMPLES = "_soft", "_bytes", "prior_samples"


@dataclass(frozen=True)
class Lacking:
    """Of one run's evaluation by one protocol.

    Attributes:
        sentence: which.
        command: adds them to the run's own evaluation.
        files: name -> content of those that the command names, as far as the run knows them.
    """

    sentence: str
    command: str
    files: dict[str, str]


def lacking(run: Run) -> list[Lacking]:
    """One for each protocol of the run by which a baseline is missing that can be had, as far as its folder tells."""
    found = []
    for protocol, report in run.evaluations.items():
        missing = missing_baselines(run, report)
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            sentence = (
                f"{run.name}, protocol {protocol}: {_listed(missing)} {verb} missing for an equal comparison."
            )
            command, files = _command(run, protocol, report, missing)
            found.append(Lacking(sentence, command, files))
    return found


def missing_baselines(run: Run, report: Report) -> list[str]:
    """Names of baselines that have no row of the latest step, and could have.

    Soft labels are wanted where students learned from the set's own, samples of the prior where codes hold conditions
    of its classes. What evaluations by the protocol left out is not asked for again, unless all that it needs is the
    labels.
    """
    sets = {row.set for row in report.latest()}
    left_out = report.facts.get(LEFT_OUT, {})
    sampled = "conditioning" in (run.distilled.codes or {})
    images_paid = run.distilled.storage.total().bytes // (3 * run.distilled.image_size**2 + 8)
    names = [part.name for part in candidates(run.distilled, soft=DISTILLED_HARD in sets)]
    return [
        name
        for name in names
        if name not in sets
        and (sampled or not name.startswith(_SAMPLES))
        and (images_paid or _BYTES not in name)
        and (name not in left_out or (name.endswith(_SOFT) and name.removesuffix(_SOFT) not in left_out))
    ]


def _command(run: Run, protocol: str, report: Report, missing: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The command and the files that it names; in capitals those of which the run knows nothing."""
    files: dict[str, str] = {}
    data, labels = "DATA.yaml", "LABELS.yaml"
    if isinstance(own := run.config.get("data"), Mapping):
        data, files["data.yaml"] = "data.yaml", yaml.safe_dump(dict(own), sort_keys=False)
    words = ["latentdd", "evaluate", str(run.folder), "--data", data, "--protocol", protocol]
    words += [
        "--repeats",
        str(1 + max(row.repeat for row in report.rows)),
        "--seed",
        str(report.rows[-1].seed),
    ]
    networks = (run.config.get("evaluation") or {}).get("networks") or {}
    if networks.keys() == {row.network for row in report.latest()}:
        words += ["--networks", json.dumps(networks)]
    if any(name.endswith(_SOFT) for name in missing):
        if isinstance(own := (run.config.get("model") or {}).get("labels"), Mapping):
            labels, files["labels.yaml"] = "labels.yaml", yaml.safe_dump(dict(own), sort_keys=False)
        words += ["--labels", labels]
    words += ["--baselines", ",".join(missing), "--out", str(run.folder)]
    return shlex.join(words), files


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
