"""Pruning that covers all degrees of difficulty instead of one end."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldd.data.pruning.hashing import CACHE_DIR
from ldd.data.pruning.selection import as_fraction, exact_floor
from ldd.data.pruning.stored import TablePruner
from ldd.data.pruning.table import Floats, ScoreTable
from ldd.errors import UserError
from ldd.seeding import generator


class StratifiedPruner(TablePruner):
    """Coverage-centric selection (CCS; Zheng et al., ICLR 2023, arXiv 2210.15809) over a saved score table.

    In each class the hardest images are left out, the range of the remaining scores is cut into equal stretches, and
    the images to keep are shared out evenly among these, from the one with the fewest images on; within a stretch they
    are drawn by chance.

    Args:
        scores: path of the Parquet file with any criterion, e.g. of `latentdd prune`.
        keep: share kept, in (0, 1]; exactly floor(keep x n) of a class with n images.
        strata: stretches of the scores' range (published: 50).
        skip_hardest: share of the hardest images left out first; with `keep` at most 1.
        seed: of the draws; the table knows only the seed of its scores.
        cache_dir: folder of the images' hashes; null keeps none.

    Raises:
        UserError: a setting is outside its range, or the file is no score table.
    """

    def __init__(
        self,
        scores: str,
        keep: float,
        strata: int = 50,
        skip_hardest: float = 0.0,
        seed: int = 0,
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(scores, keep, cache_dir=cache_dir)
        if strata < 1:
            raise UserError(f"strata={strata}: at least 1 is needed")
        if not 0 <= skip_hardest < 1 or as_fraction(skip_hardest) + as_fraction(keep) > 1:
            raise UserError(
                f"skip_hardest={skip_hardest} and keep={keep} are more than there is; skip_hardest is a share of at "
                "least 0, and with keep it is at most 1"
            )
        self.strata = strata
        self.skip_hardest = skip_hardest
        self.seed = seed

    def keep(self, table: ScoreTable) -> Tensor:
        """Indices (m,) int64, ascending, of the items kept."""
        self.selection(table)  # refuses a share that leaves a class empty
        kept: list[int] = []
        places = table.rows["rank"].to_numpy()
        for label, count in enumerate(table.counts):
            mine = np.flatnonzero(table.labels == label)
            # By rank, so that equal scores have one order everywhere.
            mine = mine[np.argsort(places[mine])][: count - exact_floor(self.skip_hardest, count)]
            kept += self._draw(table.values[mine], mine, exact_floor(self.selection.keep, count), label)
        return torch.tensor(sorted(kept))

    def smallest_keep(self, table: ScoreTable, needed: int) -> float | None:
        """Of the images that are not left out as hardest."""
        keep = super().smallest_keep(table, needed)
        fits = keep is not None and as_fraction(self.skip_hardest) + as_fraction(keep) <= 1
        return keep if fits else None

    def _draw(self, values: Floats, rows: npt.NDArray[np.int64], budget: int, label: int) -> list[int]:
        chosen: list[int] = []
        members = [group for group in strata_of(values, self.strata) if len(group)]
        for place, group in enumerate(sorted(members, key=len)):
            share = (budget - len(chosen)) // (len(members) - place)
            draws = generator(self.seed, "stratified", label, place)
            picks = torch.randperm(len(group), generator=draws)[:share].tolist()
            chosen += [int(rows[group[pick]]) for pick in picks]
        return chosen


def strata_of(values: Floats, count: int) -> Sequence[npt.NDArray[np.int64]]:
    """Positions in `values` that fall into each of `count` equal stretches of their range."""
    edges = np.linspace(values.min(), values.max(), count + 1)
    numbers = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, count - 1)
    return [np.flatnonzero(numbers == number) for number in range(count)]
