"""Tensors for DD-Ranking 0.2.0 (arXiv 2505.13300), whose scores take them as they are."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldd.artefact.exporters.base import alphabet_places, export_folder
from ldd.artefact.set import DistilledSet
from ldd.disk.files import atomic_file, write_json
from ldd.errors import UserError
from ldd.imagenet.tables import find_subset, synsets
from ldd.images import normalised, to_unit_range

IMAGES, LABELS, FACTS = "images.pt", "labels.pt", "ddranking.json"
PLACE = "ddranking_label"
"""In the class table: the number that stands for the class in the tensors."""

_SUBSETS = ("ImageNette", "ImageWoof", "ImageFruit", "ImageYellow", "ImageMeow", "ImageSquawk")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STATISTICS = {
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    **dict.fromkeys((*_SUBSETS, "ImageNet1K"), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
}
"""With which it normalises the real test images of each data set."""

_SMALLEST = 1e-8
"""Probability that stands for 0, whose logarithm would be infinite."""


def write_ddranking(distilled: DistilledSet, out: Path, overwrite: bool = False) -> Path:
    """Write `<out>/images.pt`, `labels.pt`, `ddranking.json` and `classes.json`; see `Writer` for the arguments.

    - `images.pt`: (N, 3, H, H) float32, normalised by the set's mean and standard deviation, class by class in the
      order in which DD-Ranking numbers the classes of its data sets (a published subset's own, else the alphabet's).
    - `labels.pt`: (N,) int64, or for soft labels (N, K) float32 logarithms of their probabilities, since its losses
      take the softmax of what they are given; at `temperature: 1.0` they are the set's.
    - `ddranking.json`: `arguments` for its scores, as far as the set knows them (`dataset`, `ipc`, `im_size`), and
      `normalisation`.

    As its scores count on it, all classes have equally many images.

    Raises:
        UserError: `out` must not be replaced or cannot be written, or the classes differ in their number of images.
    """
    distilled.refuse_packed("DD-Ranking")
    if len(set(distilled.counts)) > 1:
        raise UserError(
            f"DD-Ranking takes as many images of each class, and this set has {min(distilled.counts)} to "
            f"{max(distilled.counts)}; export another format"
        )
    if distilled.weights is not None:
        warnings.warn("DD-Ranking has no weights of images; --format pt keeps them", stacklevel=2)
    name, places = _data_set(distilled)
    mean, std = distilled.manifest.normalisation.mean, distilled.manifest.normalisation.std
    known = _STATISTICS.get(name or "")
    if known is not None and known != (mean, std):
        warnings.warn(
            f"DD-Ranking normalises the test images of {name} with mean {list(known[0])} and std {list(known[1])}, and "
            f"the set was made with {list(mean)} and {list(std)}: its scores will be of other images than these",
            stacklevel=2,
        )
    numbers = torch.tensor(places)[distilled.labels]
    rows = numbers.argsort(stable=True)
    arguments: dict[str, Any] = {"ipc": distilled.counts[0], "im_size": [distilled.image_size] * 2}
    facts = {
        "arguments": arguments if name is None else {"dataset": name, **arguments},
        "normalisation": {"mean": list(mean), "std": list(std)},
    }
    table = [{PLACE: place} for place in places]
    with export_folder(distilled, out, overwrite, table) as beside:
        _save(normalised(to_unit_range(distilled.images[rows]), mean, std), beside / IMAGES)
        _save(_labels(distilled, places)[rows], beside / LABELS)
        write_json(beside / FACTS, facts)
    return out


def _data_set(distilled: DistilledSet) -> tuple[str | None, list[int]]:
    """Its name of the data set, where the classes tell it, and by our label the number that it gives a class."""
    wnids = [info.wnid for info in distilled.classes]
    places = alphabet_places(distilled)
    for name in _SUBSETS:
        subset = find_subset(name) or ()
        if sorted(subset) == sorted(wnids):
            return name, [subset.index(wnid) for wnid in wnids]
    return {_CIFAR10: "CIFAR10", synsets(): "ImageNet1K"}.get(tuple(sorted(wnids))), places


def _labels(distilled: DistilledSet, places: list[int]) -> Tensor:
    numbers = torch.tensor(places)
    if distilled.soft_labels is None:
        return numbers[distilled.labels]
    return distilled.soft_labels.float()[:, numbers.argsort()].clamp(min=_SMALLEST).log()


def _save(tensor: Tensor, path: Path) -> None:
    with atomic_file(path) as beside:
        torch.save(tensor, beside)
