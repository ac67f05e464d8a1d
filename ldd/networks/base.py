"""What every classifier offers to objectives and to the evaluation."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.runtime.classes import dotted_name, imported_class, loaded_class
from ldd.runtime.seeding import seeded

_PACKAGE = "ldd.networks"

TORCHVISION = "torchvision.models."
"""Start of the names of torchvision's architectures, as manifests hold them."""

MIN_IMAGE_SIZE = 32
"""Smallest image side in pixels: VGG-11 halves the map five times."""


class Network(nn.Module, ABC):
    """A classifier whose features can be asked for. Subclasses are final and take (num_classes, image_size, ...).

    Args of every subclass:
        num_classes: K.
        image_size: height and width in pixels, at least 32.
    """

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Return features (N, F) before the last linear layer, of normalised images (N, C, H, W)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K) of normalised images (N, C, H, W)."""


NetworkFactory = Callable[[int, int], Network]
"""Builds a fresh network from (num_classes, image_size); in YAML a `class_path` with the other arguments."""


def seeded_network(factory: NetworkFactory, spec: DataSpec, seed: int, *key: object) -> Network:
    """Build a network on the CPU with the initial weights of (seed, key), outside of any inference mode."""
    with torch.inference_mode(False), seeded(seed, *key):
        return factory(spec.num_classes, spec.image_size)


def name_of(network: nn.Module) -> str:
    """Return the dotted name of a network's class, or of what it stands for (`seen_as`), as manifests hold it."""
    return str(getattr(network, "seen_as", dotted_name(type(network))))


def names_of(factories: Iterable[NetworkFactory], spec: DataSpec) -> set[str]:
    """Return the names of what the factories build."""
    return {name_of(seeded_network(factory, spec, 0, "name")) for factory in factories}


def check_sizes(network: str, num_classes: int, image_size: int, **positive: int) -> None:
    """Raise where no network can be built with these sizes."""
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(
            f"{network}: image_size {image_size} is too small for the networks; "
            f"set the data's image_size to {MIN_IMAGE_SIZE} or more"
        )
    for name, value in {"num_classes": num_classes, **positive}.items():
        if value < 1:
            raise UserError(f"{network}: {name} is {value}; give a whole number of 1 or more")


def find_network(class_path: str) -> type[Network]:
    """Return the network class of a dotted name in a protocol: of this package, or of a module that is imported.

    A protocol may come from anybody, so it imports no other module.
    """
    known = class_path.startswith(f"{_PACKAGE}.")
    try:
        found = (imported_class if known else loaded_class)(class_path, Network)
    except ImportError as error:
        raise UserError(
            f"network {class_path!r} cannot be imported: {error}; give a class of {_PACKAGE}"
        ) from error
    if found is not None:
        return found
    if known or loaded_class(class_path, object):
        raise UserError(
            f"network {class_path!r} cannot be imported as a class, or is not a subclass of {_PACKAGE}.Network"
        )
    raise UserError(
        f"network {class_path!r}: a protocol imports nothing but {_PACKAGE}, since it may come from anybody; name "
        "networks of your own on the command line (--networks FILE, in a recipe evaluation.networks)"
    )


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name: what a protocol's file says of each of its default networks.

    Attributes:
        class_path: dotted name of a `Network` class.
        init_args: its arguments besides `num_classes` and `image_size`.
    """

    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.class_path, str) or not isinstance(self.init_args, Mapping):
            raise TypeError("class_path must be text, and init_args a mapping")

    def factory(self) -> NetworkFactory:
        """Return a builder of fresh networks."""
        network = find_network(self.class_path)
        try:
            inspect.signature(network).bind(10, 32, **self.init_args)
        except TypeError as error:
            raise UserError(
                f"network {self.class_path}: {error}; it takes {', '.join(inspect.signature(network).parameters)}"
            ) from None
        return partial(network, **self.init_args)
