"""The data of a run: source -> subset -> resize -> prune, held in memory as bytes."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from ldd.classes import ClassInfo, DataSpec
from ldd.data.pruning import Pruner
from ldd.data.real import RealImages
from ldd.data.sources import DigitsSource, Item, Source, SourceFactory, Split
from ldd.data.subsets import Subset
from ldd.errors import UserError

_ENDLESS = 2**31  # steps of an epoch where the trainer names no number


class DistillationData(LightningDataModule):
    """Real images in three splits, with the core-set that pruning leaves of the training one.

    Only `train_images` and `core_set` may be learned from; `selection_images` serve to choose settings and
    `test_images` to report. Models draw their own batches, by step, from these; the loaders only count steps.

    Args:
        source: class the images come from; it is called with `root`.
        root: folder of the data; null for the digits.
        subset: classes by wnid or name (text) or id (number), in the order of their new labels; null for all.
        image_size: height and width in pixels; the short side is resized to it (bilinear, antialiased, on
            bytes) and the centre is cropped.
        pruner: what leaves of the training split is the core-set; null keeps all of it.
        seed: of the pruner's random choices; the splits never depend on it.
        mean: per channel, for images in [0, 1]; the default is ImageNet's.
        std: per channel, for images in [0, 1]; the default is ImageNet's.

    Attributes:
        classes: the K classes, ordered by label.
        spec: what models take from the data; here right after construction.
        train_images, core_set, selection_images, test_images: here after `setup`.

    Raises:
        UserError: root, subset or image_size cannot be used.
    """

    train_images: RealImages
    core_set: RealImages
    selection_images: RealImages
    test_images: RealImages

    def __init__(
        self,
        source: SourceFactory = DigitsSource,
        root: str | None = None,
        subset: Sequence[str | int] | None = None,
        image_size: int = 32,
        pruner: Pruner | None = None,
        seed: int = 0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        if image_size < 1:
            raise UserError(f"image_size={image_size} is not a size; use a number of pixels such as 32")
        if min(std) <= 0:
            raise UserError(f"std={list(std)} must be above 0 in each channel")
        whole = source(root)
        self._source: Source = whole if subset is None else Subset(whole, subset)
        self._pruner = pruner
        self._seed = seed
        self._ready = False
        self.classes: list[ClassInfo] = self._source.classes
        self.spec = DataSpec(
            classes=self.classes,
            image_size=image_size,
            mean=tuple(mean),
            std=tuple(std),
            fingerprint=self._source.fingerprint("test"),
            licence=self._source.licence,
        )

    def setup(self, stage: str | None = None) -> None:
        """Decode the three splits and prune; a second call does nothing.

        Raises:
            UserError: an unreadable image, or a class without images.
        """
        if self._ready:
            return
        self.train_images = self._load("train")
        self.selection_images = self._load("selection")
        self.test_images = self._load("test")
        self.core_set = self.train_images
        if self._pruner is not None:
            table = self._pruner.score(self.train_images, self.spec, self._seed)
            self.core_set = self.train_images.select(self._pruner.keep(table))
        self._ready = True

    def train_dataloader(self) -> DataLoader[int]:
        """Step numbers: one epoch is the whole run, so that validation comes at its end."""
        steps = self.trainer.max_steps if self.trainer is not None else -1
        return DataLoader(range(_ENDLESS if steps < 0 else max(1, steps)), batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[int]:
        """One item, so that Lightning validates once."""
        return DataLoader(range(1), batch_size=None)  # type: ignore[arg-type]

    def _load(self, split: Split) -> RealImages:
        items, size = self._source.items(split), self.spec.image_size
        images = torch.empty(len(items), 3, size, size, dtype=torch.uint8)

        def fill(numbered: tuple[int, Item]) -> None:
            images[numbered[0]] = fit_to_square(self._source.read(numbered[1]), size)

        # Decoding releases the interpreter's lock, so threads share the work.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for _ in pool.map(fill, enumerate(items)):
                pass
        labels = torch.tensor([item.label for item in items], dtype=torch.int64)
        return RealImages(images, labels, [item.key for item in items], len(self.classes))


def fit_to_square(image: Tensor, size: int) -> Tensor:
    """(3, h, w) uint8 -> (3, size, size): short side resized (bilinear, antialiased), centre cropped."""
    resized = resize(image, [size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    square: Tensor = center_crop(resized, [size, size])
    return square
