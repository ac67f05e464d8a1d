"""The plain classifier loop on a fixed tensor set: students, experts and scoring models all train here.

No DataLoader and no work outside the images' device: shuffling, augmentation draws and dropout follow from
(seed, epoch), so the same call gives the same weights, and an epoch can be replayed on its own.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ldd.augmentation.siamese import SiameseAugmentation
from ldd.errors import check_at_least
from ldd.images import Images, Labelled
from ldd.runtime.devices import send
from ldd.runtime.seeding import generator, seeded

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Builds the optimiser of one network from its parameters."""

SchedulerFactory = Callable[[Optimizer], LRScheduler]
"""Builds a learning-rate schedule that is stepped once per epoch."""

Transform = Callable[[Tensor], Tensor]
"""Maps stored images (N, C, H, W) of a batch to what a network takes, e.g. `DataSpec.normalise`."""

BatchTransform = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Maps (stored images, targets, CPU generator) of a batch to a network's inputs and targets."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (n, K), targets) -> 0-d loss."""


def train_classifier(
    network: nn.Module,
    images: Images,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    optimizer: OptimizerFactory,
    scheduler: SchedulerFactory | None = None,
    augmentation: SiameseAugmentation | None = None,
    normalise: Transform | None = None,
    seed: int = 0,
    on_epoch: Callable[[int, Tensor], None] | None = None,
    by_epoch: Callable[[int], Labelled] | None = None,
    transform: BatchTransform | None = None,
    loss: Loss = F.cross_entropy,
) -> float:
    """Train `network` in place, by default with cross-entropy; it is left in training mode.

    Works under Lightning's inference mode (validation) as long as the network itself was built outside of it.

    Args:
        network: on the device of `labels`; the caller initialises it (`ldd.runtime.seeding.seeded`).
        images: (N, 3, H, W), anywhere, of any type `normalise` takes; normalised floats where that is None.
        labels: (N,) int64 classes, or (N, K) float class probabilities.
        epochs: passes over the images, at least 1.
        batch_size: images per step; the last batch of an epoch may be smaller.
        optimizer: factory, e.g. `partial(torch.optim.SGD, lr=1e-2, momentum=0.9)`.
        scheduler: factory of the learning-rate schedule, stepped after each epoch; None keeps the rate.
        augmentation: applied to normalised batches: one strategy per batch, every sample its own parameters.
        normalise: applied to each batch before augmentation.
        seed: of shuffling, augmentation and dropout.
        on_epoch: called after each epoch with its number (from 0) and mean loss, a 0-d tensor on the device.
        by_epoch: gives the images and labels of an epoch (from 0) in the place of `images` and `labels`.
        transform: makes each batch, in the place of `normalise` and `augmentation`.
        loss: of a batch.

    Returns:
        Mean training loss over the images of the last epoch.

    Raises:
        UserError: `epochs` or `batch_size` below 1.
    """
    check_at_least(1, epochs=epochs, batch_size=batch_size)
    transform = transform or _plain_transform(augmentation, normalise)
    with torch.inference_mode(False), torch.enable_grad():
        if isinstance(images, Tensor) and (images.is_inference() or labels.is_inference()):
            images, labels = images.clone(), labels.clone()  # which backward could not save
        steps = optimizer(network.parameters())
        schedule = scheduler(steps) if scheduler else None
        for epoch in range(epochs):
            images, labels = by_epoch(epoch) if by_epoch else (images, labels)
            with seeded(seed, "dropout", epoch, device=labels.device):
                batches = epoch_batches(images, labels, batch_size, seed, epoch, transform)
                total = _train_epoch(network, batches, steps, loss)
            if schedule:
                schedule.step()
            if on_epoch:
                on_epoch(epoch, total / len(images))
    return float(total) / len(images)


def _train_epoch(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], steps: Optimizer, loss: Loss
) -> Tensor:
    """Sum of the losses of all images, 0-d."""
    network.train()
    total = torch.zeros((), device=next(network.parameters()).device)
    for batch, targets in batches:
        of_batch = loss(network(batch), targets)
        steps.zero_grad()
        of_batch.backward()
        steps.step()
        torch.clear_autocast_cache()  # in half precision it may hold the weights of before the step
        total += of_batch.detach() * len(batch)
    return total


def _plain_transform(augmentation: SiameseAugmentation | None, normalise: Transform | None) -> BatchTransform:
    def transform(batch: Tensor, targets: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        if normalise is not None:
            batch = normalise(batch)
        if augmentation is not None:
            batch = augmentation(batch, augmentation.draw(len(batch), draws, one_strategy=True))
        return batch, targets

    return transform


def epoch_batches(
    images: Images, labels: Tensor, batch_size: int, seed: int, epoch: int, transform: BatchTransform
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the (transformed images, targets) of one epoch of `train_classifier`."""
    assert len(images) == len(labels) > 0
    draws = generator(seed, "augmentation", epoch)
    order = torch.arange(len(images))
    if len(images) > batch_size:
        # Drawn on the CPU, so that the order is the same on every device; sent there once per epoch.
        order = torch.randperm(len(images), generator=generator(seed, "shuffle", epoch))
    elif isinstance(images, Tensor):
        yield transform(send(images, labels.device), labels, draws)
        return
    there = order.to(labels.device)
    at = there if images.device == labels.device else order
    for index, place in zip(there.split(batch_size), at.split(batch_size), strict=True):
        yield transform(send(images[place], labels.device), labels[index], draws)


@torch.no_grad()
def accuracy(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 256,
    normalise: Transform | None = None,
) -> float:
    """Return the top-1 accuracy in [0, 1], in evaluation mode; the network's mode is restored.

    Args:
        network: on the device of `labels`.
        images: (N, 3, H, W), N at least 1, of any type `normalise` takes; normalised floats where it is None. Each
            batch is sent where they lie elsewhere.
        labels: (N,) int64.
        batch_size: images per forward pass.
        normalise: applied to each batch.
    """
    assert len(images) == len(labels) > 0
    was_training = network.training
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=labels.device)
    try:
        for part, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            batch = send(part, labels.device)
            # Not torchmetrics, whose import would double the time that an evaluation worker takes to start.
            right += (network(batch if normalise is None else normalise(batch)).argmax(1) == truth).sum()
    finally:
        network.train(was_training)
    return int(right) / len(labels)
