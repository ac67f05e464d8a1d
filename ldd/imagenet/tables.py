"""Classes of ImageNet-1K in the standard order, and published subsets by name."""

from functools import cache
from importlib.resources import files

import yaml

_PREFIX = "imagenet-"


@cache
def synsets() -> tuple[str, ...]:
    """Return the 1,000 wnids of ILSVRC 2012, sorted: the index of a class is its place here."""
    return tuple(files("ldd.imagenet").joinpath("imagenet_synsets.txt").read_text(encoding="utf-8").split())


@cache
def indices() -> dict[str, int]:
    """Return the index of each wnid."""
    return {wnid: index for index, wnid in enumerate(synsets())}


def readable_name(wnid: str) -> str:
    """Return the name of a class in torchvision's pre-trained models; all 1,000 differ."""
    from torchvision.models import ResNet18_Weights  # here: most data have names of their own

    names: list[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return names[indices()[wnid]]


@cache
def named_subsets() -> dict[str, tuple[str, ...]]:
    """Return the wnids of each published subset in the order of their labels, under each of its names."""
    table = yaml.safe_load(
        files("ldd.imagenet").joinpath("imagenet_subsets.yaml").read_text(encoding="utf-8")
    )
    found = {}
    for key, entry in table.items():
        for name in (key, *entry.get("also", ())):
            found[name] = tuple(entry["wnids"])
    return found | {"1k": synsets()}


def find_subset(name: str) -> tuple[str, ...] | None:
    """Return the wnids of the subset of this name (any case, with or without `imagenet-`), or None."""
    return named_subsets().get(name.lower().removeprefix(_PREFIX))
