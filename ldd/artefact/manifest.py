"""The artefact's `manifest.json`: what it must hold, checked value by value, and upgrades of older ones."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeGuard
from unicodedata import category

from ldd import __version__
from ldd.disk.files import read_json, sha256, write_json
from ldd.errors import UserError
from ldd.images import ClassInfo

Manifest = dict[str, Any]

NAME = "manifest.json"
FORMAT_VERSION = 1
UPGRADERS: dict[int, Callable[[Manifest], Manifest]] = {}
"""Version v -> function that turns a manifest of version v into one of v + 1 (keys added, renamed, moved)."""

BYTES = ("images", "codes", "labels", "decoder")
"""What the ledger charges; labels include soft labels and weights."""


def build(
    classes: Sequence[ClassInfo],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    config: Mapping[str, Any] | None,
    seed: int | None,
    test_split_fingerprint: str | None,
    licences: Mapping[str, str],
    seen_networks: Sequence[str],
    stages: Mapping[str, Mapping[str, float | None]],
    prior: Mapping[str, Any] | None = None,
) -> Manifest:
    """A checked manifest of the current version; hashes and bytes are added when the artefact is written.

    Raises:
        UserError: a value of the wrong kind; the message names it.
    """
    if not all(isinstance(info, ClassInfo) for info in classes):
        raise UserError(
            "classes must be ClassInfo(label, id, wnid, name) objects, one a class, ordered by label"
        )
    return check(
        {
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "config": config,
            "seed": seed,
            "classes": [info.to_dict() for info in classes],
            "normalisation": {"mean": list(mean), "std": list(std)},
            "test_split_fingerprint": test_split_fingerprint,
            "licences": {"prior": "unknown", "data": "unknown", **licences},
            "seen_networks": list(seen_networks),
            "sha256": {},
            "ledger": {
                "bytes": dict.fromkeys(BYTES, 0),
                "stages": {name: dict(figures) for name, figures in stages.items()},
            },
            **({} if prior is None else {"prior": dict(prior)}),
        }
    )


def finish(
    manifest: Manifest, classes: Sequence[ClassInfo], hashes: Mapping[str, str], charged: Mapping[str, int]
) -> Manifest:
    """What is written: current version, the hashes of the files beside it, the bytes of their tensors.

    Raises:
        UserError: a fact was taken out of the manifest or changed to another kind of value.
    """
    return check(
        {
            **manifest,
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "classes": [info.to_dict() for info in classes],
            "sha256": dict(hashes),
            "ledger": {**manifest.get("ledger", {}), "bytes": dict(charged)},
        }
    )


def charge(folder: Path, stage: str, figures: Mapping[str, float | None]) -> None:
    """Write a stage's cost into the manifest of a saved set, in the place of what it says of that stage.

    Raises:
        UserError: no manifest, a damaged one, or a folder that cannot be written.
    """
    manifest = read(folder / NAME)
    stages = {**manifest["ledger"]["stages"], stage: dict(figures)}
    write_json(folder / NAME, check({**manifest, "ledger": {**manifest["ledger"], "stages": stages}}))


def find_artefact(path: Path | str) -> Path:
    """The folder with the manifest: `path` itself, or `distilled` in it where `path` is a run's folder.

    Raises:
        UserError: neither holds a manifest.
    """
    path = Path(path)
    for folder in (path, path / "distilled"):
        if (folder / NAME).is_file():
            _refuse_escape(folder / NAME)
            return folder
    if not path.exists():
        raise UserError(f"{path} does not exist; name a distilled set or the folder of a finished run")
    raise UserError(
        f"{path} is no distilled set: neither it nor {path / 'distilled'} holds a {NAME}; name an artefact's "
        "folder or the folder of a finished run"
    )


def verified_files(folder: Path, hashes: Mapping[str, str]) -> dict[str, Path]:
    """The files that a manifest names, all of them inside `folder` and unchanged.

    Raises:
        UserError: a name or a link that leads out of the folder, a missing file, other bytes than written.
    """
    for name, expected in hashes.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
            raise UserError(f"{folder / NAME} names {_shown(name)}, which is no plain file name: refused")
        file = folder / name
        _refuse_escape(file)
        if not file.is_file():
            raise UserError(f"{file} is missing, though the manifest lists it; copy the artefact again")
        try:
            found = sha256(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}); check its permissions") from error
        if found != expected:
            raise UserError(f"{file} is damaged: its sha256 is not the manifest's; copy the artefact again")
    return {name: folder / name for name in hashes}


def _refuse_escape(file: Path) -> None:
    if os.path.dirname(os.path.realpath(file)) != os.path.realpath(file.parent):
        raise UserError(f"{file} is a link out of its folder: refused; put the file itself there")


def read(path: Path) -> Manifest:
    """Read, upgrade and check a manifest.

    Raises:
        UserError: damaged, incomplete, or of a version that is not known here; the message names the file.
    """
    manifest = read_json(path, "copy the artefact again or export it anew")
    try:
        return check(upgrade(manifest))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def upgrade(manifest: object) -> Manifest:
    """Bring a manifest of an older format to the current one.

    Raises:
        UserError: no mapping, no version in it, a newer version, or an older one that has no upgrade path.
    """
    if not isinstance(manifest, dict):
        raise UserError(f"a mapping is needed, got {_shown(manifest)}; this is no manifest of ldd")
    version = manifest.get("format_version")
    if not _whole(version):
        raise UserError(
            f"format_version must be a whole number, got {_shown(version)}; the manifest is damaged"
        )
    if version > FORMAT_VERSION:
        raise UserError(
            f"format_version {_shown(version)} is newer than {FORMAT_VERSION}, the newest that latentdd "
            f"{__version__} reads; upgrade it (pip install --upgrade latentdd)"
        )
    while version < FORMAT_VERSION:
        if version not in UPGRADERS:
            raise UserError(f"format_version {_shown(version)} was never released; the manifest is damaged")
        try:
            manifest = UPGRADERS[version](manifest)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"damaged: cannot be upgraded from format_version {version} ({error!r})"
            ) from error
        version += 1
        manifest["format_version"] = version
    return manifest


def check(manifest: Mapping[str, Any]) -> Manifest:
    """The manifest as JSON gives it back (plain, tuples as lists), each value of the right kind.

    Raises:
        UserError: a missing key or a value of the wrong kind; the message names both.
    """
    missing = [key for key in FIELDS if key not in manifest]
    if missing:
        raise UserError(f"missing {', '.join(missing)}; the manifest is incomplete: export the artefact anew")
    for key, (needed, holds) in {**FIELDS, **OPTIONAL_FIELDS}.items():
        if key in manifest and not holds(manifest[key]):
            raise UserError(f"{key} must be {needed}, got {_shown(manifest[key])}")
    try:
        plain: Manifest = json.loads(json.dumps(manifest, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"config and other facts must be plain JSON values: {error}") from error
    labels = [info["label"] for info in plain["classes"]]
    if labels != list(range(len(labels))):
        raise UserError(
            f"classes must be ordered by label 0..{len(labels) - 1}, got {_shown(labels)}; in another order "
            "every image would carry a wrong name"
        )
    return plain


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# What a value must be. bool is an int to Python, never to us.


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: object) -> TypeGuard[str]:
    # Names and licences are printed: no terminal escapes, no halves of surrogate pairs.
    return isinstance(value, str) and all(c in "\n\t" or category(c) not in ("Cc", "Cs") for c in value)


def _number(value: object) -> TypeGuard[float]:
    return (_whole(value) and abs(value) < 10**18) or (isinstance(value, float) and math.isfinite(value))


def _map(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(_text(k) and holds(v) for k, v in value.items())


def _list(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(holds(item) for item in value)


def _class_info(value: object) -> bool:
    kinds = {field.name: _whole if field.type is int else _text for field in fields(ClassInfo)}
    return isinstance(value, dict) and set(value) == set(kinds) and all(kinds[k](value[k]) for k in kinds)


def _normalisation(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"mean", "std"}:
        return False
    three = all(_list(numbers, _number) and len(numbers) == 3 for numbers in value.values())
    return three and all(std > 0 for std in value["std"])


def _ledger(value: object) -> bool:
    if not isinstance(value, dict) or not {"bytes", "stages"} <= set(value):
        return False
    charged = _map(value["bytes"], lambda n: _whole(n) and n >= 0) and set(BYTES) <= set(value["bytes"])
    figures = _map(value["stages"], lambda stage: _map(stage, lambda n: n is None or _number(n)))
    return charged and figures


def _digest(value: object) -> bool:
    return _text(value) and bool(re.fullmatch("[0-9a-f]{64}", value))


def _prior(value: object) -> bool:
    kinds = {"class_path": _text, "image_size": _count, "floats": _count, "bytes": _count, "sha256": _digest}
    return isinstance(value, dict) and set(value) == set(kinds) and all(kinds[k](v) for k, v in value.items())


def _count(value: object) -> bool:
    return _whole(value) and 0 <= value < 10**18


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format_version": ("a whole number", _whole),
    "package_version": ("text", _text),
    "config": ("a mapping or null", lambda value: value is None or isinstance(value, Mapping)),
    "seed": ("a whole number or null", lambda value: value is None or _whole(value)),
    "classes": (
        "a list of {label, id, wnid, name}, two numbers and two texts each",
        lambda value: _list(value, _class_info) and len(value) > 0,
    ),
    "normalisation": ("{mean, std} with three numbers each, std above 0", _normalisation),
    "test_split_fingerprint": ("text or null", lambda value: value is None or _text(value)),
    "licences": (
        "a mapping of texts with prior and data",
        lambda value: _map(value, _text) and {"prior", "data"} <= set(value),
    ),
    "seen_networks": ("a list of dotted class names", lambda value: _list(value, _text)),
    "sha256": (
        "a mapping from file names to 64 hexadecimal digits",
        lambda value: _map(value, _digest),
    ),
    "ledger": (f"{{bytes: {{{', '.join(BYTES)}}}, stages}} with whole numbers and figures", _ledger),
}
"""Key -> (what it must be, in words; the same as a test). Other keys are kept as they are."""

SUBTASKS = "subtasks"
"""Key for what each part of a merged set was."""

OPTIONAL_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "prior": ("{class_path, image_size, floats, bytes, sha256} of the frozen weights", _prior),
    SUBTASKS: (
        "a list of {classes, seed, step}, classes a list of wnids",
        lambda value: _list(value, lambda part: isinstance(part, dict) and _list(part.get("classes"), _text)),
    ),
}
"""The same for keys that may be missing."""
