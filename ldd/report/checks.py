"""The results of `latentdd check` for a run's set, as tables and pictures of the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldd.artefact import manifest as manifests
from ldd.artefact.identity import identity
from ldd.disk.files import read_json
from ldd.errors import UserError
from ldd.evaluation.checks import CONFUSION_NAME, FOLDER, JSON_NAME, NEIGHBOURS_NAME
from ldd.report.pictures import Picture, picture_of
from ldd.report.runs import Run
from ldd.runtime.tables import PlainTable

MAX_BYTES = 4 * 2**20  # of a picture inside the page
PICTURES = {
    NEIGHBOURS_NAME: "each image next to the nearest real ones of training",
    CONFUSION_NAME: "what students take each class for",
}


@dataclass(frozen=True)
class Checks:
    """The checks of one set."""

    tables: tuple[PlainTable, ...]  # on the images, and on students by class where students were trained
    pictures: tuple[Picture, ...]  # neighbours and confusions
    note: str  # the features that distances are measured in, and pictures that are too large for the page


def checks_of(run: Run) -> Checks | None:
    """Return the checks of a run's set, or None; raise UserError if they are damaged or of another set."""
    folder = _folder(run)
    if folder is None:
        return None
    found = read_json(folder / JSON_NAME)
    try:
        tables = [_images(found)]
        if "confusion" in found:
            tables.append(_classes(found))
        note = f"Features: {found['features']}."
        belongs = found["set"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{folder / JSON_NAME} is not what latentdd check writes ({error!r}); run it again"
        ) from error
    if belongs != identity(run.distilled):
        raise UserError(
            f"{folder} holds the checks of another set than {run.folder} (identity {belongs} and "
            f"{identity(run.distilled)}); run latentdd check again, or remove the folder"
        )
    pictures = []
    for name, text in PICTURES.items():
        file = manifests.refuse_escape(folder / name)
        size = file.stat().st_size if file.is_file() else 0
        if size > MAX_BYTES:
            note += f" {name} ({size // 2**20} MiB) is too large for a page; it lies in {folder}."
        elif size:
            pictures.append(picture_of(file.read_bytes(), name, text))
    return Checks(tuple(tables), tuple(pictures), note)


def _folder(run: Run) -> Path | None:
    """Return the folder of checks: in the run's, or next to a set, where another set's may lie too."""
    if (run.folder / FOLDER / JSON_NAME).is_file():
        manifests.refuse_escape(run.folder / FOLDER / JSON_NAME, run.folder)
        return run.folder / FOLDER
    beside = run.folder.resolve().parent / FOLDER
    if (run.folder / manifests.NAME).is_file() and (beside / JSON_NAME).is_file():
        found = read_json(beside / JSON_NAME)
        if isinstance(found, dict) and found.get("set") == identity(run.distilled):
            return beside
    return None


def _images(found: Mapping[str, Any]) -> PlainTable:
    names, each = tuple(found["images"]), tuple(found["images"].values())
    rows = [
        (
            measure.replace("_", " "),
            *("" if values[measure] is None else f"{values[measure]:.3f}" for values in each),
        )
        for measure in each[0]
    ]
    empty = [""] * (len(names) - 1)
    for space, copies in found["copies"].items():
        among = f"{copies['copies']} of {len(copies['images'])}"
        rows.append((f"copies of a training image, by {space}", among, *empty))
        rows.append(
            (f"distance to the nearest, by {space}", f"{copies['median_ratio']:.2f} of the usual", *empty)
        )
    return PlainTable(
        "Images",
        "Coverage: share of real images with a synthetic one among their neighbours. A copy: nearer to a training "
        f"image than {found['copies']['pixels']['copy_ratio']:g} of the usual distance from one to the next.",
        ("check", *names),
        1,
        tuple(rows),
    )


def _classes(found: Mapping[str, Any]) -> PlainTable:
    confusions = found["confusion"]
    percent = [
        ["" if score is None else f"{100 * score:.1f}" for score in one["per_class"]]
        for one in confusions.values()
    ]
    rows = [(name, *(column[label] for column in percent)) for label, name in enumerate(found["classes"])]
    rows.append(("all", *(f"{100 * one['accuracy']:.1f}" for one in confusions.values())))
    return PlainTable(
        f"Accuracy of each class in %, protocol {found['protocol']['id']}",
        f"Test split; students of each network: {next(iter(confusions.values()))['students']}.",
        ("class", *confusions),
        1,
        tuple(rows),
        frozenset({len(rows) - 1}),
    )
