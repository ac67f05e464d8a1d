"""Pruning before distillation: every training image gets a score, and a share of the images is kept."""

from ldd.data.pruning.base import (
    Order as Order,
    Pruner as Pruner,
    RandomPruner as RandomPruner,
    RankedPruner as RankedPruner,
    Scope as Scope,
    Selection as Selection,
    exact_floor as exact_floor,
    smallest_keep as smallest_keep,
)
from ldd.data.pruning.cross_fitted import CrossFittedLossPruner as CrossFittedLossPruner
from ldd.data.pruning.dynamics import (
    EL2NPruner as EL2NPruner,
    ForgettingPruner as ForgettingPruner,
    GraNdPruner as GraNdPruner,
)
from ldd.data.pruning.geometry import HerdingPruner as HerdingPruner, KCenterPruner as KCenterPruner
from ldd.data.pruning.lists import ListPruner as ListPruner, write_lists as write_lists
from ldd.data.pruning.loss import LossPruner as LossPruner
from ldd.data.pruning.stored import StratifiedPruner as StratifiedPruner, TablePruner as TablePruner
from ldd.data.pruning.table import ScoreFacts as ScoreFacts, ScoreTable as ScoreTable
from ldd.networks.scoring import ScoringNetwork as ScoringNetwork
