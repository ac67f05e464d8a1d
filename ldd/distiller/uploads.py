"""Codes alone, rounded: what a client of a one-shot federation sends in the place of images, and how it is decoded."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldd.artefact.manifest import BYTES, Manifest, verified_files
from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount
from ldd.artefact.uploads import FACTS, LEVELS, NOISE, Precision, Sent, numbers_of, rounded
from ldd.disk.files import atomic_folder, holds_files, read_tensors, sha256, write_tensors
from ldd.distiller.synthesis import StoredSampler, code_noise
from ldd.errors import UserError
from ldd.priors import Prior

_TENSORS = "codes.safetensors"
_LABELS, _WEIGHTS, _DECODER = "labels", "weights", "decoder."


class Upload(NamedTuple):
    """What was written.

    Attributes:
        folder: with two files.
        bytes: of both.
        mean_error: of a pixel (0 to 255), between the set's images and those that the codes give.
        largest_error: likewise, of all pixels.
    """

    folder: Path
    bytes: int
    mean_error: float
    largest_error: int


def write_upload(
    distilled: DistilledSet,
    out: Path,
    precision: Precision = "bfloat16",
    overwrite: bool = False,
    prior: Prior | None = None,
) -> Upload:
    """Write a set's codes, and its decoder if it trained one, without its images, and decode them to see what is lost.

    Noise that follows from the run's seed is left out. The frozen prior is named, not sent.

    Args:
        distilled: a set with codes.
        out: new or empty folder, or one with an earlier upload if `overwrite`.
        precision: of all numbers.
        overwrite: replace an earlier upload.
        prior: of the codes; None builds the one that the manifest names.

    Raises:
        UserError: a set without codes, with soft labels, with images that its codes do not give or decoders of
            sub-tasks; a folder with other files.
    """
    _check(distilled)
    if holds_files(out):
        if not overwrite:
            raise UserError(
                f"--out ({out}) is not empty; name a new folder, or replace it with --overwrite true"
            )
        if not (out / FACTS).is_file():
            raise UserError(f"--out ({out}) holds no earlier codes (it has no {FACTS}); name a new folder")
    tensors = _tensors(distilled, precision)
    decoded = StoredSampler(_restored(distilled.manifest, tensors, distilled.folder), prior)(None)
    errors = (decoded.int() - distilled.images.int()).abs()
    mean, largest = float(errors.float().mean()), int(errors.max())
    lost = {"precision": precision, "mean_error": mean, "largest_error": largest}
    with atomic_folder(out) as beside:
        write_tensors(beside / _TENSORS, tensors)
        _facts(distilled.manifest, sha256(beside / _TENSORS), lost).write(beside / FACTS)
    return Upload(out, _size(out), mean, largest)


def read_upload(folder: Path, prior: Prior | None = None) -> DistilledSet:
    """Return the set of an upload: codes as they were sent, in float32, and the images that the prior makes of them.

    Args:
        folder: that `write_upload` has written. What is in it is checked, and nothing of it is run.
        prior: of the codes; None builds the one that is named, from the package, a hub or a folder of its name beside.

    Raises:
        UserError: a damaged or changed upload, or a prior that is not there or has other weights.
    """
    manifest = Manifest.read(folder / FACTS)
    files = verified_files(folder, manifest.sha256)
    if _TENSORS not in files:
        raise UserError(f"{folder / FACTS} lists no {_TENSORS}; copy the upload again")
    tensors = read_tensors(files[_TENSORS])
    blank = _restored(manifest, tensors, folder)
    lost = (manifest.imported or {}).get("lost")
    facts = {"form": "codes", "normalisation": "codes decoded", "lost": lost, "sha256": dict(manifest.sha256)}
    images = StoredSampler(blank, prior)(None)
    return replace(blank, images=images).with_facts(
        imported=facts, sent=_sent(tensors, _size(folder)), sha256={}
    )


def _size(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in (_TENSORS, FACTS))


def _sent(tensors: Mapping[str, Tensor], size: int) -> Sent:
    """Return what files of `size` bytes hold; what is neither decoder nor label is charged to the codes."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.split(".")[0], []).append(tensor)
    labels = Amount.of(parts.pop(_WEIGHTS, [])) + Amount(0, sum(t.nbytes for t in parts.pop(_LABELS)))
    decoder = Amount.of(parts.pop(_DECODER.rstrip("."), []))
    numbers = sum(Amount.of(part).floats for part in parts.values())
    codes = Amount(numbers, size - decoder.bytes - labels.bytes)
    return Sent(len(tensors[_LABELS]), codes, decoder, labels)


def _check(distilled: DistilledSet) -> None:
    if not distilled.codes:
        raise UserError("the set holds no codes; export its images (--format parquet)")
    if distilled.soft_labels is not None:
        raise UserError(
            "the set has soft labels, which codes do not give; export the set before it is labelled"
        )
    if distilled.manifest.rediffused:
        raise UserError("the set's images were made anew after decoding, so that its codes do not give them")
    if len(distilled.manifest.decoders(distilled.decoder)) > 1:
        raise UserError(
            "the set has a decoder of each sub-task; export the sets of the sub-tasks (subtasks/<k>)"
        )


def _tensors(distilled: DistilledSet, precision: Precision) -> dict[str, Tensor]:
    """Return what the file holds."""
    numbers, seed = dict(distilled.codes or {}), distilled.manifest.seed or 0
    if (noise := numbers.get(NOISE)) is not None and torch.equal(noise, code_noise(noise.shape, seed)):
        del numbers[NOISE]
        numbers["noise_shape"] = torch.tensor(noise.shape[1:])
    numbers |= {f"{_DECODER}{name}": tensor for name, tensor in (distilled.decoder or {}).items()}
    if distilled.weights is not None:
        numbers[_WEIGHTS] = distilled.weights
    small = torch.uint8 if distilled.num_classes <= LEVELS + 1 else torch.int32
    tensors = {_LABELS: distilled.labels.to(small)}
    for name, tensor in numbers.items():
        tensors |= rounded(name, tensor, precision)
    return tensors


def _restored(manifest: Manifest, tensors: Mapping[str, Tensor], folder: Path | None = None) -> DistilledSet:
    """Return the set of a file's tensors, with blank images."""
    numbers = numbers_of(tensors)
    if _LABELS not in numbers:
        raise UserError(f"{_TENSORS} holds no {_LABELS}; copy the upload again")
    labels, weights = numbers.pop(_LABELS).long(), numbers.pop(_WEIGHTS, None)
    decoder = {k.removeprefix(_DECODER): v for k, v in numbers.items() if k.startswith(_DECODER)}
    codes = {name: tensor for name, tensor in numbers.items() if not name.startswith(_DECODER)}
    if (shape := codes.pop("noise_shape", None)) is not None:
        codes[NOISE] = code_noise((len(labels), *shape.tolist()), manifest.seed or 0)
    if manifest.prior is None:
        raise UserError("nothing says which prior the codes belong to; distil the set again")
    size = manifest.prior.image_size
    blank = torch.zeros(len(labels), 3, size, size, dtype=torch.uint8)
    return DistilledSet(blank, labels, manifest, None, weights, codes, decoder or None, folder=folder)


def _facts(manifest: Manifest, digest: str, lost: Mapping[str, Any]) -> Manifest:
    """Return what is sent beside the tensors: nothing of costs, nor of the run but its prior."""
    config = manifest.config or {}
    prior = (config.get("model") or {}).get("prior") if isinstance(config.get("model"), Mapping) else None
    few = manifest.replaced(
        config={"model": {"prior": prior}},
        ledger={"bytes": dict.fromkeys(BYTES, 0), "stages": {}},
        pruning=None,
        subtasks=None,
        data_fingerprints=None,
        resumed=None,
        imported={"lost": dict(lost)},
        sent=None,
    )
    return few.saved({_TENSORS: digest}, dict.fromkeys(BYTES, 0))
