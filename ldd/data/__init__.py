"""Real data: where images come from, which of them are kept, and how they reach a model."""

from ldd.data.datamodule import DistillationData
from ldd.data.folders import FolderSource
from ldd.data.pruning import (
    CrossFittedLossPruner,
    EL2NPruner,
    ForgettingPruner,
    GraNdPruner,
    HerdingPruner,
    KCenterPruner,
    ListPruner,
    LossPruner,
    Pruner,
    RandomPruner,
    RankedPruner,
    ScoreFacts,
    ScoreTable,
    ScoringNetwork,
    StratifiedPruner,
    TablePruner,
)
from ldd.data.real import RealImages
from ldd.data.sources import DigitsSource, Item, Source, SourceFactory, UnreadableImage
from ldd.data.subsets import Subset

__all__ = [
    "CrossFittedLossPruner",
    "DigitsSource",
    "DistillationData",
    "EL2NPruner",
    "FolderSource",
    "ForgettingPruner",
    "GraNdPruner",
    "HerdingPruner",
    "Item",
    "KCenterPruner",
    "ListPruner",
    "LossPruner",
    "Pruner",
    "RandomPruner",
    "RankedPruner",
    "RealImages",
    "ScoreFacts",
    "ScoreTable",
    "ScoringNetwork",
    "Source",
    "SourceFactory",
    "StratifiedPruner",
    "Subset",
    "TablePruner",
    "UnreadableImage",
]
