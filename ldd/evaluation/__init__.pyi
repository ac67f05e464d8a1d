"""Public names of `ldd.evaluation`, and where they are defined."""

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
from ldd.evaluation.baselines.compressed import (
    CompressedReal as CompressedReal,
    EncodedReal as EncodedReal,
)
from ldd.evaluation.baselines.equal import equal_baselines as equal_baselines
from ldd.evaluation.baselines.stored import FixedSet as FixedSet, StoredSet as StoredSet
from ldd.evaluation.baselines.variants import (
    EqualSteps as EqualSteps,
    Plain as Plain,
    SoftLabels as SoftLabels,
)
from ldd.evaluation.comparison import evaluate as evaluate
from ldd.evaluation.results.report import Report as Report
from ldd.evaluation.results.rows import Row as Row, Score as Score
from ldd.labels.base import Labeller as Labeller, Labels as Labels
from ldd.labels.expert import ExpertLabels as ExpertLabels
from ldd.labels.teachers import ClassifierLabels as ClassifierLabels, NetworkLabels as NetworkLabels
from ldd.students.protocol import Protocol as Protocol
from ldd.students.training import train_student as train_student
from ldd.students.training_set import Sampler as Sampler, TrainingSet as TrainingSet
