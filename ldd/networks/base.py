"""What every classifier offers to objectives and to the evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from ldd.errors import UserError

MIN_IMAGE_SIZE = 32
"""Smallest image side in pixels: VGG-11 halves the map five times."""


class Network(nn.Module, ABC):
    """A classifier with its features in reach. Subclasses are final and take (num_classes, image_size, ...).

    Args of every subclass:
        num_classes: K.
        image_size: height and width in pixels, at least 32.
    """

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Features (N, F) before the last linear layer, of normalised images (N, C, H, W)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""


NetworkFactory = Callable[[int, int], Network]
"""Builds a fresh network from (num_classes, image_size); in YAML a `class_path` with the other arguments."""


def check_sizes(network: str, num_classes: int, image_size: int, **positive: int) -> None:
    """Refuse sizes no network can be built with.

    Args:
        network: name of the class, for the message.
        num_classes: K, at least 1.
        image_size: side in pixels, at least `MIN_IMAGE_SIZE`.
        positive: further integer arguments by name, each at least 1 (width, depth, ...).

    Raises:
        UserError: names the argument, its value and the cure.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(
            f"{network}: image_size {image_size} is too small for the networks; "
            f"set the data's image_size to {MIN_IMAGE_SIZE} or more"
        )
    for name, value in {"num_classes": num_classes, **positive}.items():
        if value < 1:
            raise UserError(f"{network}: {name} is {value}; give a whole number of 1 or more")
