"""Evaluation: students trained on a set by a protocol, the sets beside it, soft labels, and the report."""

from typing import TYPE_CHECKING

from ldd.lazy import attach

if TYPE_CHECKING:
    from ldd.evaluation.baselines import (
        Baseline as Baseline,
        Drawn as Drawn,
        EqualBytes as EqualBytes,
        FullReal as FullReal,
        RandomReal as RandomReal,
        Setting as Setting,
    )
    from ldd.evaluation.chosen import (
        EasyReal as EasyReal,
        NearestReal as NearestReal,
        PriorSamples as PriorSamples,
    )
    from ldd.evaluation.comparison import evaluate as evaluate
    from ldd.evaluation.equal import equal_baselines as equal_baselines
    from ldd.evaluation.labels import (
        ExpertLabels as ExpertLabels,
        Labeller as Labeller,
        Labels as Labels,
    )
    from ldd.evaluation.protocols import Protocol as Protocol
    from ldd.evaluation.report import (
        Report as Report,
        Row as Row,
        Score as Score,
    )
    from ldd.evaluation.stored import FixedSet as FixedSet, StoredSet as StoredSet
    from ldd.evaluation.students import train_student as train_student
    from ldd.evaluation.teachers import (
        ClassifierLabels as ClassifierLabels,
        NetworkLabels as NetworkLabels,
    )
    from ldd.evaluation.training_set import (
        Sampler as Sampler,
        TrainingSet as TrainingSet,
    )
    from ldd.evaluation.variants import (
        EqualSteps as EqualSteps,
        Plain as Plain,
        SoftLabels as SoftLabels,
    )

# Lazily: a worker process that trains students needs neither the baselines' data nor the report.
_HOMES = {
    "ldd.evaluation.baselines": (
        "Baseline",
        "Drawn",
        "EqualBytes",
        "FullReal",
        "RandomReal",
        "Setting",
    ),
    "ldd.evaluation.chosen": ("EasyReal", "NearestReal", "PriorSamples"),
    "ldd.evaluation.comparison": ("evaluate",),
    "ldd.evaluation.equal": ("equal_baselines",),
    "ldd.evaluation.labels": ("ExpertLabels", "Labeller", "Labels"),
    "ldd.evaluation.protocols": ("Protocol",),
    "ldd.evaluation.report": ("Report", "Row", "Score"),
    "ldd.evaluation.stored": ("FixedSet", "StoredSet"),
    "ldd.evaluation.students": ("train_student",),
    "ldd.evaluation.teachers": ("ClassifierLabels", "NetworkLabels"),
    "ldd.evaluation.training_set": ("Sampler", "TrainingSet"),
    "ldd.evaluation.variants": ("EqualSteps", "Plain", "SoftLabels"),
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
