"""The frame of the criteria that train networks on the data: pieces of work, cached and shared by ranks."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa
from torch import Tensor

from ldd.data.pruning.base import Order, RankedPruner, Scope, complete, hash_items
from ldd.data.pruning.table import Floats, ScoreFacts, ScoreTable
from ldd.data.sources import Item, Source
from ldd.data.splits import load_items
from ldd.disk.table import Store
from ldd.images import DataSpec, Images
from ldd.networks.scoring import ScoringNetwork
from ldd.runtime.progress import progress


class TrainedPruner(RankedPruner):
    """Ranks images by networks trained on them; the final score is the mean over the pieces that cover an image.

    A piece is one network (of a fold, of an ensemble). Finished pieces are kept, so that a killed run goes on after the
    last of them; they are found again by the contents of all images, whatever the folder is called.

    Attributes:
        columns: what a piece gives for an image; the first one ranks.
    """

    columns: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        keep: float,
        order: Order,
        scope: Scope,
        skip_easiest: float,
        training: ScoringNetwork,
        cache_dir: str | None,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, cache_dir)
        self.training = training

    @property
    @abstractmethod
    def pieces(self) -> int:
        """How many networks are needed."""

    @abstractmethod
    def settings(self) -> str:
        """Return this criterion's own settings, in one line."""

    @abstractmethod
    def measure(self, piece: int, images: Images, labels: Tensor, spec: DataSpec, seed: int) -> Tensor:
        """Return (M, len(columns)) float of images (M, 3, S, S) uint8, NaN where this piece does not cover an image."""

    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Return the mean over the pieces, from the cache where they are known."""
        order, ranked, unscored, store = self._prepared(source, items, spec, seed)

        def work(pieces: Sequence[int]) -> list[Floats]:
            return self._measure_all(source, ranked, pieces, store, spec, seed) if pieces else []

        known = [self._find(store, piece, ranked) for piece in range(self.pieces)]
        values = np.empty((len(items), len(self.columns)))
        values[order] = np.nanmean(np.stack(complete(known, work, store)), axis=0)
        named = dict(zip(self.columns, values.T, strict=True))
        both = {name: named.get(name) for name in ("loss", "margin")}
        hashes, facts = unscored.rows["sha256"], unscored.facts
        return ScoreTable.build(items, hashes, spec.classes, facts, values[:, 0], **both)

    def units(self, items: Sequence[Item]) -> int:
        """One for each network."""
        self._check_shared()
        return self.pieces

    def share(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int, units: range) -> None:
        """Train some of the networks."""
        _, ranked, _, store = self._prepared(source, items, spec, seed)
        if missing := [piece for piece in units if self._find(store, piece, ranked) is None]:
            self._measure_all(source, ranked, missing, store, spec, seed)

    def _prepared(
        self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int
    ) -> tuple[list[int], list[Item], ScoreTable, Store | None]:
        """Return the order of the images, the images in it, a table without scores, and where pieces are kept."""
        hashes = hash_items(source, items, self.cache_dir)
        # By class and path, so that nothing depends on how the source lists its images.
        order = sorted(range(len(items)), key=lambda i: (items[i].label, items[i].key))
        facts = ScoreFacts(
            self.columns[0],
            f"{self.settings()} {self.training.describe(spec, seed)}",
            self.training.preprocessing(spec),
            seed,
            *self.training.names(spec),
        )
        unscored = ScoreTable.build(items, hashes, spec.classes, facts, np.zeros(len(items)))
        return order, [items[i] for i in order], unscored, self._store(unscored)

    def _measure_all(
        self,
        source: Source,
        items: Sequence[Item],
        pieces: Sequence[int],
        store: Store | None,
        spec: DataSpec,
        seed: int,
    ) -> list[Floats]:
        decoded = load_items(source, items, "train", self.training.size(spec), self.decoded_in)
        images, results = decoded.images, list[Floats]()
        with progress(f"{self.columns[0]} of networks", len(pieces) * len(items)) as counter:
            for piece in pieces:
                part = self.measure(piece, images, decoded.labels, spec, seed).double().numpy()
                if store is not None:
                    columns = {name: pa.array(part[:, i]) for i, name in enumerate(self.columns)}
                    store.add(_keys(piece, items), **columns)
                results.append(part)
                counter.add(len(items))
        return results

    def _store(self, known: ScoreTable) -> Store | None:
        if self.cache_dir is None:
            return None
        facts = known.facts
        key = f"{facts.classifier}; {facts.preprocessing}; {facts.seed}; {known.fingerprint}; {known.counts}"
        folder = self.cache_dir / hashlib.sha256(key.encode()).hexdigest()[:16]
        return Store(folder, dict.fromkeys(self.columns, pa.float64()))

    def _find(self, store: Store | None, piece: int, items: Sequence[Item]) -> Floats | None:
        if store is None:
            return None
        rows = store.find(_keys(piece, items))
        if rows[self.columns[0]].null_count:
            return None
        return np.stack([rows[name].to_numpy() for name in self.columns], axis=1)


def _keys(piece: int, items: Sequence[Item]) -> list[str]:
    return [f"{piece} {item.label} {item.key}" for item in items]
