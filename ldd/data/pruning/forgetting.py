"""Pruning by how often training unlearns an image."""

import torch
from torch import Tensor

from ldd.classes import DataSpec
from ldd.data.pruning.ensemble import EnsemblePruner
from ldd.data.pruning.hashing import CACHE_DIR
from ldd.data.pruning.selection import Order, Scope
from ldd.data.pruning.training import ScoringNetwork
from ldd.errors import UserError


class ForgettingPruner(EnsemblePruner):
    """Ranks images by forgetting events (Toneva et al., ICLR 2019, arXiv 1812.05159); published keeping the hard ones.

    An event is an image that was classified rightly after one epoch and wrongly after the next; an image that is never
    right counts as forgotten more often than any other. The original looks when an image is in a batch; here all
    images are looked at after each epoch, in evaluation mode.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest scores, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        networks: how many are trained, 1 or more; the score is the mean.
        training: the network and how it is trained, for 2 epochs or more.
        cache_dir: folder of the scores; null keeps none.

    Raises:
        UserError: a setting is outside its range.
    """

    columns = ("forgetting",)
    description = "forgetting of {} networks,"

    def __init__(
        self,
        keep: float,
        order: Order = "hard",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        networks: int = 1,
        training: ScoringNetwork = ScoringNetwork(epochs=20),  # noqa: B008 - frozen
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, networks, training, cache_dir)
        if training.epochs < 2:
            raise UserError(f"training.epochs={training.epochs}: nothing can be forgotten in fewer than 2")

    def measure(self, piece: int, images: Tensor, labels: Tensor, spec: DataSpec, seed: int) -> Tensor:
        """Events (M, 1) of one network."""
        network = self.training.build(spec, seed, "forgetting", piece)
        history: list[Tensor] = []

        def look(epoch: int, loss: Tensor) -> None:
            history.append(self.training.outputs(network, images, spec).argmax(1) == labels)

        self.training.train(network, images, labels, spec, seed, "forgetting", piece, on_epoch=look)
        return forgetting_events(torch.stack(history)).double()[:, None]


def forgetting_events(right: Tensor) -> Tensor:
    """(M,) events of a history (epochs, M) bool; as many as there are epochs for an image that is never right."""
    events = (right[:-1] & ~right[1:]).sum(0)
    return torch.where(right.any(0), events, len(right))
