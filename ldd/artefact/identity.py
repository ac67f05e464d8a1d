"""Hashes that tell one distilled set, and one prior, from another; whether a set belongs to its test data."""

import hashlib
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldd.artefact.set import DistilledSet
from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.runtime.classes import dotted_name

if TYPE_CHECKING:
    from ldd.priors import Prior

_SHOWN = 32  # hexadecimal digits of an identity


def identity(distilled: DistilledSet) -> str:
    """Return a hash over what students learn from: images, labels, soft labels and weights."""
    digest = hashlib.sha256()
    for part in (distilled.images, distilled.labels, distilled.soft_labels, distilled.weights):
        if part is not None:
            add_tensor(digest, part)
    if distilled.packing > 1:
        digest.update(f"packing {distilled.packing}".encode())
    return digest.hexdigest()[:_SHOWN]


def add_tensor(digest: "hashlib._Hash", tensor: Tensor) -> None:
    """Add a tensor's type, shape and values to a hash."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    _add_values(digest, tensor)


def _add_values(digest: "hashlib._Hash", tensor: Tensor) -> None:
    for part in tensor.detach().cpu().contiguous().flatten().split(2**26):
        digest.update(part.view(torch.uint8).numpy().data)


def identify(prior: "Prior") -> dict[str, Any]:
    """Return the entry of a manifest for the frozen weights that codes need, as loaded where a run has cast them.

    `floats`, `bytes` and `sha256` are over parameters and buffers that are not trained with the codes; the hash is over
    their names, types, shapes and values.
    """
    if prior.identity is not None:
        return prior.identity
    digest, floats, size = hashlib.sha256(), 0, 0
    trained = {id(parameter) for parameter in prior.trainable()}
    for name, tensor in (*prior.named_parameters(), *prior.named_buffers()):
        if id(tensor) not in trained:
            digest.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
            _add_values(digest, tensor)
            floats += tensor.numel() if tensor.is_floating_point() else 0
            size += tensor.nbytes
    return {
        "class_path": dotted_name(type(prior)),
        "image_size": prior.image_size,
        "floats": floats,
        "bytes": size,
        "sha256": digest.hexdigest(),
    }


def refuse_other_test_split(distilled: DistilledSet, spec: DataSpec, contents: Mapping[str, str]) -> None:
    """Raise if the set may have learned from the test images of `spec`, by `contents` or, if older, by names."""
    known = distilled.manifest.data_fingerprints or {}
    own, now = distilled.manifest.test_split_fingerprint, spec.fingerprint
    if own == now and known.get("format") == contents["format"]:
        own, now = known.get("test"), contents["test"]
    if own is not None and own != now:
        raise UserError(
            f"the set was made with the test split {own}, and --data has the test split {now}: it may have learned "
            "from these test images. Give the --data of its run (its manifest has the configuration), or, to test it "
            "on other images of its classes on purpose, --other_data true"
        )


def refuse_other_data(distilled: DistilledSet, spec: DataSpec) -> None:
    """Raise unless the data has the set's classes, in the same order, and its image size."""
    theirs, ours = [info.wnid for info in distilled.classes], [info.wnid for info in spec.classes]
    for label, (one, other) in enumerate(itertools.zip_longest(theirs, ours)):
        if one != other:
            raise UserError(
                f"class {label} of the set is {one} but {other} in the data; the set needs the data (and "
                "data.subset) it was distilled from, with the classes in the same order"
            )
    size = distilled.images.shape[-1]
    if size != spec.image_size:
        raise UserError(
            f"data.image_size ({spec.image_size}) differs from the set's images ({size} px); "
            f"set data.image_size to {size}"
        )
