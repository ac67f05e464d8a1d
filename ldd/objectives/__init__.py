"""Objectives: one file each, all driven by `Distiller` through `Objective.terms`."""

from ldd.objectives.base import Objective, StepContext, Term
from ldd.objectives.distribution import DistributionMatching
from ldd.objectives.gradient import GradientMatching
from ldd.objectives.trajectory import TrajectoryMatching

__all__ = (
    "DistributionMatching",
    "GradientMatching",
    "Objective",
    "StepContext",
    "Term",
    "TrajectoryMatching",
)
