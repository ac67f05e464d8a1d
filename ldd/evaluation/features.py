"""In what images are compared: pixels, and features of a network that says which one it is."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from ldd.classes import DataSpec
from ldd.data.real import RealImages
from ldd.evaluation.students import as_input, one_thread
from ldd.networks import ConvNet, Network, train_classifier
from ldd.seeding import derive_seed, seeded

EPOCHS, BATCH, RATE, WIDTH = 10, 64, 0.02, 32
"""How the ConvNet of `trained_features` learns: SGD with momentum 0.9 and weight decay 5e-4, no augmentation."""

_CHUNK = 256  # images per forward pass


MAX_SIDE = 32
"""Pixels of an image's side above which distances are measured on its average over squares."""


def pixels(images: Tensor) -> Tensor:
    """Images (n, 3, H, W) uint8 as vectors (n, F) float32 in [0, 1], averaged over squares above 32 px."""
    values = images.float() / 255
    if images.shape[-1] > MAX_SIDE:
        values = F.adaptive_avg_pool2d(values, MAX_SIDE)
    return values.flatten(1)


@dataclass(frozen=True)
class FeatureNetwork:
    """Images to feature vectors.

    Attributes:
        network: in evaluation mode, on the device to work on.
        spec: gives the normalisation.
        name: what the network is and how it came to its weights, for whoever reads the figures.
    """

    network: Network
    spec: DataSpec
    name: str

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, F) float32 on the CPU of images (n, 3, H, W) uint8: what the last linear layer sees."""
        device = next(self.network.parameters()).device
        parts = [self.network.embed(as_input(self.spec, part.to(device))) for part in images.split(_CHUNK)]
        return torch.cat(parts).float().cpu()

    @torch.no_grad()
    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (n,) on the CPU of images (n, 3, H, W) uint8 with labels (n,)."""
        device = next(self.network.parameters()).device
        parts = zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True)
        return torch.cat(
            [
                F.cross_entropy(
                    self.network(as_input(self.spec, x.to(device))), y.to(device), reduction="none"
                ).cpu()
                for x, y in parts
            ]
        )


@torch.inference_mode(False)
def trained_features(
    real: RealImages, spec: DataSpec, seed: int, device: torch.device | None = None
) -> FeatureNetwork:
    """A ConvNet of width 32 that has learned all of `real`.

    Args:
        real: training images, in memory or mapped.
        spec: classes, image size and normalisation.
        seed: of its initial weights and of the order of images.
        device: where it trains; None for the CPU.
    """
    with seeded(seed, "features"):
        network = ConvNet(spec.num_classes, spec.image_size, width=WIDTH)
    device = torch.device("cpu") if device is None else device
    with one_thread() if device.type == "cpu" else nullcontext():  # the same bits on every machine
        train_classifier(
            network.to(device),
            real.images.to(device),
            real.labels.to(device),
            epochs=EPOCHS,
            batch_size=BATCH,
            optimizer=partial(SGD, lr=RATE, momentum=0.9, weight_decay=5e-4),
            normalise=partial(as_input, spec),
            seed=derive_seed(seed, "features training"),
        )
    name = (
        f"ConvNet of width {WIDTH}, trained on the {len(real)} real training images for {EPOCHS} epochs (SGD, batch "
        f"{BATCH}, rate {RATE}, seed {seed}); features before its last layer"
    )
    return FeatureNetwork(network.eval().requires_grad_(False), spec, name)
