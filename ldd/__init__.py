"""Dataset distillation through frozen latent diffusion models.

Notation, declared once:
    N codes, K classes, IPC images per class; N = K x IPC in class-major order.
    C, H, W of an image; c, h, w of a latent; L tokens of width D of a conditioning.
    S steps of the reverse process, K_S = S - 1 its last index k; abar the cumulative product of 1 - beta.
    Z latents, c conditions, n noise; e the predicted noise, x0 the predicted clean latents.
    Images are RGB float32 in [-1, 1] in memory and uint8 on disk; networks see them normalised by
    `DataSpec.normalise`, real and synthetic ones alike.
    Latents are in the denoiser's scaled space.
    Labels are 0..K-1 inside a run; `ClassInfo` travels beside them. A prior's own class-table rows are a third
    thing: `Prior.rows` maps classes to them.
    Accuracy is top-1 in [0, 1].
    Random draws are stateless: derived from (seed, step, purpose, class), see `ldd.runtime.seeding`.
"""

from typing import TYPE_CHECKING

from ldd.runtime.lazy import attach

__version__ = "0.1.0"

if TYPE_CHECKING:
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
        PointCodes as PointCodes,
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
    from ldd.distiller.quirks import Quirks as Quirks
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
        DifficultyMatched as DifficultyMatched,
        GaussianLatents as GaussianLatents,
        HerdedOrder as HerdedOrder,
        Initializer as Initializer,
        InvertedStatistics as InvertedStatistics,
        KMeansCentroids as KMeansCentroids,
        LossGuidance as LossGuidance,
        ModeGuidance as ModeGuidance,
        PriorSamples as PriorSamples,
        RealEncodings as RealEncodings,
        SeparatedGroups as SeparatedGroups,
        StoredCodes as StoredCodes,
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

_HOMES = {
    "ldd.augmentation.siamese": ("SiameseAugmentation",),
    "ldd.callbacks": ("CrossArchitecture", "Export", "LastCheckpoints", "Preview", "RecordExperts"),
    "ldd.images": ("ClassInfo", "DataSpec", "Labelled"),
    "ldd.codes": ("CodeBatch", "Codes", "GaussianCodes", "PointCodes", "stored_codes"),
    "ldd.data": (
        "CrossFittedLossPruner",
        "DigitsSource",
        "DistillationData",
        "EL2NPruner",
        "FolderSource",
        "ForgettingPruner",
        "GraNdPruner",
        "HerdingPruner",
        "KCenterPruner",
        "ListPruner",
        "LossPruner",
        "Pruner",
        "RandomPruner",
        "RankedPruner",
        "ScoreFacts",
        "ScoreTable",
        "ScoringNetwork",
        "Source",
        "StratifiedPruner",
        "TablePruner",
    ),
    "ldd.artefact.set": ("DistilledSet",),
    "ldd.distiller.module": ("Distiller",),
    "ldd.errors": ("NonFiniteError", "UserError"),
    "ldd.evaluation": ("Protocol", "Report", "evaluate"),
    "ldd.initializers": (
        "DifficultyMatched",
        "GaussianLatents",
        "HerdedOrder",
        "Initializer",
        "InvertedStatistics",
        "KMeansCentroids",
        "LossGuidance",
        "ModeGuidance",
        "PriorSamples",
        "RealEncodings",
        "SeparatedGroups",
        "StoredCodes",
    ),
    "ldd.networks": (
        "AlexNet",
        "ConvNet",
        "Network",
        "NetworkFactory",
        "ResNet18",
        "ResNetAP10",
        "VGG11",
        "ViT",
    ),
    "ldd.objectives": (
        "Alternating",
        "DistributionMatching",
        "GradientMatching",
        "MaximumMeanDiscrepancy",
        "Objective",
        "RBFMixture",
        "Sinkhorn",
        "StepContext",
        "Term",
        "TrajectoryMatching",
    ),
    "ldd.distiller.quirks": ("Quirks",),
    "ldd.priors": (
        "AutoencoderPrior",
        "DeconvolutionPrior",
        "LatentDiffusionPrior",
        "NeckPrior",
        "PixelPrior",
        "Prior",
    ),
}

__all__ = (
    "VGG11",
    "AlexNet",
    "Alternating",
    "AutoencoderPrior",
    "ClassInfo",
    "CodeBatch",
    "Codes",
    "ConvNet",
    "CrossArchitecture",
    "CrossFittedLossPruner",
    "DataSpec",
    "DeconvolutionPrior",
    "DifficultyMatched",
    "DigitsSource",
    "DistillationData",
    "DistilledSet",
    "Distiller",
    "DistributionMatching",
    "EL2NPruner",
    "Export",
    "FolderSource",
    "ForgettingPruner",
    "GaussianCodes",
    "GaussianLatents",
    "GraNdPruner",
    "GradientMatching",
    "HerdedOrder",
    "HerdingPruner",
    "Initializer",
    "InvertedStatistics",
    "KCenterPruner",
    "KMeansCentroids",
    "Labelled",
    "LastCheckpoints",
    "LatentDiffusionPrior",
    "ListPruner",
    "LossGuidance",
    "LossPruner",
    "MaximumMeanDiscrepancy",
    "ModeGuidance",
    "NeckPrior",
    "Network",
    "NetworkFactory",
    "NonFiniteError",
    "Objective",
    "PixelPrior",
    "PointCodes",
    "Preview",
    "Prior",
    "PriorSamples",
    "Protocol",
    "Pruner",
    "Quirks",
    "RBFMixture",
    "RandomPruner",
    "RankedPruner",
    "RealEncodings",
    "RecordExperts",
    "Report",
    "ResNet18",
    "ResNetAP10",
    "ScoreFacts",
    "ScoreTable",
    "ScoringNetwork",
    "SeparatedGroups",
    "SiameseAugmentation",
    "Sinkhorn",
    "Source",
    "StepContext",
    "StoredCodes",
    "StratifiedPruner",
    "TablePruner",
    "Term",
    "TrajectoryMatching",
    "UserError",
    "ViT",
    "evaluate",
    "stored_codes",
)

# Loaded on first use, so that `latentdd --help` does not wait for torch, lightning and diffusers.
__getattr__ = attach(__name__, _HOMES)
