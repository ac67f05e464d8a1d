"""An export on a data-set hub: the set with the exported files, and the card of both."""

import re
from collections.abc import Mapping
from json import dumps
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData

from ldd.artefact.location import FOLDER
from ldd.artefact.manifest import Costs
from ldd.artefact.set import DistilledSet
from ldd.artefact.size import span
from ldd.disk.files import atomic_file
from ldd.disk.hub import SCHEME, Upload, check_repo
from ldd.disk.public import public_configuration
from ldd.errors import UserError

CARD = "README.md"
ENDINGS = {"parquet": "parquet", "webdataset": "tar", "rethinkdc": "parquet"}
"""Formats that hubs read, show and stream, and how their files end."""

_COLUMNS = {
    "parquet": "`image` and `label`",
    "webdataset": "`png` and `cls`",
    "rethinkdc": "`image` and `class_id`",
}
_COUNTED = {"rethinkdc": "`class_id` counts the sorted wnids, from 0"}
_SOFT = {"parquet": ", `soft_label`", "webdataset": ", `soft.npy`"}
_MAX_CLASSES = 100  # rows of the class table; classes.json has all
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def make_card(distilled: DistilledSet, repo: str, form: str) -> str:
    """Return the card of a repository (`user/name`) whose files have a `form` of `ENDINGS`: Markdown, YAML header."""
    header = DatasetCardData(
        license="unknown" if set(distilled.manifest.licences.values()) == {"unknown"} else "other",
        task_categories=["image-classification"],
        size_categories=[_size(len(distilled.images))],
        pretty_name=repo.rpartition("/")[2],
        tags=["dataset-distillation", "latentdd", "synthetic"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": f"data/train-*.{ENDINGS[form]}"}],
            }
        ],
    )
    sections = [
        f"---\n{header.to_yaml()}\n---",
        f"# {_line(repo)}",
        f"{len(distilled.images)} images of {distilled.num_classes} classes, {distilled.image_size} x "
        f"{distilled.image_size} px, made by dataset distillation with latentdd "
        f"{distilled.manifest.package_version}. They stand for a data set when a network is trained; they are not "
        "photographs.",
        _use(distilled, repo, form),
        "## Facts\n\n" + _table(("", ""), _facts(distilled).items()),
        "## Cost\n\n" + _costs(distilled.manifest.ledger),
        "## Classes\n\n" + _classes(distilled),
        _configuration(public_configuration(distilled.manifest.config)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _use(distilled: DistilledSet, repo: str, form: str) -> str:
    mean, std = map(list, (distilled.manifest.normalisation.mean, distilled.manifest.normalisation.std))
    loader = f'datasets.load_dataset("{repo}", split="train")'
    names = _COLUMNS[form]
    soft = _SOFT.get(form, "") * (distilled.soft_labels is not None)
    return (
        f"## Use\n\n```python\nimport datasets\n\nimages = {loader}  # {names}{soft}\n```\n\n"
        f'The set itself, checked and with all that is known of it: `ldd.DistilledSet.load("{SCHEME}{repo}")`, or '
        f"`latentdd evaluate {SCHEME}{repo} --data DATA.yaml --out FOLDER`.\n\n"
        f"{_COUNTED.get(form, 'Labels count the classes below, from 0')}. Networks were given `(x - {mean}) / {std}` "
        "for x in [0, 1]; normalise the real test images with the same numbers."
    )


def _facts(distilled: DistilledSet) -> dict[str, str]:
    manifest = distilled.manifest
    return {
        "images per class": span(distilled.counts),
        "soft labels": "none" if distilled.soft_labels is None else dumps(manifest.labels or "yes"),
        **({"packing": f"{p} x {p} small images in each picture"} if (p := distilled.packing) > 1 else {}),
        "weights": "none" if distilled.weights is None else "yes",
        "made with": ", ".join(manifest.seen_networks) or "no network",
        "training steps": "unknown" if manifest.step is None else str(manifest.step),
        "seed": str(manifest.seed),
        "fingerprint of the test split it was made with": str(manifest.test_split_fingerprint),
        "licence of the prior": manifest.licences["prior"],
        "licence of the data": manifest.licences["data"],
        **{f"sha256 of {name}": digest for name, digest in manifest.sha256.items()},
    }


def _costs(ledger: Costs) -> str:
    sizes = _table(("stored", "bytes"), ((name, f"{count:,}") for name, count in ledger.bytes.items()))
    figures = list(dict.fromkeys(figure for stage in ledger.stages.values() for figure in stage))
    rows = [
        (name, *(_number(stage.get(figure)) for figure in figures)) for name, stage in ledger.stages.items()
    ]
    return sizes + ("\n\n" + _table(("stage", *figures), rows) if rows else "")


def _classes(distilled: DistilledSet) -> str:
    rows = [(i.label, i.wnid, i.name, i.id) for i in distilled.classes[:_MAX_CLASSES]]
    left_out = distilled.num_classes - len(rows)
    note = f"\n\nand {left_out} more, in `classes.json`" if left_out else ""
    return _table(("label", "wnid", "name", "id in its data set"), rows) + note


def _configuration(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return ""
    text = yaml.safe_dump(config, sort_keys=False)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"## How it was made\n\nThe run's configuration (`latentdd fit --config`):\n\n{fence}yaml\n{text}{fence}"


def _table(head: tuple[str, ...], rows: Any) -> str:  # noqa: ANN401 - an iterable of tuples
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_line(cell) for cell in line) + " |" for line in lines)


def _line(value: object) -> str:
    """Return text on one line, without markup of tables and HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f}".removesuffix(".0")


def _size(count: int) -> str:
    return next((name for most, name in _SIZES if count < most), "n>1M")


def check_form(repo: str, form: str) -> None:
    """Raise UserError unless `repo` can name a repository and hubs read files of `form`."""
    if form not in ENDINGS:
        raise UserError(
            f"push_to_hub: hubs do not read --format {form}; choose one of {', '.join(ENDINGS)}, which "
            "datasets.load_dataset reads as they are"
        )
    check_repo(repo, "push_to_hub")


def prepare(distilled: DistilledSet, folder: Path, repo: str, form: str, private: bool) -> Upload:
    """Write the set itself and the card next to the exported files, and return what can be uploaded."""
    distilled.save(folder / FOLDER)
    with atomic_file(folder / CARD) as beside:
        beside.write_text(make_card(distilled, repo, form), encoding="utf-8")
    return Upload(folder, repo, private, replaced=("data/train-*", f"{FOLDER}/*"))
