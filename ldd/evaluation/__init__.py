"""Evaluation: students trained on a set by a protocol, the sets beside it, and the report."""

from ldd.evaluation.baselines import Baseline, FixedSet, FullReal, RandomReal, Setting
from ldd.evaluation.comparison import evaluate
from ldd.evaluation.protocols import Protocol
from ldd.evaluation.report import Report, Row, Score
from ldd.evaluation.students import train_student

__all__ = (
    "Baseline",
    "FixedSet",
    "FullReal",
    "Protocol",
    "RandomReal",
    "Report",
    "Row",
    "Score",
    "Setting",
    "evaluate",
    "train_student",
)
