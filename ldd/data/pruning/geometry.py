"""Pruning by where images lie among the features of their class: herding and k-centre."""

from abc import abstractmethod

import torch
from torch import Tensor

from ldd.data.pruning.base import CACHE_DIR
from ldd.data.pruning.trained import TrainedPruner
from ldd.images import DataSpec, Images, rows_by_label
from ldd.networks.scoring import ScoringNetwork, by_class


class GreedyPruner(TrainedPruner):
    """Picks the images of each class one after the other; the score is the place in that order, so shares are nested.

    Features are what the last layer of a network trained on the data sees.
    """

    def __init__(
        self,
        keep: float,
        training: ScoringNetwork = ScoringNetwork(),  # noqa: B008 - frozen
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, "easy", "class", 0.0, training, cache_dir)

    @property
    def pieces(self) -> int:
        """One network."""
        return 1

    def settings(self) -> str:
        """Return the criterion alone."""
        return f"{self.columns[0]} on features of"

    def measure(self, piece: int, images: Images, labels: Tensor, spec: DataSpec, seed: int) -> Tensor:
        """Return places (M, 1) in the order of picking."""
        network = self.training.trained(images, labels, spec, seed, "features")
        places = torch.empty(len(labels), 1, dtype=torch.float64)
        parts = self.training.features_in_parts(network, images, spec)
        for (_, mine), features in zip(rows_by_label(labels), by_class(parts, labels), strict=True):
            order = self.order(features.double())
            places[mine[order], 0] = torch.arange(len(mine), dtype=torch.float64)
        return places

    @staticmethod
    @abstractmethod
    def order(features: Tensor) -> Tensor:
        """Return the rows of `features` (n, F) in the order in which they are picked, (n,) int64."""


class HerdingPruner(GreedyPruner):
    """Picks images whose mean stays as near as possible to the mean of the class (Welling, ICML 2009).

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of a class with n images.
        training: the network whose features are taken, and how it is trained.
        cache_dir: folder of the scores; null keeps none.

    Raises:
        UserError: `keep` is outside (0, 1].
    """

    columns = ("herding",)

    @staticmethod
    def order(features: Tensor) -> Tensor:
        """Pick all by `herd`."""
        return herd(features, features.mean(0), len(features))


def herd(features: Tensor, target: Tensor, count: int) -> Tensor:
    """Pick `count` rows of `features` (n, F), int64: each brings the mean of the picks nearest to `target` (F,)."""
    total, free = torch.zeros_like(target), torch.zeros(len(features), dtype=features.dtype)
    picks: list[int] = []
    for size in range(1, count + 1):
        distance = torch.linalg.vector_norm((total + features) / size - target, dim=1) + free
        picks.append(int(distance.argmin()))
        total = total + features[picks[-1]]
        free[picks[-1]] = torch.inf
    return torch.tensor(picks)


class KCenterPruner(GreedyPruner):
    """Picks images that leave no other far from all picks (Sener and Savarese, ICLR 2018, arXiv 1708.00489).

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of a class with n images.
        training: the network whose features are taken, and how it is trained.
        cache_dir: folder of the scores; null keeps none.

    Raises:
        UserError: `keep` is outside (0, 1].
    """

    columns = ("k_center",)

    @staticmethod
    def order(features: Tensor) -> Tensor:
        """Pick the image nearest to the class mean, then always the one farthest from all picks."""
        start = torch.linalg.vector_norm(features - features.mean(0), dim=1).argmin()
        picks = [int(start)]
        distance = torch.full((len(features),), torch.inf, dtype=features.dtype)
        for _ in range(len(features) - 1):
            distance = torch.minimum(
                distance, torch.linalg.vector_norm(features - features[picks[-1]], dim=1)
            )
            distance[picks[-1]] = -1
            picks.append(int(distance.argmax()))
        return torch.tensor(picks)
