"""`.pt` files of DC, MTT, GLaD, LD3M and our own export, read without running anything that their pickle holds."""

import codecs
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldd.disk.pickles import load_plain
from ldd.disk.records import parse
from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.importers.classes import RawSet

_BEST = "images_best.pt"

# DC stores its accuracies as numpy scalars with the images; these build numbers and nothing else. The second name is
# numpy 1's.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    codecs.encode,
]


def read_pt(path: Path, labels: Path | None = None, experiment: int | None = None) -> RawSet:
    """Return the set in a file, or in a folder of one run.

    Three forms: a tensor of images and one of labels (`images_best.pt` and `labels_best.pt`: MTT, GLaD, LD3M and
    what followed them), a dictionary with `data`, a list of [images, labels] (DC, DSA, DM), and a dictionary with
    `images` and `labels` (ours). Labels that are floats (N, K) are soft ones.

    Args:
        path: the file, or a folder with `images_best.pt` or one file `images*.pt`.
        labels: file of the labels; None looks for the name with `labels` in the place of `images`.
        experiment: which entry of `data`, from 0; None where there is only one.

    Raises:
        UserError: no such file, another form, whitened images, or a pickle with more in it than tensors and numbers.
    """
    file = _images_file(path) if path.is_dir() else path
    if "zca" in file.name.lower():
        raise UserError(
            f"{file} holds ZCA-whitened images, which are not pictures without the matrix of the run; import the "
            "file without `zca` in its name"
        )
    content = _load(file)
    if isinstance(content, Mapping) and "data" in content:
        return _of_experiments(file, content["data"], experiment)
    if experiment is not None:
        raise UserError(f"experiment ({experiment}): {file} holds no list of experiments; leave it out")
    if isinstance(content, Mapping) and {"images", "labels"} <= content.keys():
        return _of_export(file, content)
    if isinstance(content, Tensor):
        beside = file.with_name(file.name.replace("images", "labels")) if labels is None else labels
        if beside == file or not beside.is_file():
            raise UserError(
                f"{file} holds images alone, and there are no labels in {beside}; give --labels FILE"
            )
        return _labelled(file, content, _load(beside), "tensors of images and labels (MTT, GLaD, LD3M)")
    raise UserError(
        f"{file} holds a {type(content).__name__} of no known form; needed is a tensor of images, a dictionary with "
        "data (a list of [images, labels]), or one with images and labels"
    )


def _images_file(folder: Path) -> Path:
    found = sorted(path.name for path in folder.glob("images*.pt") if "zca" not in path.name.lower())
    if _BEST in found:
        return folder / _BEST
    if len(found) != 1:
        listed = f": {', '.join(found[:10])}" if found else ""
        raise UserError(f"{folder} holds {len(found)} files images*.pt{listed}; name the file to import")
    return folder / found[0]


def load_tensor(file: Path) -> Tensor:
    """Return the tensor in a file, read as `read_pt` reads; UserError if it holds anything else."""
    content = _load(file)
    if not isinstance(content, Tensor):
        raise UserError(f"{file} holds a {type(content).__name__}, not a tensor; copy it again")
    return content


def _load(file: Path) -> Any:  # noqa: ANN401 - whatever was stored
    try:
        return load_plain(file, _NUMBERS)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0][:300]
        raise UserError(
            f"{file} cannot be read as plain tensors ({reason}); a pickle with other objects could run any program, so "
            "save images and labels alone: torch.save({'images': ..., 'labels': ...}, FILE)"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{file} is missing, damaged or no file of torch.save ({error}); copy it again"
        ) from error


def _of_experiments(file: Path, data: Any, experiment: int | None) -> RawSet:  # noqa: ANN401
    pairs = isinstance(data, Sequence) and all(isinstance(e, Sequence) and len(e) == 2 for e in data)
    if not pairs or not data:
        raise UserError(f"{file}: data must be a list of [images, labels]")
    if experiment is None and len(data) > 1:
        raise UserError(
            f"{file} holds {len(data)} experiments; choose one with --experiment 0 to {len(data) - 1}"
        )
    if not 0 <= (number := experiment or 0) < len(data):
        raise UserError(f"experiment ({number}): {file} holds 0 to {len(data) - 1}")
    images, labels = data[number]
    return _labelled(file, images, labels, f"experiment {number} of {len(data)} (DC)")


def _of_export(file: Path, content: Mapping[str, Any]) -> RawSet:
    given_classes = content.get("classes")
    form = "a dictionary of images and labels" if given_classes is None else "export of latentdd"
    raw = _labelled(file, content["images"], content["labels"], form)
    try:
        classes = None if given_classes is None else [parse(ClassInfo, info) for info in given_classes]
    except (TypeError, UserError) as error:
        raise UserError(f"{file}: classes must be a list of {{label, id, wnid, name}}: {error}") from error
    soft = content.get("soft_labels", raw.soft_labels)
    given: dict[str, Any] = {name: content.get(name) for name in ("weights", "mean", "std")}
    for what, value in (("soft_labels", soft), ("weights", given["weights"])):
        if value is not None and not isinstance(value, Tensor):
            raise UserError(f"{file}: {what} must be a tensor, got {type(value).__name__}")
    for what in ("mean", "std"):
        value = given[what].tolist() if isinstance(given[what], Tensor) else given[what]
        numbers = [value] if isinstance(value, int | float) else value
        if numbers is not None and not (
            isinstance(numbers, list | tuple) and numbers and all(isinstance(n, int | float) for n in numbers)
        ):
            raise UserError(f"{file}: {what} must be a number or one for each channel, got {numbers!r:.80}")
        given[what] = numbers
    return replace(raw, soft_labels=soft, classes=classes, packing=content.get("packing"), **given)


def _labelled(file: Path, images: Any, labels: Any, form: str) -> RawSet:  # noqa: ANN401
    for what, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise UserError(f"{file}: {what} must be a tensor, got {type(value).__name__}")
        if value.is_complex():
            raise UserError(f"{file}: {what} must be real numbers, got {value.dtype}; save their real part")
    labels = _hard(labels)
    if labels.ndim == 1:
        return RawSet(images, labels, form)
    sums = labels.float().sum(1) if labels.ndim == 2 else torch.tensor([0.0])
    positive = labels.is_floating_point() and (labels >= 0).all()
    if not positive or not torch.allclose(sums, torch.ones(()), atol=1e-2):
        raise UserError(
            f"{file}: labels must be (N,) whole numbers or (N, K) probabilities, got {labels.dtype} "
            f"{tuple(labels.shape)}; take the softmax of logits, with the temperature that they are meant for"
        )
    return RawSet(images, labels.argmax(1), form, soft_labels=labels)


def _hard(labels: Tensor) -> Tensor:
    """Return whole numbers (N,) of labels (N,), (N, 1) or one-hot (N, K) whole numbers; others as they are."""
    whole = not labels.is_floating_point() or bool((labels == labels.round()).all())
    if labels.ndim == 1:
        return labels.long() if whole else labels
    if labels.ndim == 2 and labels.shape[1] == 1 and whole and bool((labels != 1).any()):
        return labels[:, 0].long()  # a column of ones is the probability of the only class
    one_hot = labels.ndim == 2 and not labels.is_floating_point()
    if one_hot and bool((labels >= 0).all()) and bool((labels.long().sum(1) == 1).all()):
        return labels.long().argmax(1)
    return labels
