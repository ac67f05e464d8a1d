"""Initialisers: where codes start; with `trainer.max_steps: 0` and a prior with `num_steps: 0` each is a distiller."""

from ldd.initializers.base import ClassInitializer, ClassStart, Initializer
from ldd.initializers.guidance import LossGuidance
from ldd.initializers.inverted import InvertedStatistics
from ldd.initializers.kmeans import KMeansCentroids, ModeGuidance
from ldd.initializers.real import GaussianLatents, RealEncodings
from ldd.initializers.samples import PriorSamples
from ldd.initializers.selection import DifficultyMatched, HerdedOrder, PoolSelection, SeparatedGroups
from ldd.initializers.stored import StoredCodes
from ldd.priors.sampling import sample_class

__all__ = (
    "ClassInitializer",
    "ClassStart",
    "DifficultyMatched",
    "GaussianLatents",
    "HerdedOrder",
    "Initializer",
    "InvertedStatistics",
    "KMeansCentroids",
    "LossGuidance",
    "ModeGuidance",
    "PoolSelection",
    "PriorSamples",
    "RealEncodings",
    "SeparatedGroups",
    "StoredCodes",
    "sample_class",
)
