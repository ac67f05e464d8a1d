"""Whether a distilled set belongs to the data it is tested on, and to the results that are there already."""

import hashlib
import itertools

import torch
from torch import Tensor

from ldd.artefact.set import DistilledSet
from ldd.errors import UserError
from ldd.images import DataSpec

_SHOWN = 32  # hexadecimal digits of an identity


def identity(distilled: DistilledSet) -> str:
    """Hash over what students learn from: images, labels, soft labels and weights."""
    digest = hashlib.sha256()
    for part in (distilled.images, distilled.labels, distilled.soft_labels, distilled.weights):
        if part is not None:
            add_tensor(digest, part)
    return digest.hexdigest()[:_SHOWN]


def add_tensor(digest: "hashlib._Hash", tensor: Tensor) -> None:
    """Let a hash go over a tensor's type, shape and bytes."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    for part in tensor.detach().cpu().contiguous().flatten().split(2**26):
        digest.update(part.view(torch.uint8).numpy().data)


def refuse_other_test_split(distilled: DistilledSet, spec: DataSpec) -> None:
    """Refuse test images other than those that the set is known not to have seen.

    Raises:
        UserError: both fingerprints, and how to go on.
    """
    own = distilled.manifest["test_split_fingerprint"]
    if own is not None and own != spec.fingerprint:
        raise UserError(
            f"the set was made beside the test split {own}, and that of --data is {spec.fingerprint}: it may have "
            "learned from these test images. Give the --data of its run (its manifest has the configuration), or, to "
            "test it on other images of its classes on purpose, --other_data true"
        )


def refuse_other_data(distilled: DistilledSet, spec: DataSpec) -> None:
    """Refuse data of other classes, of another order of the classes or of another image size than the set's.

    Raises:
        UserError: names the first class that differs, or the two sizes.
    """
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
