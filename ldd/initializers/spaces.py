"""Spaces in which a class's images are clustered: features of a trained network, a published one, an autoencoder."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from ldd.errors import check_at_least
from ldd.images import DataSpec, to_unit_range
from ldd.initializers.base import ClassStart
from ldd.networks import Network
from ldd.networks.pretrained import Classifier
from ldd.networks.scoring import ScoringNetwork, in_batches
from ldd.priors import AutoencoderPrior
from ldd.runtime.devices import pick_device


class TrainedOnce:
    """The network that a training gives on the core-set, kept while classes of one run ask for it.

    Args:
        training: the network, and how it is trained.
        purpose: of its seed.
    """

    def __init__(self, training: ScoringNetwork, purpose: str) -> None:
        self._training, self._purpose = training, purpose
        self._trained: tuple[object, int, Network] | None = None  # of which core-set, with which seed

    def __call__(self, start: ClassStart) -> Network:
        """Return it."""
        if self._trained is None or self._trained[0] is not start.real or self._trained[1] != start.seed:
            of = start.real.at_hand, start.real.labels, start.spec, start.seed
            self._trained = start.real, start.seed, self._training.trained(*of, self._purpose)
        return self._trained[2]


class FeatureSpace(ABC):
    """Gives features of real images. Subclasses are final."""

    @abstractmethod
    def __call__(self, images: Tensor, start: ClassStart) -> Tensor:
        """Return features (M, F) float32 on the CPU of a class's images (M, 3, H, W) uint8."""

    def networks(self, spec: DataSpec) -> set[str]:
        """Return the dotted names of the networks whose features they are."""
        return set()


@final
class TrainedFeatures(FeatureSpace):
    """What the last layer of a network sees that is trained on the core-set, once for all classes.

    Args:
        training: the network, and how it is trained.
    """

    def __init__(self, training: ScoringNetwork = ScoringNetwork()) -> None:  # noqa: B008 - frozen
        self.training = training
        self._network = TrainedOnce(training, "feature space")

    def __call__(self, images: Tensor, start: ClassStart) -> Tensor:
        """Return features."""
        return self.training.features(self._network(start), images, start.spec)

    def networks(self, spec: DataSpec) -> set[str]:
        """Return the trained one."""
        return self.training.names(spec)


@final
class PublishedFeatures(FeatureSpace):
    """What the last linear layer of a classifier of torchvision's architectures sees.

    Args:
        classifier: torchvision's name of the architecture, e.g. resnet18.
        weights: name of published weights (IMAGENET1K_V1, DEFAULT), or path of a state dict.
        size: side in pixels to which images are resized for it; null takes what the weights were made for.

    Raises:
        UserError: an unknown architecture, no such weights, or a size below 1.
    """

    def __init__(self, classifier: str, weights: str, size: int | None = None) -> None:
        check_at_least(1, "features", size=size)
        self.classifier = Classifier(classifier, weights)
        self.size = size

    def __call__(self, images: Tensor, start: ClassStart) -> Tensor:
        """Return features."""
        network, device = self.classifier.load_features(start.spec, self.size), pick_device()
        return in_batches(network.to(device).eval(), start.spec, images, device)

    def networks(self, spec: DataSpec) -> set[str]:
        """Return the classifier."""
        return {self.classifier.name}


@final
class AutoencoderFeatures(FeatureSpace):
    """Latents of another autoencoder than the prior's, flattened (the paper's best are of VQ-VAE and VQGAN).

    Args:
        path_or_hub_id: folder or hub id of a diffusers autoencoder.
        chunk_size: images encoded at once.

    Raises:
        UserError: it cannot be loaded.
    """

    def __init__(self, path_or_hub_id: str, chunk_size: int = 50) -> None:
        check_at_least(1, "features", chunk_size=chunk_size)
        self.path_or_hub_id = path_or_hub_id
        self.chunk_size = chunk_size
        self._loaded: AutoencoderPrior | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, start: ClassStart) -> Tensor:
        """Return flattened latents."""
        if self._loaded is None:
            self._loaded = AutoencoderPrior(self.path_or_hub_id, start.spec.image_size).to(pick_device())
        device = next(self._loaded.parameters()).device
        parts = [
            self._loaded.encode(to_unit_range(part).to(device)) for part in images.split(self.chunk_size)
        ]
        return torch.cat(parts).flatten(1).float().cpu()
