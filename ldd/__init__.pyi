"""Public names of `ldd`, each once: type checkers read this file, and so does `ldd.runtime.lazy`."""

from ldd.artefact.set import DistilledSet as DistilledSet
from ldd.augmentation.siamese import SiameseAugmentation as SiameseAugmentation
from ldd.callbacks import (
    CrossArchitecture as CrossArchitecture,
    Export as Export,
    LastCheckpoints as LastCheckpoints,
    Preview as Preview,
    RecordExperts as RecordExperts,
)
from ldd.codes import (
    CodeBatch as CodeBatch,
    Codes as Codes,
    GaussianCodes as GaussianCodes,
    PackedCodes as PackedCodes,
    PointCodes as PointCodes,
    SpectralCodes as SpectralCodes,
    stored_codes as stored_codes,
)
from ldd.data import (
    CrossFittedLossPruner as CrossFittedLossPruner,
    DigitsSource as DigitsSource,
    DistillationData as DistillationData,
    EL2NPruner as EL2NPruner,
    FolderSource as FolderSource,
    ForgettingPruner as ForgettingPruner,
    GraNdPruner as GraNdPruner,
    HerdingPruner as HerdingPruner,
    KCenterPruner as KCenterPruner,
    ListPruner as ListPruner,
    LossPruner as LossPruner,
    Pruner as Pruner,
    RandomPruner as RandomPruner,
    RankedPruner as RankedPruner,
    ScoreFacts as ScoreFacts,
    ScoreTable as ScoreTable,
    ScoringNetwork as ScoringNetwork,
    Source as Source,
    StratifiedPruner as StratifiedPruner,
    TablePruner as TablePruner,
)
from ldd.distiller.module import Distiller as Distiller
from ldd.distiller.rediffusion import Rediffusion as Rediffusion, rediffuse as rediffuse
from ldd.distiller.synthesis import Quirks as Quirks
from ldd.errors import (
    NonFiniteError as NonFiniteError,
    UserError as UserError,
)
from ldd.evaluation import (
    Protocol as Protocol,
    Report as Report,
    evaluate as evaluate,
)
from ldd.images import ClassInfo as ClassInfo, DataSpec as DataSpec, Labelled as Labelled
from ldd.initializers import (
    AutoencoderFeatures as AutoencoderFeatures,
    DifficultyMatched as DifficultyMatched,
    EntropyGuidance as EntropyGuidance,
    GaussianLatents as GaussianLatents,
    Guidance as Guidance,
    HerdedOrder as HerdedOrder,
    Initializer as Initializer,
    InvertedStatistics as InvertedStatistics,
    JointGuidance as JointGuidance,
    KMeansCentroids as KMeansCentroids,
    LossGuidance as LossGuidance,
    ModeGuidance as ModeGuidance,
    PriorSamples as PriorSamples,
    PublishedFeatures as PublishedFeatures,
    RealEncodings as RealEncodings,
    SeparatedGroups as SeparatedGroups,
    StoredCodes as StoredCodes,
    TrainedFeatures as TrainedFeatures,
    TransportGuidance as TransportGuidance,
)
from ldd.networks import (
    VGG11 as VGG11,
    AlexNet as AlexNet,
    ConvNet as ConvNet,
    Network as Network,
    NetworkFactory as NetworkFactory,
    ResNet18 as ResNet18,
    ResNetAP10 as ResNetAP10,
    ViT as ViT,
)
from ldd.objectives import (
    Alternating as Alternating,
    CharacteristicMatching as CharacteristicMatching,
    DistributionMatching as DistributionMatching,
    GradientMatching as GradientMatching,
    MaximumMeanDiscrepancy as MaximumMeanDiscrepancy,
    Objective as Objective,
    RBFMixture as RBFMixture,
    Sinkhorn as Sinkhorn,
    StepContext as StepContext,
    Term as Term,
    TrajectoryMatching as TrajectoryMatching,
)
from ldd.priors import (
    AutoencoderPrior as AutoencoderPrior,
    DeconvolutionPrior as DeconvolutionPrior,
    LatentDiffusionPrior as LatentDiffusionPrior,
    NeckPrior as NeckPrior,
    PixelPrior as PixelPrior,
    Prior as Prior,
)
from ldd.runs.distil import distil as distil

__version__: str
