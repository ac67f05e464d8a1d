"""The frame of the criteria that average over networks."""

from typing import ClassVar

from ldd.data.pruning.hashing import CACHE_DIR
from ldd.data.pruning.selection import Order, Scope
from ldd.data.pruning.trained import TrainedPruner
from ldd.data.pruning.training import ScoringNetwork
from ldd.errors import UserError


class EnsemblePruner(TrainedPruner):
    """Ranks images by the mean of a criterion over several networks, a piece each.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest scores, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        networks: how many are asked, 1 or more.
        training: the network and how it is trained.
        cache_dir: folder of the scores; null keeps none.

    Attributes:
        description: the criterion in one line with {} for the number of networks; scores are kept under it.

    Raises:
        UserError: a setting is outside its range.
    """

    description: ClassVar[str]

    def __init__(
        self,
        keep: float,
        order: Order = "hard",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        networks: int = 10,
        training: ScoringNetwork = ScoringNetwork(),  # noqa: B008 - frozen
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, training, cache_dir)
        if networks < 1:
            raise UserError(f"networks={networks}: at least 1 is needed")
        self.networks = networks

    @property
    def pieces(self) -> int:
        """Networks."""
        return self.networks

    def settings(self) -> str:
        """The criterion and its number of networks."""
        return self.description.format(self.networks)
