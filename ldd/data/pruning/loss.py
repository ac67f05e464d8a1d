"""Pruning by the loss of a pre-trained classifier."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ldd.data.pruning.base import RankedPruner
from ldd.data.pruning.hashing import CACHE_DIR, hash_items
from ldd.data.pruning.ranks import shared
from ldd.data.pruning.scoring import BatchSize, Device, Precision, Scorer, find_device, resolved
from ldd.data.pruning.selection import Order, Scope
from ldd.data.pruning.table import Floats, ScoreFacts, ScoreTable
from ldd.data.sources import Item, Source
from ldd.disk.table import Store
from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.networks.pretrained import Classifier, Size, class_outputs
from ldd.runtime.progress import progress
from ldd.runtime.ranks import rank_zero_warn, this_rank

_COLUMNS = ("loss", "margin")
_SAVE_EVERY = 4096  # images: what a killed process has to score again
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
        device: auto is CUDA where there is one, else the CPU.
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
        device: Device = "auto",
        precision: Precision = "auto",
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest)
        if batch_size != "auto" and batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be auto or at least 1")
        self.classifier = Classifier(classifier, weights)
        self.preprocessing = self.classifier.preprocessing(resize, crop, mean, std)
        self.batch_size: BatchSize = batch_size
        self.device = device
        self.precision = resolved(precision, device)
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Losses and margins, from the cache where they are known; nothing is random."""
        outputs = class_outputs(spec.classes, self.classifier.outputs, self.classifier.architecture)
        targets = outputs[torch.tensor([item.label for item in items], dtype=torch.int64)].tolist()
        hashes = hash_items(source, items, self.cache_dir)
        keys = [f"{digest} {target}" for digest, target in zip(hashes, targets, strict=True)]
        store = self._store()
        if store is None:
            values = np.full((len(items), 2), np.nan)
        else:
            found = store.find(keys)
            values = np.stack([found[name].to_numpy() for name in _COLUMNS], 1)
        missing = np.flatnonzero(np.isnan(values[:, 0])).tolist()

        def work(pieces: Sequence[int]) -> list[list[float]]:
            rows = [missing[piece] for piece in pieces]
            return self._score(source, rows, items, targets, keys, store)

        if missing:
            values[missing] = np.array(shared(len(missing), work))
        if store is not None and this_rank()[0] == 0:
            store.merge()
        self._warn_of_chance(values[:, 1])
        facts = ScoreFacts("loss", self.classifier.identity, self._conditions)
        losses, margins = values.T
        return ScoreTable.build(items, hashes, spec.classes, facts, losses, loss=losses, margin=margins)

    def _score(
        self,
        source: Source,
        rows: Sequence[int],
        items: Sequence[Item],
        targets: Sequence[int],
        keys: Sequence[str],
        store: Store | None,
    ) -> list[list[float]]:
        """Loss and margin of the items at `rows`, written to the store as they come."""
        device = find_device(self.device)
        scorer = Scorer.on(
            device, self.classifier.load(), self.preprocessing, self.batch_size, self.precision
        )
        wanted = [items[row] for row in rows], [targets[row] for row in rows]
        results: list[list[float]] = []
        saved = 0
        with progress("scoring images", len(rows)) as counter:
            try:
                for batch in scorer(source, *wanted):
                    results += batch.tolist()
                    counter.add(len(batch))
                    if store is not None and len(results) - saved >= _SAVE_EVERY:
                        saved = _save(store, rows, keys, results, saved)
            finally:  # also what was done before an unreadable image or Ctrl-C
                if store is not None:
                    _save(store, rows, keys, results, saved)
        return results

    @property
    def _conditions(self) -> str:
        return f"{self.preprocessing}, {self.precision}"

    def _store(self) -> Store | None:
        if self.cache_dir is None:
            return None
        key = hashlib.sha256(f"{self.classifier.identity}; {self._conditions}".encode()).hexdigest()[:16]
        return Store(self.cache_dir / key, dict.fromkeys(_COLUMNS, pa.float64()))

    def _warn_of_chance(self, margins: Floats) -> None:
        right, chance = float((margins > 0).mean()), 1 / self.classifier.outputs
        spread = (chance * (1 - chance) / len(margins)) ** 0.5
        if len(margins) >= _ENOUGH_TO_JUDGE and right < chance + 3 * spread:
            rank_zero_warn(
                f"{self.classifier.architecture} gets {right:.2%} of these images right, no more than guessing would; "
                "check that classifier, mean, std and the data's classes belong together"
            )


def _save(
    store: Store, rows: Sequence[int], keys: Sequence[str], results: Sequence[list[float]], start: int
) -> int:
    """Write results from `start` on; how many are written now."""
    if len(results) > start:
        losses, margins = np.array(results[start:]).T
        names = [keys[row] for row in rows[start : len(results)]]
        store.add(names, loss=pa.array(losses), margin=pa.array(margins))
    return len(results)
