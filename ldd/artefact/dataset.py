"""A distilled set as a torch data set, and the transform that makes real images like its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import Dataset

from ldd.images import to_unit_range

if TYPE_CHECKING:
    from PIL import Image

Transform = Callable[[Tensor], Any]
"""What is done with an image (3, H, H) float32."""


@dataclass(frozen=True)
class InputTransform:
    """Makes a real image like the images of a set: short side resized, centre cropped, in the set's range of values."""

    image_size: int
    normalise: Transform | None = None

    def __call__(self, image: "Image.Image | Tensor") -> Tensor:
        """Return (3, H, H) float32 of a PIL image, or of (3, h, w) uint8."""
        from torchvision.transforms.v2.functional import (  # here: sets alone do without it
            InterpolationMode,
            center_crop,
            pil_to_tensor,
            resize,
        )

        pixels = image if isinstance(image, Tensor) else pil_to_tensor(image.convert("RGB"))
        size = [self.image_size]
        pixels = resize(pixels, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        scaled = to_unit_range(center_crop(pixels, size * 2))
        return scaled if self.normalise is None else self.normalise(scaled)


class DistilledDataset(Dataset[tuple[Any, int]]):
    """The images of a distilled set for a `DataLoader`: (3, H, H) float32 and hard label.

    Args:
        images: (N, 3, H, H) uint8.
        labels: (N,).
        classes: readable names, ordered by label.
        normalise: makes what networks see; None leaves images in [-1, 1].
        transform: of each image after that.

    Attributes:
        targets: the label of each image.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        normalise: Transform | None = None,
        transform: Transform | None = None,
    ) -> None:
        self._images = images
        self._normalise = normalise
        self.classes = list(classes)
        self.targets: list[int] = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = to_unit_range(self._images[index])
        image = image if self._normalise is None else self._normalise(image)
        return image if self.transform is None else self.transform(image), self.targets[index]
