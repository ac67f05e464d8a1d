"""What every pruner is, and the selection most of them share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from ldd.data.pruning.selection import Order, Scope, Selection
from ldd.data.pruning.table import ScoreTable
from ldd.data.sources import Item, Source
from ldd.images import DataSpec


class Pruner(ABC):
    """Chooses the core-set of a training split, before the images are resized for the run."""

    @abstractmethod
    def score(self, source: Source, items: Sequence[Item], spec: DataSpec, seed: int) -> ScoreTable:
        """Scores of all `items`, a row each, in this order; the only part that may be slow.

        Where torch.distributed is initialised the ranks share the work, so all of them must call it.

        Args:
            source: where the images come from.
            items: training images that can be read.
            spec: classes and normalisation; its image size only matters to networks trained on the data.
            seed: of everything random.

        Raises:
            UserError: an unreadable image, or settings that do not fit the data.
        """

    @abstractmethod
    def keep(self, table: ScoreTable) -> Tensor:
        """Indices (m,) int64, ascending, of the items kept, at least one of each class.

        Raises:
            UserError: a class would be left empty.
        """

    def smallest_keep(self, table: ScoreTable, needed: int) -> float | None:
        """Smallest share kept that leaves `needed` images in every class; None: none does, or it takes no share."""
        return None


class RankedPruner(Pruner):
    """Keeps one end of an order.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest scores, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.

    Raises:
        UserError: a share is outside its range, or the settings contradict each other.
    """

    def __init__(
        self, keep: float, order: Order = "easy", scope: Scope = "class", skip_easiest: float = 0.0
    ) -> None:
        self.selection = Selection(keep, order, scope, skip_easiest)

    def keep(self, table: ScoreTable) -> Tensor:
        """Indices (m,) int64, ascending, of the items kept; see `Selection`."""
        return self.selection(table)

    def smallest_keep(self, table: ScoreTable, needed: int) -> float | None:
        """As `Selection.smallest_keep`."""
        return self.selection.smallest_keep(table, needed)
