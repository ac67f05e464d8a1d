"""Vectors by which images are compared: pixels, and the features of a network that states where it comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from ldd.data.real import RealImages
from ldd.errors import check_at_least
from ldd.images import DataSpec
from ldd.networks import ConvNet, Network, train_classifier
from ldd.networks.pretrained import Classifier
from ldd.networks.scoring import in_batches
from ldd.runtime.devices import resident
from ldd.runtime.seeding import derive_seed, seeded
from ldd.students.training import one_thread

EPOCHS, BATCH, RATE, WIDTH = 10, 64, 0.02, 32
"""How the ConvNet of `trained_network` learns: SGD with momentum 0.9 and weight decay 5e-4, no augmentation."""

MAX_SIDE = 32
"""Pixels of an image's side above which distances are measured on its average over squares."""


def pixels(images: Tensor) -> Tensor:
    """Return images (n, 3, H, W) uint8 as vectors (n, F) float32 in [0, 1], averaged over squares above 32 px."""
    values = images.float() / 255
    if images.shape[-1] > MAX_SIDE:
        values = F.adaptive_avg_pool2d(values, MAX_SIDE)
    return values.flatten(1)


@dataclass(frozen=True)
class FeatureNetwork:
    """Maps images to the inputs (n, F) of a network's last layer; `name` says which network, and how it was trained."""

    embed: Callable[[Tensor], Tensor]
    spec: DataSpec
    name: str
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (n, F) float32 on the CPU of images (n, 3, H, W) uint8."""
        return in_batches(self.embed, self.spec, images, self.device)


@torch.inference_mode(False)
def trained_network(real: RealImages, spec: DataSpec, seed: int, device: torch.device) -> Network:
    """Return a ConvNet of width 32 that has learned all of `real`, with weights and order from the seed."""
    with seeded(seed, "features"):
        network = ConvNet(spec.num_classes, spec.image_size, width=WIDTH)
    with one_thread(device):  # the same bits on every machine
        train_classifier(
            network.to(device),
            resident(real.at_hand, device),
            real.labels.to(device),
            epochs=EPOCHS,
            batch_size=BATCH,
            optimizer=partial(SGD, lr=RATE, momentum=0.9, weight_decay=5e-4),
            normalise=spec.as_input,
            seed=derive_seed(seed, "features training"),
        )
    return network.eval().requires_grad_(False)


def trained_features(real: RealImages, spec: DataSpec, seed: int, device: torch.device) -> FeatureNetwork:
    """Return the features of `trained_network`, of the same arguments."""
    network = trained_network(real, spec, seed, device)
    name = (
        f"ConvNet of width {WIDTH}, trained on the {len(real)} real training images for {EPOCHS} epochs (SGD, batch "
        f"{BATCH}, rate {RATE}, seed {seed}); features before its last layer"
    )
    return FeatureNetwork(network.embed, spec, name, device)


@dataclass(frozen=True)
class ClassifierFeatures:
    """Features of a classifier of torchvision's architectures: the input of its last linear layer.

    Attributes:
        classifier: torchvision's name of the architecture, e.g. resnet18.
        weights: name of published weights (IMAGENET1K_V1, DEFAULT), or path of a state dict.
        size: side in pixels to which images are resized for it (bilinear, antialiased); null takes the size that the
            published weights were made for, and leaves the images as they are for a file.
        mean: per channel; null takes the mean of the published weights, or ImageNet's for a file.
        std: likewise.

    Raises:
        UserError: an unknown architecture, unknown weights, or a size out of range.
    """

    classifier: str
    weights: str
    size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        check_at_least(1, "features", size=self.size)
        Classifier(self.classifier, self.weights)

    def load(self, spec: DataSpec, device: torch.device) -> FeatureNetwork:
        """Return the network on the device."""
        classifier = Classifier(self.classifier, self.weights)
        embed = classifier.load_features(spec, self.size, self.mean, self.std)
        name = f"{classifier.identity}, images at {embed.size or spec.image_size} px; features before its last layer"
        return FeatureNetwork(embed.to(device).eval().requires_grad_(False), spec, name, device)
