"""The artefact's `manifest.json`: its fields, and how it is found, upgraded, checked and written."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypedDict

from torch import Tensor

from ldd import __version__
from ldd.artefact.location import FOLDER, MANIFEST, located
from ldd.artefact.uploads import Sent
from ldd.disk.files import read_json, sha256, write_json
from ldd.disk.public import public_configuration
from ldd.disk.records import REST, parse, shown, to_json
from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.runtime.ledger import Figures, Stages

NAME = MANIFEST
FORMAT_VERSION = 1
UPGRADERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Version v -> function that turns a manifest of version v into one of v + 1 (keys added, renamed, moved)."""

BYTES = ("images", "codes", "labels", "decoder")
"""What the ledger charges; labels include soft labels and weights."""

RESUMED = "resumed.json"
"""File in a run's folder: the settings that it was resumed with and had not begun with."""

_MOST_HOLES = 2**30  # bytes

_CURE = "copy the artefact again or export it anew"


@dataclass(frozen=True)
class Normalisation:
    """What networks subtract from images in [0, 1] and divide by, per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise UserError(f"std must be above 0, got {list(self.std)}")


@dataclass(frozen=True)
class Costs:
    """The ledger: bytes of the stored tensors, and what each stage took (see `ldd.runtime.ledger`)."""

    bytes: dict[str, int]
    stages: dict[str, dict[str, float | None]]
    others: dict[str, Any] = field(default_factory=dict, metadata=REST)

    def __post_init__(self) -> None:
        if missing := set(BYTES) - set(self.bytes):
            raise UserError(f"bytes must have {', '.join(BYTES)}, without {', '.join(sorted(missing))}")
        _check_counts(self.bytes)


@dataclass(frozen=True)
class FrozenWeights:
    """Weights of the prior that are not trained with the codes (see `ldd.artefact.identity.identify`)."""

    class_path: str
    image_size: int
    floats: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _check_counts({name: getattr(self, name) for name in ("image_size", "floats", "bytes")})
        _check_digest("sha256", self.sha256)


@dataclass(frozen=True)
class Subtask:
    """What a part of a merged set was: wnids of its classes, seed, training steps, classes that it learned besides."""

    classes: tuple[str, ...]
    seed: int | None
    step: int | None
    others: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Resumption:
    """A run that went on with other settings: from which training step, and what was changed."""

    step: int
    changes: tuple[str, ...]


class Facts(TypedDict, total=False):
    """What a new set says of itself, see `DistilledSet.from_images`."""

    mean: Sequence[float]
    std: Sequence[float]
    config: Mapping[str, Any] | None
    seed: int | None
    test_split_fingerprint: str | None
    licences: Mapping[str, str] | None
    seen_networks: Sequence[str]
    stages: Stages | None
    prior: Mapping[str, Any] | None
    packing: int | None


@dataclass(frozen=True, eq=False)
class Manifest(Mapping[str, Any]):
    """The facts of a distilled set. As a mapping it reads like its file: `manifest["normalisation"]["mean"]`.

    Made by `of`, `read` and `replaced`, which check every value.

    Attributes:
        format_version: of the file.
        package_version: which wrote it.
        config: of the run, as resolved; in a file without local paths (see `ldd.disk.public`).
        seed: of the run.
        classes: ordered by label.
        normalisation: the same for real and synthetic images.
        test_split_fingerprint: of the test images that the set has not seen, by names and sizes.
        licences: of `prior` and `data`.
        seen_networks: dotted names of the networks that took part: they matched the images in at least one step,
            guided or chose where the codes start, scored the real images for a pruner, or gave the soft labels.
        sha256: of each file next to the manifest.
        ledger: what the set stores and cost.
        prior: the frozen weights that the codes need.
        step: training steps of the codes.
        pruning: what was left out of the real images, and by what.
        subtasks: what the parts of a merged set were.
        joint_steps: training steps of all parts together after the merge; None for none.
        imported: form and treatment of the files of another program, or of an upload of codes.
        sent: what the files of that upload hold.
        labels: where soft labels come from.
        budget: images per class that were taken of a larger set.
        data_fingerprints: of the real images by contents: of each split and of the core-set, and their `format`.
        packing: columns and rows of the grid of small images that each stored image is; None where it is one image.
        rediffused: how often a diffusion model has made the images anew: its weights, settings and seed each time.
        matmul_precision: of products of float32 matrices, see `ldd.runtime.precision`; None for exact ones.
        resumed: how often, from which step, and which settings were then changed, as `name: then -> now`.
        others: what another version added.
    """

    format_version: int
    package_version: str
    config: dict[str, Any] | None
    seed: int | None
    classes: list[ClassInfo]
    normalisation: Normalisation
    test_split_fingerprint: str | None
    licences: dict[str, str]
    seen_networks: list[str]
    sha256: dict[str, str]
    ledger: Costs
    prior: FrozenWeights | None = None
    step: int | None = None
    pruning: dict[str, Any] | None = None
    subtasks: list[Subtask] | None = None
    joint_steps: int | None = None
    imported: dict[str, Any] | None = None
    sent: Sent | None = None
    labels: dict[str, Any] | None = None
    budget: int | None = None
    data_fingerprints: dict[str, str] | None = None
    packing: int | None = None
    rediffused: list[dict[str, Any]] | None = None
    matmul_precision: str | None = None
    resumed: list[Resumption] | None = None
    others: dict[str, Any] = field(default_factory=dict, metadata=REST)

    def __post_init__(self) -> None:
        labels = [info.label for info in self.classes]
        if not labels:
            raise UserError("classes must be a list of at least one class, got []")
        if labels != list(range(len(labels))):
            raise UserError(
                f"classes must be ordered by label 0..{len(labels) - 1}, got {shown(labels)}; in another order "
                "every image would carry a wrong name"
            )
        if not {"prior", "data"} <= set(self.licences):
            raise UserError(f"licences must have prior and data, got {shown(self.licences)}")
        for name, digest in self.sha256.items():
            _check_digest(f"sha256 of {shown(name)}", digest)

    @classmethod
    def of(cls, classes: Sequence[ClassInfo], facts: Facts) -> Self:
        """Return the manifest of a new set; hashes and bytes follow when it is saved."""
        if not all(isinstance(info, ClassInfo) for info in classes):
            raise UserError(
                "classes must be ClassInfo(label, id, wnid, name) objects, one a class, ordered by label"
            )
        grey = (0.5, 0.5, 0.5)
        new = {
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "config": facts.get("config"),
            "seed": facts.get("seed"),
            "classes": classes,
            "normalisation": {"mean": facts.get("mean", grey), "std": facts.get("std", grey)},
            "test_split_fingerprint": facts.get("test_split_fingerprint"),
            "licences": {"prior": "unknown", "data": "unknown", **(facts.get("licences") or {})},
            "seen_networks": facts.get("seen_networks", ()),
            "sha256": {},
            "ledger": {"bytes": dict.fromkeys(BYTES, 0), "stages": {}},
            "prior": facts.get("prior"),
            "packing": facts.get("packing"),
        }
        return parse(cls, new).charged(facts.get("stages") or {})

    def replaced(self, **changes: Any) -> Self:  # noqa: ANN401 - values of any field
        """Return the manifest with other values of some fields, checked."""
        if unknown := changes.keys() - {one.name for one in fields(self)}:
            raise TypeError(f"a manifest has no field {', '.join(sorted(unknown))}")
        return parse(type(self), {**to_json(self), **changes})

    def charged(self, stages: Stages) -> Self:
        """Return the manifest with these costs of stages in the place of all that it has."""
        return self.replaced(ledger={**self["ledger"], "stages": stages})

    def saved(self, hashes: Mapping[str, str], charged: Mapping[str, int]) -> Self:
        """Return what is written: the current version, the files' hashes and bytes, and no path of this machine."""
        versions = {"format_version": FORMAT_VERSION, "package_version": __version__}
        config = public_configuration(self.config)
        return self.replaced(
            **versions, config=config, sha256=hashes, ledger={**self["ledger"], "bytes": charged}
        )

    def decoders(self, tensors: Mapping[str, Tensor] | None) -> list[dict[str, Tensor]]:
        """Return the decoder of each sub-task of a set that holds `tensors`; one where all share it, none without."""
        if not tensors:
            return []
        own = [
            {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            for start in (f"{number}." for number in range(len(self.subtasks or ())))
        ]
        return own if all(own) and sum(map(len, own)) == len(tensors) else [dict(tensors)]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the manifest in a file, upgraded where it is of an older version."""
        content = read_json(path, _CURE)
        try:
            upgraded = _upgraded(content)
            try:
                return parse(cls, upgraded)
            except UserError as error:
                raise UserError(f"{error}; {_CURE}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write the file."""
        write_json(path, to_json(self))

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - as in the file
        return to_json(self)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(to_json(self))

    def __len__(self) -> int:
        return len(to_json(self))


def resumptions(run: Path) -> list[dict[str, Any]]:
    """Return from which steps a run went on with other settings, and with which (see `Resumption`)."""
    path = run / RESUMED
    found: list[dict[str, Any]] = read_json(path, "restore or delete it") if path.is_file() else []
    return found


def charge(folder: Path, stage: str, figures: Figures) -> None:
    """Write a stage's cost into the manifest of a saved set, in the place of what it says of that stage."""
    manifest = Manifest.read(folder / NAME)
    manifest.charged({**manifest.ledger.stages, stage: figures}).write(folder / NAME)


def find_artefact(path: Path | str) -> Path:
    """Return the folder with the manifest: of what is named (see `located`), or `distilled` in it if that is a run."""
    path = located(path)
    for folder in (path, path / FOLDER):
        if (folder / NAME).is_file():
            refuse_escape(folder / NAME)
            return folder
    if not path.exists():
        raise UserError(f"{path} does not exist; name a distilled set or the folder of a finished run")
    raise UserError(
        f"{path} is not a distilled set: neither it nor {path / FOLDER} holds a {NAME}; name an artefact's "
        "folder or the folder of a finished run"
    )


def verified_files(folder: Path, hashes: Mapping[str, str]) -> dict[str, Path]:
    """Return the files that a manifest names, all of them inside `folder` and unchanged."""
    for name, expected in hashes.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
            raise UserError(f"{folder / NAME} names {shown(name)}, which is not a plain file name: refused")
        file = folder / name
        refuse_escape(file)
        if not file.is_file():
            raise UserError(f"{file} is missing, though the manifest lists it; copy the artefact again")
        status = file.stat()
        if status.st_size - 512 * status.st_blocks > _MOST_HOLES:  # hashing them would take hours
            raise UserError(
                f"{file} has holes of over 1 GiB, so that nothing is stored in it; copy the artefact again"
            )
        try:
            found = sha256(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}); check its permissions") from error
        if found != expected:
            raise UserError(f"{file} is damaged: its sha256 is not the manifest's; copy the artefact again")
    return {name: folder / name for name in hashes}


def refuse_escape(file: Path, folder: Path | None = None) -> Path:
    """Return `file`; raise UserError where it is a link out of `folder`, by default that in which it lies."""
    inside = os.path.realpath(file.parent if folder is None else folder)
    if os.path.commonpath([inside, os.path.realpath(file)]) != inside:
        raise UserError(f"{file} is a link out of its folder: refused; put the file itself there")
    return file


def _upgraded(content: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    if not isinstance(content, dict):
        raise UserError(f"a mapping is needed, got {shown(content)}; this is not a manifest of ldd")
    manifest: dict[str, Any] = content
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(
            f"format_version must be a whole number, got {shown(version)}; the manifest is damaged"
        )
    if version > FORMAT_VERSION:
        raise UserError(
            f"format_version {shown(version)} is newer than {FORMAT_VERSION}, the newest that latentdd "
            f"{__version__} reads; upgrade it (pip install --upgrade latentdd)"
        )
    while version < FORMAT_VERSION:
        if version not in UPGRADERS:
            raise UserError(f"format_version {shown(version)} was never released; the manifest is damaged")
        try:
            manifest = UPGRADERS[version](manifest)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"damaged: cannot be upgraded from format_version {version} ({error!r})"
            ) from error
        version += 1
        manifest["format_version"] = version
    return manifest


def _check_counts(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if count < 0:
            raise UserError(f"{name} must be at least 0, got {count}")


def _check_digest(what: str, digest: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UserError(f"{what} must be 64 hexadecimal digits, got {shown(digest)}")
