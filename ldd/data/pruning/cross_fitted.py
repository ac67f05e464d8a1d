"""Pruning by the loss of networks trained on the data, none of which saw the image that it scores."""

import torch
from torch import Tensor

from ldd.data.pruning.base import CACHE_DIR, Order, Scope
from ldd.data.pruning.scoring import losses_and_margins
from ldd.data.pruning.trained import TrainedPruner
from ldd.errors import UserError
from ldd.images import DataSpec, Images, rows_by_label, rows_of
from ldd.networks.scoring import ScoringNetwork
from ldd.runtime.seeding import generator


class CrossFittedLossPruner(TrainedPruner):
    """Ranks images by cross-entropy, as `LossPruner`, where no pre-trained classifier knows the classes.

    The images of each class are dealt to folds; for every fold a network is trained on the others and scores it.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest losses, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        folds: networks trained, at least 2, and no more than the smallest class has images.
        training: the network and how it is trained.
        cache_dir: folder of the scores; null keeps none.

    Raises:
        UserError: a setting is outside its range.
    """

    columns = ("loss", "margin")

    def __init__(
        self,
        keep: float,
        order: Order = "easy",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        folds: int = 4,
        training: ScoringNetwork = ScoringNetwork(),  # noqa: B008 - frozen
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, training, cache_dir)
        if folds < 2:
            raise UserError(
                f"folds={folds}: at least 2 are needed, so that a network scores images it has not seen"
            )
        self.folds = folds

    @property
    def pieces(self) -> int:
        """One network for each fold."""
        return self.folds

    def settings(self) -> str:
        """Return the number of folds."""
        return f"cross-fitted over {self.folds} folds,"

    def measure(self, piece: int, images: Images, labels: Tensor, spec: DataSpec, seed: int) -> Tensor:
        """Return loss and margin of one fold's images under a network trained on the rest, NaN for all others."""
        held_out = fold_numbers(labels, self.folds, spec, seed) == piece
        seen, unseen = ((held_out == side).nonzero().flatten() for side in (False, True))
        of_seen = rows_of(images, seen), labels[seen]
        network = self.training.trained(*of_seen, spec, seed, "cross-fitted", piece)
        found = torch.full((len(labels), 2), torch.nan, dtype=torch.float64)
        found[unseen] = self.training.judged(
            network, rows_of(images, unseen), labels[unseen], spec, losses_and_margins
        )
        return found


def fold_numbers(labels: Tensor, folds: int, spec: DataSpec, seed: int) -> Tensor:
    """Return (M,) the fold of each image: equal parts of every class, drawn at random."""
    numbers = torch.empty_like(labels)
    for label, rows in rows_by_label(labels):
        wnid = spec.classes[label].wnid
        if len(rows) < folds:
            raise UserError(
                f"folds={folds}, but class {wnid!r} has {len(rows)} images; use at most as many folds"
            )
        shuffled = torch.randperm(len(rows), generator=generator(seed, "folds", wnid))
        numbers[rows[shuffled]] = torch.arange(len(rows)) % folds
    return numbers
