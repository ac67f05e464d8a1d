"""Pruning before distillation: every training image gets a score, and a share of the images is kept."""

from ldd.data.pruning.base import (
    Order,
    Pruner,
    RandomPruner,
    RankedPruner,
    Scope,
    Selection,
    exact_floor,
    smallest_keep,
)
from ldd.data.pruning.cross_fitted import CrossFittedLossPruner
from ldd.data.pruning.dynamics import EL2NPruner, ForgettingPruner, GraNdPruner
from ldd.data.pruning.geometry import HerdingPruner, KCenterPruner
from ldd.data.pruning.lists import ListPruner, write_lists
from ldd.data.pruning.loss import LossPruner
from ldd.data.pruning.stored import StratifiedPruner, TablePruner
from ldd.data.pruning.table import ScoreFacts, ScoreTable
from ldd.networks.scoring import ScoringNetwork

__all__ = [
    "CrossFittedLossPruner",
    "EL2NPruner",
    "ForgettingPruner",
    "GraNdPruner",
    "HerdingPruner",
    "KCenterPruner",
    "ListPruner",
    "LossPruner",
    "Order",
    "Pruner",
    "RandomPruner",
    "RankedPruner",
    "Scope",
    "ScoreFacts",
    "ScoreTable",
    "ScoringNetwork",
    "Selection",
    "StratifiedPruner",
    "TablePruner",
    "exact_floor",
    "smallest_keep",
    "write_lists",
]
