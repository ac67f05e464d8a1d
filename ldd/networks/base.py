"""What every classifier offers to objectives and to the evaluation."""

import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from ldd.errors import UserError

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


def dotted_name(network: type) -> str:
    """Return where a class is defined, e.g. `ldd.networks.vgg.VGG11`."""
    return f"{network.__module__}.{network.__qualname__}"


def canonical(class_path: str) -> str:
    """Return where a class is defined, given any name it can be imported by; a name that cannot is unchanged."""
    try:
        found = pkgutil.resolve_name(class_path)
    except (ImportError, AttributeError, ValueError):
        return class_path
    return dotted_name(found) if isinstance(found, type) else class_path


def find_network(class_path: str) -> type[Network]:
    """Return the network class of a dotted name."""
    try:
        found = pkgutil.resolve_name(class_path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"network {class_path!r} cannot be imported: {error}; give a dotted class name"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Network)):
        raise UserError(f"network {class_path!r} is not a subclass of ldd.networks.Network")
    return found


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name: what a protocol's file says of each of its default networks.

    Attributes:
        class_path: dotted name of a `Network` class.
        init_args: its arguments besides `num_classes` and `image_size`.
    """

    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)

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
