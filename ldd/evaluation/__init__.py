"""Evaluation: students trained on a set by a protocol, the sets beside it, soft labels, and the report."""

from ldd.evaluation.baselines import (
    Baseline,
    EqualBytes,
    FixedSet,
    FullReal,
    RandomReal,
    Setting,
    StoredSet,
    default_baselines,
)
from ldd.evaluation.comparison import evaluate
from ldd.evaluation.labels import ExpertLabels, Labeller, Labels
from ldd.evaluation.protocols import Protocol
from ldd.evaluation.report import Report, Row, Score
from ldd.evaluation.students import train_student
from ldd.evaluation.training_set import Sampler, TrainingSet

__all__ = (
    "Baseline",
    "EqualBytes",
    "ExpertLabels",
    "FixedSet",
    "FullReal",
    "Labeller",
    "Labels",
    "Protocol",
    "RandomReal",
    "Report",
    "Row",
    "Sampler",
    "Score",
    "Setting",
    "StoredSet",
    "TrainingSet",
    "default_baselines",
    "evaluate",
    "train_student",
)
