"""Real images as a file format stores them: what equal bytes buy where images need not be stored pixel by pixel."""

import hashlib
import io
from typing import final

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ldd.artefact.size import Amount, Storage
from ldd.errors import UserError, check_at_least
from ldd.evaluation.baselines.base import Baseline, RandomReal, Setting
from ldd.images import Labelled
from ldd.students.training_set import Size, TrainingSet


@final
class CompressedReal(Baseline):
    """Random real images, each through a WebP file; charged the bytes of the files; a new draw per repeat.

    At the bytes of one photograph of 64 px as it is (12,288) WebP stores thirty-five at quality 10.

    Args:
        images_per_class: number of images; choose it so that the bytes a class, which every table shows, are the set's.
        quality: of WebP, 0 (smallest) to 100.

    Raises:
        UserError: no image, or no such quality.
    """

    def __init__(self, images_per_class: int, quality: int = 10) -> None:
        check_at_least(1, "compressed_real", images_per_class=images_per_class)
        if not 0 <= quality <= 100:
            raise UserError(f"compressed_real.quality ({quality}) must be 0 to 100")
        self._drawn = RandomReal(images_per_class)
        self.quality = quality
        self.name = f"compressed_real{quality}_ipc{images_per_class}"

    def size(self, repeat: int, setting: Setting) -> Size:
        """Count the images; none is drawn."""
        return self._drawn.size(repeat, setting)

    def per_class(self, setting: Setting) -> list[int]:
        """Return the number of images, once for each of the K classes."""
        return list(self._drawn.per_class(setting))

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """Draw anew, compress and decode; the draws are those of `RandomReal` of as many images.

        Raises:
            UserError: a class has fewer images.
        """
        drawn = self._drawn.set_for(repeat, setting)
        files = [_compressed(image, self.quality) for image in drawn.images]
        images = torch.stack([_decoded(file) for file in files])
        setting.found[self._key(images)] = sum(map(len, files))
        return Labelled(images, drawn.labels)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """Charge the files that `set_for` made, and hard labels."""
        spec, size = setting.data.spec, setting.found[self._key(given.images)]
        labels = Amount.of([given.labels])
        return Storage(
            spec.num_classes, spec.image_size, images=Amount(given.images.numel(), size), labels=labels
        )

    def _key(self, images: Tensor) -> tuple[str, str]:
        return self.name, hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def _compressed(image: Tensor, quality: int) -> bytes:
    """Return (3, H, W) uint8 as a WebP file, at the encoder's greatest effort."""
    file = io.BytesIO()
    to_pil_image(image).save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def _decoded(file: bytes) -> Tensor:
    """Return (3, H, W) uint8 of a file that this process has made."""
    with Image.open(io.BytesIO(file), formats=["WEBP"]) as image:
        pixels: Tensor = pil_to_tensor(image.convert("RGB"))
    return pixels
