"""A random share of each class: the baseline of every other pruner."""

from collections.abc import Sequence

import torch

from ldd.data.pruning.base import RankedPruner
from ldd.data.pruning.selection import Scope
from ldd.data.pruning.table import ScoreFacts, ScoreTable
from ldd.data.sources import Item, Source
from ldd.images import DataSpec
from ldd.runtime.seeding import generator


class RandomPruner(RankedPruner):
    """Keeps a random share, drawn from the data's seed.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        scope: `class` keeps the share of every class, `global` of all images together.

    Raises:
        UserError: `keep` is outside (0, 1].
    """

    def __init__(self, keep: float, scope: Scope = "class") -> None:
        super().__init__(keep, scope=scope)

    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Random numbers in [0, 1), a stream per class; no file is opened, so the table has no hashes."""
        labels = torch.tensor([item.label for item in items], dtype=torch.int64)
        values = torch.empty(len(items), dtype=torch.float64)
        for label in labels.unique().tolist():
            mine = labels == label
            draws = generator(seed, "random pruner", spec.classes[label].wnid)
            values[mine] = torch.rand(int(mine.sum()), dtype=torch.float64, generator=draws)
        facts = ScoreFacts("random", seed=seed)
        return ScoreTable.build(items, None, spec.classes, facts, values.numpy())
