"""Pruning by the loss of a pre-trained classifier."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import torch

from ldd.data.pruning.base import CACHE_DIR, Order, RankedPruner, Scope, complete_rows, hash_items
from ldd.data.pruning.scoring import BatchSize, Precision, Scorer, resolved
from ldd.data.pruning.table import Floats, ScoreFacts, ScoreTable
from ldd.data.sources import Item, Source
from ldd.disk.table import texts_of
from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.networks.pretrained import Classifier, Size, class_outputs
from ldd.runtime.devices import find_device
from ldd.runtime.ranks import rank_zero_warn

_ENOUGH_TO_JUDGE = 100  # images


class LossPruner(RankedPruner):
    """Ranks images by the cross-entropy of their true class under a pre-trained classifier.

    As "Prune First, Distill After" (arXiv 2411.12115) does with ResNet-18; `resize: [224, 224]` gives its squashed
    images. Scores are kept by the contents of the image, so that runs share them, moved or renamed data are known
    again, and only changed images are scored anew.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest losses, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        classifier: torchvision's name of a classification model.
        weights: name of published weights, or path of a state dict in torchvision's key names.
        resize: short side in pixels, or [height, width] to squash; null for what the weights were published with
            (256 for a file).
        crop: side of the centre crop in pixels; null likewise (224).
        mean: per channel, for images in [0, 1]; null likewise (ImageNet's).
        std: per channel; null likewise (ImageNet's).
        batch_size: images per forward pass; auto is 256 on a GPU and 4 for each thread of a CPU.
        device: auto takes the accelerator where there is one, else the CPU.
        precision: of the network; auto is bfloat16 on a GPU or a CPU with instructions for it, else float32. Scores of
            the two are kept apart: they differ in the third digit or so.
        cache_dir: folder of the scores; null keeps none.

    Raises:
        UserError: a setting is outside its range, or classifier or weights are unknown.
    """

    def __init__(
        self,
        keep: float,
        order: Order = "easy",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        classifier: str = "resnet18",
        weights: str = "IMAGENET1K_V1",
        resize: Size | None = None,
        crop: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        batch_size: BatchSize = "auto",
        device: str = "auto",
        precision: Precision = "auto",
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, cache_dir)
        if batch_size != "auto" and batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be auto or at least 1")
        self.classifier = Classifier(classifier, weights)
        self.preprocessing = self.classifier.preprocessing(resize, crop, mean, std)
        self.batch_size: BatchSize = batch_size
        self.device = device
        self.precision = resolved(precision, device)

    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Return losses and margins, from the cache where they are known; nothing is random."""
        hashes, scores = self._scores(source, items, spec, range(len(items)))
        losses, margins = map(pa.ChunkedArray.to_numpy, scores)
        self._warn_of_chance(margins)
        facts = ScoreFacts("loss", self.classifier.identity, self._conditions, network=self.classifier.name)
        return ScoreTable.build(items, hashes, spec.classes, facts, losses, loss=losses, margin=margins)

    def units(self, items: Sequence[Item]) -> int:
        """One for each image."""
        self._check_shared()
        return len(items)

    def share(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int, units: range) -> None:
        """Score some of the images."""
        self._scores(source, items, spec, units)

    def _scores(
        self, source: Source, items: Sequence[Item], spec: DataSpec, some: range
    ) -> tuple[pa.ChunkedArray, pa.Table]:
        """Return hashes, and losses and margins, of some of the images."""
        outputs = class_outputs(spec.classes, self.classifier.outputs, self.classifier.architecture)
        targets = outputs[torch.tensor([item.label for item in items], dtype=torch.int64)].tolist()
        hashes = hash_items(source, items[some.start : some.stop], self.cache_dir)
        digests = (digest for part in texts_of(hashes) for digest in part)
        wanted = targets[some.start : some.stop]
        keys = (f"{digest} {target}" for digest, target in zip(digests, wanted, strict=True))

        def work(places: Sequence[int]) -> Iterator[tuple[float, ...]]:
            network, device = self.classifier.load(), find_device(self.device)
            scorer = Scorer(device, network, self.preprocessing, self.batch_size, self.precision)
            return scorer.some(source, items, targets, [some.start + place for place in places])

        kinds = dict.fromkeys(("loss", "margin"), pa.float64())
        return hashes, complete_rows("scoring images", keys, kinds, self._folder, work)

    @property
    def _conditions(self) -> str:
        return f"{self.preprocessing}, {self.precision}"

    @property
    def _folder(self) -> Path | None:
        """Of the scores of this classifier under these conditions."""
        if self.cache_dir is None:
            return None
        key = f"{self.classifier.identity}; {self._conditions}"
        return self.cache_dir / hashlib.sha256(key.encode()).hexdigest()[:16]

    def _warn_of_chance(self, margins: Floats) -> None:
        right, chance = float((margins > 0).mean()), 1 / self.classifier.outputs
        spread = (chance * (1 - chance) / len(margins)) ** 0.5
        if len(margins) >= _ENOUGH_TO_JUDGE and right < chance + 3 * spread:
            rank_zero_warn(
                f"{self.classifier.architecture} gets {right:.2%} of these images right, no more than guessing would; "
                "check that classifier, mean, std and the data's classes belong together"
            )
