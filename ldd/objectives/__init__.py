"""Objectives: one file each, all driven by `Distiller` through `Objective.terms`."""

from ldd.experts.trajectories import ExpertNeed
from ldd.objectives.alternating import Alternating
from ldd.objectives.base import CODES, DECODER, Objective, StepContext, Term
from ldd.objectives.characteristic import CharacteristicMatching
from ldd.objectives.discrepancy import Discrepancy, RBFMixture, Sinkhorn
from ldd.objectives.distribution import DistributionMatching
from ldd.objectives.gradient import GradientMatching
from ldd.objectives.mmd import MaximumMeanDiscrepancy
from ldd.objectives.trajectory import TrajectoryMatching

__all__ = (
    "CODES",
    "DECODER",
    "Alternating",
    "CharacteristicMatching",
    "Discrepancy",
    "DistributionMatching",
    "ExpertNeed",
    "GradientMatching",
    "MaximumMeanDiscrepancy",
    "Objective",
    "RBFMixture",
    "Sinkhorn",
    "StepContext",
    "Term",
    "TrajectoryMatching",
)
