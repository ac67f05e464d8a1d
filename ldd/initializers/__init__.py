"""Initialisers: where codes start; with `trainer.max_steps: 0` and a prior with `num_steps: 0` each is a distiller."""

from ldd.initializers.base import ClassInitializer, ClassStart, Initializer
from ldd.initializers.guidance import Guidance, LossGuidance
from ldd.initializers.guides import EntropyGuidance, JointGuidance, TransportGuidance
from ldd.initializers.inverted import InvertedStatistics
from ldd.initializers.kmeans import KMeansCentroids, ModeGuidance
from ldd.initializers.real import GaussianLatents, RealEncodings
from ldd.initializers.samples import PriorSamples
from ldd.initializers.selection import DifficultyMatched, HerdedOrder, PoolSelection, SeparatedGroups
from ldd.initializers.spaces import AutoencoderFeatures, FeatureSpace, PublishedFeatures, TrainedFeatures
from ldd.initializers.stored import StoredCodes
from ldd.priors.sampling import sample_class

__all__ = (
    "AutoencoderFeatures",
    "ClassInitializer",
    "ClassStart",
    "DifficultyMatched",
    "EntropyGuidance",
    "FeatureSpace",
    "GaussianLatents",
    "Guidance",
    "HerdedOrder",
    "Initializer",
    "InvertedStatistics",
    "JointGuidance",
    "KMeansCentroids",
    "LossGuidance",
    "ModeGuidance",
    "PoolSelection",
    "PriorSamples",
    "PublishedFeatures",
    "RealEncodings",
    "SeparatedGroups",
    "StoredCodes",
    "TrainedFeatures",
    "TransportGuidance",
    "sample_class",
)
