"""Real images in few bytes: what equal bytes buy where images need not be stored pixel by pixel."""

import hashlib
import io
from abc import abstractmethod
from typing import TYPE_CHECKING, final, get_args

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ldd.artefact.size import Amount, Storage
from ldd.artefact.uploads import Precision, numbers_of, rounded
from ldd.errors import UserError, check_at_least
from ldd.evaluation.baselines.base import Baseline, RandomReal, Setting
from ldd.evaluation.results.rows import budget_name
from ldd.images import Labelled, to_unit_range
from ldd.runtime.ranks import from_first_rank
from ldd.students.training_set import Size, TrainingSet

if TYPE_CHECKING:
    from ldd.priors import AutoencoderPrior


class _FewBytes(Baseline):
    """Random real images as they come back from few bytes; the draws are those of `RandomReal` of as many images."""

    def __init__(self, kind: str, form: str, images_per_class: int) -> None:
        check_at_least(1, kind, images_per_class=images_per_class)
        self._drawn = RandomReal(images_per_class)
        self.name = self._drawn.name = budget_name(f"{kind}{form}", images_per_class)

    @abstractmethod
    def _through(self, images: Tensor, setting: Setting) -> tuple[Tensor, int]:
        """Return images (N, 3, H, W) uint8 as they come back, and the bytes that hold them."""

    def size(self, repeat: int, setting: Setting) -> Size:
        """Count the images; none is drawn."""
        return self._drawn.size(repeat, setting)

    def per_class(self, setting: Setting) -> list[int]:
        """Return the number of images, once for each of the K classes."""
        return list(self._drawn.per_class(setting))

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """Draw anew, store and read back.

        Raises:
            UserError: a class has fewer images.
        """
        drawn = self._drawn.set_for(repeat, setting)
        images, size = self._through(drawn.images, setting)
        setting.found[self._key(images)] = size
        return Labelled(images, drawn.labels)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """Charge what `set_for` stored, and hard labels."""
        spec, size = setting.data.spec, setting.found[self._key(given.images)]
        labels = Amount.of([given.labels])
        return Storage(
            spec.num_classes, spec.image_size, images=Amount(given.images.numel(), size), labels=labels
        )

    def _key(self, images: Tensor) -> tuple[str, str]:
        return self.name, hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


@final
class CompressedReal(_FewBytes):
    """Random real images, each through a WebP file; charged the bytes of the files; a new draw per repeat.

    At the bytes of one photograph of 64 px as it is (12,288) WebP stores thirty-five at quality 10.

    Args:
        images_per_class: number of images; choose it so that the bytes a class, which every table shows, are the set's.
        quality: of WebP, 0 (smallest) to 100.

    Raises:
        UserError: no image, or no such quality.
    """

    def __init__(self, images_per_class: int, quality: int = 10) -> None:
        super().__init__("compressed_real", f"{quality}", images_per_class)
        if not 0 <= quality <= 100:
            raise UserError(f"compressed_real.quality ({quality}) must be 0 to 100")
        self.quality = quality

    def _through(self, images: Tensor, setting: Setting) -> tuple[Tensor, int]:
        files = [_webp(image, self.quality) for image in images]
        return torch.stack([_decoded(file) for file in files]), sum(map(len, files))


@final
class EncodedReal(_FewBytes):
    """Random real images as latents of a frozen autoencoder; charged the latents as rounded; a new draw per repeat.

    What codes through the same autoencoder have to beat: nothing is learned here. The autoencoder, as a prior, is not
    charged. At the bytes of one photograph of 64 px as it is (12,288) there are 45 in latents of 4 x 8 x 8.

    Args:
        images_per_class: number of images; choose it so that the bytes a class, which every table shows, are the set's.
        path_or_hub_id: of the autoencoder: what `ldd.priors.AutoencoderPrior` takes.
        precision: of the latents: float32, bfloat16 or uint8, as `latentdd export --format codes` has them.

    Raises:
        UserError: no image, or no such precision.
    """

    def __init__(self, images_per_class: int, path_or_hub_id: str, precision: Precision = "uint8") -> None:
        super().__init__("encoded_real", f"_{precision}", images_per_class)
        if precision not in get_args(Precision):
            raise UserError(
                f"encoded_real.precision ({precision}) must be one of {', '.join(get_args(Precision))}"
            )
        self.path_or_hub_id = path_or_hub_id
        self.precision = precision

    def size(self, repeat: int, setting: Setting) -> Size:
        """Count the images, and load the autoencoder.

        Raises:
            UserError: a class has fewer images, or the autoencoder cannot be loaded or has another size.
        """
        self._autoencoder(setting)
        return super().size(repeat, setting)

    @torch.no_grad()
    def _through(self, images: Tensor, setting: Setting) -> tuple[Tensor, int]:
        from ldd.priors.sampling import CHUNK, decoded  # here: worker processes import this file

        prior = self._autoencoder(setting)
        parts = [prior.encode(to_unit_range(part).to(setting.device)).cpu() for part in images.split(CHUNK)]
        sent = rounded("latents", torch.cat(parts), self.precision)
        back = decoded(prior, numbers_of(sent)["latents"].to(setting.device))
        return from_first_rank((back, sum(tensor.nbytes for tensor in sent.values())))

    def _autoencoder(self, setting: Setting) -> "AutoencoderPrior":
        from ldd.priors import AutoencoderPrior

        key = ("autoencoder", self.path_or_hub_id)
        if key not in setting.found:
            size = setting.data.spec.image_size
            setting.found[key] = AutoencoderPrior(self.path_or_hub_id, size).to(setting.device)
        return setting.found[key]  # type: ignore[no-any-return]


def _webp(image: Tensor, quality: int) -> bytes:
    """Return (3, H, W) uint8 as a WebP file, at the encoder's greatest effort."""
    file = io.BytesIO()
    to_pil_image(image).save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def _decoded(file: bytes) -> Tensor:
    """Return (3, H, W) uint8 of a file that this process has made."""
    with Image.open(io.BytesIO(file), formats=["WEBP"]) as image:
        pixels: Tensor = pil_to_tensor(image.convert("RGB"))
    return pixels
