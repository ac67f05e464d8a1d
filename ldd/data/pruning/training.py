"""Networks trained on the data themselves, for criteria that need no pre-trained classifier."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD

from ldd.augmentation.siamese import SiameseAugmentation
from ldd.data.pruning.scoring import Device, find_device
from ldd.data.sources import Item, Source
from ldd.data.splits import decode_all
from ldd.errors import UserError
from ldd.images import DataSpec, to_unit_range
from ldd.networks import ConvNet, Network, NetworkFactory, train_classifier
from ldd.runtime.seeding import derive_seed, seeded

_BATCH = 256  # images per forward pass without gradients
_SHOWN_STATE = 16  # digits of the hash over initial weights


def small_convnet(num_classes: int, image_size: int) -> Network:
    """A ConvNet of width 32: a sixteenth of the work of the usual one, since scoring trains several."""
    return ConvNet(num_classes, image_size, width=32)


@dataclass(frozen=True)
class ScoringNetwork:
    """How a network is trained to score: plain SGD on images of one size, held in memory.

    Attributes:
        network: what is trained.
        image_size: height and width in pixels; null takes the run's. Scores are shared by runs of different sizes
            only where it is set.
        epochs: passes over the images.
        batch_size: images per step.
        learning_rate: of SGD with momentum 0.9 and weight decay 5e-4.
        augmentation: differentiable siamese augmentation strategies; empty for none.
        device: auto is CUDA where there is one, else the CPU.

    Raises:
        UserError: a number is outside its range.
    """

    network: NetworkFactory = small_convnet
    image_size: int | None = None
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.02
    augmentation: Sequence[str] = ()
    device: Device = "auto"

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if value < 1:
                raise UserError(f"scoring {name} is {value}; give a whole number of 1 or more")
        if self.learning_rate <= 0:
            raise UserError(f"scoring learning_rate is {self.learning_rate}; give a number above 0")

    def build(self, spec: DataSpec, seed: int, *key: object) -> Network:
        """A network with the initial weights of (seed, key), on the device."""
        with torch.inference_mode(False), seeded(seed, "scoring network", *key):
            network = self.network(spec.num_classes, self.image_size or spec.image_size)
        return network.to(find_device(self.device))

    def images(self, source: Source, items: Sequence[Item], spec: DataSpec) -> Tensor:
        """All of them, (M, 3, S, S) uint8 on the CPU, S the network's image size.

        Raises:
            UnreadableImage: one cannot be decoded.
        """
        size = self.image_size or spec.image_size
        images = torch.empty(len(items), 3, size, size, dtype=torch.uint8)
        places = iter(images.numpy())
        decode_all(source, items, size, lambda image: np.copyto(next(places), image), "raise")
        return images

    def train(
        self,
        network: Network,
        images: Tensor,
        labels: Tensor,
        spec: DataSpec,
        seed: int,
        *key: object,
        on_epoch: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        """Train `network` in place on uint8 images (N, 3, S, S); order and augmentation follow from (seed, key)."""
        device = find_device(self.device)
        train_classifier(
            network,
            images.to(device),
            labels.to(device),
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=partial(SGD, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4),
            augmentation=SiameseAugmentation(self.augmentation) if self.augmentation else None,
            normalise=partial(as_input, spec),
            seed=derive_seed(seed, "scoring", *key),
            on_epoch=on_epoch,
        )

    @torch.no_grad()
    def outputs(self, network: Network, images: Tensor, spec: DataSpec) -> Tensor:
        """Logits (N, K) float32 on the CPU, in evaluation mode."""
        was_training = network.training
        network.eval()
        logits = [network(batch).float().cpu() for batch in self.batches(images, spec)]
        network.train(was_training)
        return torch.cat(logits)

    @torch.no_grad()
    def features(self, network: Network, images: Tensor, spec: DataSpec) -> Tensor:
        """What the last layer sees, (N, F) float32 on the CPU, in evaluation mode."""
        network.eval()
        return torch.cat([network.embed(batch).float().cpu() for batch in self.batches(images, spec)])

    def batches(self, images: Tensor, spec: DataSpec, size: int = _BATCH) -> Iterator[Tensor]:
        """Images as the network takes them, on its device, `size` at a time."""
        device = find_device(self.device)
        for batch in images.split(size):
            yield as_input(spec, batch.to(device))

    def describe(self, spec: DataSpec, seed: int) -> str:
        """What the trained networks follow from, beside the images: one line, the same for the same ones."""
        network = self.build(spec, seed)
        digest = hashlib.sha256(repr(network).encode())
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().float().numpy().tobytes())
        return (
            f"{type(network).__name__} {digest.hexdigest()[:_SHOWN_STATE]} on these data: {self.epochs} epochs, "
            f"batch {self.batch_size}, learning rate {self.learning_rate}, "
            f"augmentation {'_'.join(self.augmentation) or 'none'}"
        )

    def preprocessing(self, spec: DataSpec) -> str:
        """How the networks see an image."""
        size = self.image_size or spec.image_size
        return f"resize {size}, centre crop {size}, mean {list(spec.mean)}, std {list(spec.std)}"


def as_input(spec: DataSpec, images: Tensor) -> Tensor:
    """Stored images (N, 3, H, W) uint8 as networks see them."""
    return spec.normalise(to_unit_range(images))
