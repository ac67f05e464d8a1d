"""Evaluation: students trained on a set by a protocol, the sets beside it, soft labels, and the report."""

from ldd.evaluation.baselines import (
    Baseline,
    Drawn,
    EqualBytes,
    FixedSet,
    FullReal,
    RandomReal,
    Setting,
    StoredSet,
    default_baselines,
)
from ldd.evaluation.chosen import EasyReal, NearestReal, PriorSamples
from ldd.evaluation.comparison import evaluate
from ldd.evaluation.labels import ExpertLabels, Labeller, Labels
from ldd.evaluation.protocols import Protocol
from ldd.evaluation.report import Report, Row, Score
from ldd.evaluation.students import train_student
from ldd.evaluation.teachers import ClassifierLabels, NetworkLabels
from ldd.evaluation.training_set import Sampler, TrainingSet
from ldd.evaluation.variants import EqualSteps, Plain, SoftLabels

__all__ = (
    "Baseline",
    "ClassifierLabels",
    "Drawn",
    "EasyReal",
    "EqualBytes",
    "EqualSteps",
    "ExpertLabels",
    "FixedSet",
    "FullReal",
    "Labeller",
    "Labels",
    "NearestReal",
    "NetworkLabels",
    "Plain",
    "PriorSamples",
    "Protocol",
    "RandomReal",
    "Report",
    "Row",
    "Sampler",
    "Score",
    "Setting",
    "SoftLabels",
    "StoredSet",
    "TrainingSet",
    "default_baselines",
    "evaluate",
    "train_student",
)
