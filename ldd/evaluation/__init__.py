"""Evaluation: students trained on a set by a protocol, the sets beside it, soft labels, and the report."""

from typing import TYPE_CHECKING

from ldd.runtime.lazy import attach

if TYPE_CHECKING:
    from ldd.evaluation.baselines.base import (
        Baseline as Baseline,
        Drawn as Drawn,
        EqualBytes as EqualBytes,
        FullReal as FullReal,
        RandomReal as RandomReal,
        Setting as Setting,
    )
    from ldd.evaluation.baselines.chosen import (
        EasyReal as EasyReal,
        NearestReal as NearestReal,
        PriorSamples as PriorSamples,
    )
    from ldd.evaluation.baselines.equal import equal_baselines as equal_baselines
    from ldd.evaluation.baselines.stored import FixedSet as FixedSet, StoredSet as StoredSet
    from ldd.evaluation.baselines.variants import (
        EqualSteps as EqualSteps,
        Plain as Plain,
        SoftLabels as SoftLabels,
    )
    from ldd.evaluation.comparison import evaluate as evaluate
    from ldd.evaluation.results.report import Report as Report, Row as Row, Score as Score
    from ldd.labels.base import Labeller as Labeller, Labels as Labels
    from ldd.labels.expert import ExpertLabels as ExpertLabels
    from ldd.labels.teachers import ClassifierLabels as ClassifierLabels, NetworkLabels as NetworkLabels
    from ldd.students.protocol import Protocol as Protocol
    from ldd.students.training import train_student as train_student
    from ldd.students.training_set import Sampler as Sampler, TrainingSet as TrainingSet

# Lazily: a worker process that trains students needs neither the baselines' data nor the report.
_HOMES = {
    "ldd.evaluation.baselines.base": (
        "Baseline",
        "Drawn",
        "EqualBytes",
        "FullReal",
        "RandomReal",
        "Setting",
    ),
    "ldd.evaluation.baselines.chosen": ("EasyReal", "NearestReal", "PriorSamples"),
    "ldd.evaluation.comparison": ("evaluate",),
    "ldd.evaluation.baselines.equal": ("equal_baselines",),
    "ldd.labels.base": ("Labeller", "Labels"),
    "ldd.labels.expert": ("ExpertLabels",),
    "ldd.students.protocol": ("Protocol",),
    "ldd.evaluation.results.report": ("Report", "Row", "Score"),
    "ldd.evaluation.baselines.stored": ("FixedSet", "StoredSet"),
    "ldd.students.training": ("train_student",),
    "ldd.labels.teachers": ("ClassifierLabels", "NetworkLabels"),
    "ldd.students.training_set": ("Sampler", "TrainingSet"),
    "ldd.evaluation.baselines.variants": ("EqualSteps", "Plain", "SoftLabels"),
}

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
    "equal_baselines",
    "evaluate",
    "train_student",
)

__getattr__ = attach(__name__, _HOMES)
