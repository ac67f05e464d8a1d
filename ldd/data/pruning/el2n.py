"""Pruning by how far young networks are from the truth."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ldd.classes import DataSpec
from ldd.data.pruning.ensemble import EnsemblePruner
from ldd.data.pruning.hashing import CACHE_DIR
from ldd.data.pruning.selection import Order, Scope
from ldd.data.pruning.training import ScoringNetwork


class EL2NPruner(EnsemblePruner):
    """Ranks images by the length of the error vector early in training (Paul et al., NeurIPS 2021, arXiv 2107.07075).

    The score is the mean over networks of |softmax(logits) - one-hot label|; published with 10 networks after 20 of 200
    epochs, keeping the hard images.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest scores, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        networks: how many are trained, 1 or more.
        training: the network and how it is trained; its epochs are those after which it is asked.
        cache_dir: folder of the scores; null keeps none.

    Raises:
        UserError: a setting is outside its range.
    """

    columns = ("el2n",)
    description = "el2n over {} networks,"

    def __init__(
        self,
        keep: float,
        order: Order = "hard",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        networks: int = 10,
        training: ScoringNetwork = ScoringNetwork(epochs=2),  # noqa: B008 - frozen
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, networks, training, cache_dir)

    def measure(self, piece: int, images: Tensor, labels: Tensor, spec: DataSpec, seed: int) -> Tensor:
        """Error lengths (M, 1) under one network."""
        network = self.training.build(spec, seed, "el2n", piece)
        self.training.train(network, images, labels, spec, seed, "el2n", piece)
        return error_lengths(self.training.outputs(network, images, spec), labels)[:, None]


def error_lengths(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) |softmax(logits) - one-hot label| of logits (N, K), between 0 and the square root of 2."""
    truth = F.one_hot(labels, logits.shape[1])
    lengths: Tensor = torch.linalg.vector_norm(logits.softmax(1) - truth, dim=1)
    return lengths
