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
    Random draws are stateless: derived from (seed, step, purpose, class), see `ldd.seeding`.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ldd.augment import SiameseAugmentation as SiameseAugmentation
    from ldd.callbacks import (
        CrossArchitecture as CrossArchitecture,
    )
    from ldd.callbacks import (
        Export as Export,
    )
    from ldd.callbacks import (
        LastCheckpoints as LastCheckpoints,
    )
    from ldd.callbacks import (
        Preview as Preview,
    )
    from ldd.callbacks import (
        RecordExperts as RecordExperts,
    )
    from ldd.classes import (
        ClassInfo as ClassInfo,
    )
    from ldd.classes import (
        DataSpec as DataSpec,
    )
    from ldd.classes import (
        Labelled as Labelled,
    )
    from ldd.codes import (
        CodeBatch as CodeBatch,
    )
    from ldd.codes import (
        Codes as Codes,
    )
    from ldd.codes import (
        GaussianCodes as GaussianCodes,
    )
    from ldd.codes import (
        PointCodes as PointCodes,
    )
    from ldd.codes import (
        stored_codes as stored_codes,
    )
    from ldd.data import (
        CrossFittedLossPruner as CrossFittedLossPruner,
    )
    from ldd.data import (
        DigitsSource as DigitsSource,
    )
    from ldd.data import (
        DistillationData as DistillationData,
    )
    from ldd.data import (
        EL2NPruner as EL2NPruner,
    )
    from ldd.data import (
        FolderSource as FolderSource,
    )
    from ldd.data import (
        ForgettingPruner as ForgettingPruner,
    )
    from ldd.data import (
        GraNdPruner as GraNdPruner,
    )
    from ldd.data import (
        HerdingPruner as HerdingPruner,
    )
    from ldd.data import (
        KCenterPruner as KCenterPruner,
    )
    from ldd.data import (
        ListPruner as ListPruner,
    )
    from ldd.data import (
        LossPruner as LossPruner,
    )
    from ldd.data import (
        Pruner as Pruner,
    )
    from ldd.data import (
        RandomPruner as RandomPruner,
    )
    from ldd.data import (
        RankedPruner as RankedPruner,
    )
    from ldd.data import (
        ScoreFacts as ScoreFacts,
    )
    from ldd.data import (
        ScoreTable as ScoreTable,
    )
    from ldd.data import (
        ScoringNetwork as ScoringNetwork,
    )
    from ldd.data import (
        Source as Source,
    )
    from ldd.data import (
        StratifiedPruner as StratifiedPruner,
    )
    from ldd.data import (
        TablePruner as TablePruner,
    )
    from ldd.distilled import DistilledSet as DistilledSet
    from ldd.distiller import Distiller as Distiller
    from ldd.errors import (
        NonFiniteError as NonFiniteError,
    )
    from ldd.errors import (
        UserError as UserError,
    )
    from ldd.evaluation import (
        Protocol as Protocol,
    )
    from ldd.evaluation import (
        Report as Report,
    )
    from ldd.evaluation import (
        evaluate as evaluate,
    )
    from ldd.initializers import (
        DifficultyMatched as DifficultyMatched,
    )
    from ldd.initializers import (
        GaussianLatents as GaussianLatents,
    )
    from ldd.initializers import (
        HerdedOrder as HerdedOrder,
    )
    from ldd.initializers import (
        Initializer as Initializer,
    )
    from ldd.initializers import (
        InvertedStatistics as InvertedStatistics,
    )
    from ldd.initializers import (
        KMeansCentroids as KMeansCentroids,
    )
    from ldd.initializers import (
        LossGuidance as LossGuidance,
    )
    from ldd.initializers import (
        ModeGuidance as ModeGuidance,
    )
    from ldd.initializers import (
        PriorSamples as PriorSamples,
    )
    from ldd.initializers import (
        RealEncodings as RealEncodings,
    )
    from ldd.initializers import (
        SeparatedGroups as SeparatedGroups,
    )
    from ldd.initializers import (
        StoredCodes as StoredCodes,
    )
    from ldd.networks import (
        VGG11 as VGG11,
    )
    from ldd.networks import (
        AlexNet as AlexNet,
    )
    from ldd.networks import (
        ConvNet as ConvNet,
    )
    from ldd.networks import (
        Network as Network,
    )
    from ldd.networks import (
        NetworkFactory as NetworkFactory,
    )
    from ldd.networks import (
        ResNet18 as ResNet18,
    )
    from ldd.networks import (
        ResNetAP10 as ResNetAP10,
    )
    from ldd.networks import (
        ViT as ViT,
    )
    from ldd.objectives import (
        Alternating as Alternating,
    )
    from ldd.objectives import (
        DistributionMatching as DistributionMatching,
    )
    from ldd.objectives import (
        GradientMatching as GradientMatching,
    )
    from ldd.objectives import (
        MaximumMeanDiscrepancy as MaximumMeanDiscrepancy,
    )
    from ldd.objectives import (
        Objective as Objective,
    )
    from ldd.objectives import (
        RBFMixture as RBFMixture,
    )
    from ldd.objectives import (
        Sinkhorn as Sinkhorn,
    )
    from ldd.objectives import (
        StepContext as StepContext,
    )
    from ldd.objectives import (
        Term as Term,
    )
    from ldd.objectives import (
        TrajectoryMatching as TrajectoryMatching,
    )
    from ldd.priors import (
        AutoencoderPrior as AutoencoderPrior,
    )
    from ldd.priors import (
        DeconvolutionPrior as DeconvolutionPrior,
    )
    from ldd.priors import (
        LatentDiffusionPrior as LatentDiffusionPrior,
    )
    from ldd.priors import (
        NeckPrior as NeckPrior,
    )
    from ldd.priors import (
        PixelPrior as PixelPrior,
    )
    from ldd.priors import (
        Prior as Prior,
    )
    from ldd.quirks import Quirks as Quirks

_HOMES = {
    "ldd.augment": ("SiameseAugmentation",),
    "ldd.callbacks": ("CrossArchitecture", "Export", "LastCheckpoints", "Preview", "RecordExperts"),
    "ldd.classes": ("ClassInfo", "DataSpec", "Labelled"),
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
    "ldd.distilled": ("DistilledSet",),
    "ldd.distiller": ("Distiller",),
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
    "ldd.quirks": ("Quirks",),
    "ldd.priors": (
        "AutoencoderPrior",
        "DeconvolutionPrior",
        "LatentDiffusionPrior",
        "NeckPrior",
        "PixelPrior",
        "Prior",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> object:
    # Loaded on first use, so that `latentdd --help` does not wait for torch, lightning and diffusers.
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ldd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
