"""Facts about ImageNet-1K: its classes in the standard order, and the published subsets by name."""

from functools import cache
from importlib.resources import files

import yaml
from torchvision.models import ResNet18_Weights

_PREFIX = "imagenet-"


@cache
def synsets() -> tuple[str, ...]:
    """The 1,000 wnids of ILSVRC 2012 in sorted order: a class's index is its place here."""
    return tuple(files("ldd.imagenet").joinpath("imagenet_synsets.txt").read_text(encoding="utf-8").split())


@cache
def indices() -> dict[str, int]:
    """Index of each wnid."""
    return {wnid: index for index, wnid in enumerate(synsets())}


def readable_name(wnid: str) -> str:
    """The class's name as torchvision's pre-trained models list it; all 1,000 differ."""
    names: list[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return names[indices()[wnid]]


@cache
def named_subsets() -> dict[str, tuple[str, ...]]:
    """Wnids, in the order of their labels, of each published subset; every name it goes by is a key."""
    table = yaml.safe_load(
        files("ldd.imagenet").joinpath("imagenet_subsets.yaml").read_text(encoding="utf-8")
    )
    found = {}
    for key, entry in table.items():
        for name in (key, *entry.get("also", ())):
            found[name] = tuple(entry["wnids"])
    return found | {"1k": synsets()}


def find_subset(name: str) -> tuple[str, ...] | None:
    """Wnids of the subset of this name (any case, with or without `imagenet-` before it), or None."""
    return named_subsets().get(name.lower().removeprefix(_PREFIX))
