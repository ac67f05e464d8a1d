"""Public names of `ldd.data`, and where they are defined."""

from ldd.data.datamodule import DistillationData as DistillationData
from ldd.data.folders import FolderSource as FolderSource
from ldd.data.pruning import (
    CrossFittedLossPruner as CrossFittedLossPruner,
    EL2NPruner as EL2NPruner,
    ForgettingPruner as ForgettingPruner,
    GraNdPruner as GraNdPruner,
    HerdingPruner as HerdingPruner,
    KCenterPruner as KCenterPruner,
    ListPruner as ListPruner,
    LossPruner as LossPruner,
    Pruner as Pruner,
    RandomPruner as RandomPruner,
    RankedPruner as RankedPruner,
    ScoreFacts as ScoreFacts,
    ScoreTable as ScoreTable,
    ScoringNetwork as ScoringNetwork,
    StratifiedPruner as StratifiedPruner,
    TablePruner as TablePruner,
)
from ldd.data.real import RealImages as RealImages
from ldd.data.sources import (
    DigitsSource as DigitsSource,
    Item as Item,
    Source as Source,
    SourceFactory as SourceFactory,
    UnreadableImage as UnreadableImage,
)
from ldd.data.subsets import Subset as Subset
