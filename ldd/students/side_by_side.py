"""Students of one network trained side by side: their weights are stacked, so that a GPU takes one step for all.

A student's step on a small set is some two hundred small launches, which a GPU spends more time on than on the
arithmetic; stacked, they are the same number for many students. Each has its own weights, images, order, augmentation
and momenta, as if it were alone: the same numbers up to the order of float32 sums.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.optim.lr_scheduler import LambdaLR

from ldd.images import Labelled
from ldd.networks.training import epoch_batches
from ldd.runtime.seeding import derive_seed
from ldd.students.optimizers import forget, student_optimizer
from ldd.students.training import (
    Lesson,
    Outcome,
    Student,
    epoch_average,
    fresh_network,
    one_thread,
    student_transform,
)
from ldd.students.training_set import TrainingSet, by_epoch

_MOST = 16  # students at once
_IMAGES = 1024  # of all students in a step, unless one has more


def grouped(
    lesson: Lesson, students: Sequence[Student], trainings: Sequence[TrainingSet], most: int | None
) -> Iterator[list[int]]:
    """Yield places of students that can be trained side by side, in the order of each group's first.

    They share network, epochs, batch size and the sizes of what they learn from. Alone stay networks with dropout,
    whose noise one generator draws for all, and protocols with looks during training, a teacher or Muon's matrices.

    Args:
        lesson: what they share.
        students: all.
        trainings: what each of them learns from.
        most: how many at once; None for as many as keep a step at 1,024 images, at most 16.
    """
    groups: dict[object, list[int]] = {}
    alone = {name: not _can_stack(lesson, name) for name in {student.network for student in students}}
    for place, (student, training) in enumerate(zip(students, trainings, strict=True)):
        sizes = tuple((part.shape, part.dtype) if isinstance(part, Tensor) else part for part in training)
        key = (student.network, student.epochs, student.batch_size, student.augmented, sizes)
        single = alone[student.network] or training.crop_labels is not None
        groups.setdefault((place,) if single else key, []).append(place)
    for group in groups.values():
        batch = students[group[0]].batch_size or lesson.protocol.batch_size
        images = min(batch, trainings[group[0]].size.images)
        count = max(1, min(_MOST, _IMAGES // images)) if most is None else most
        yield from (group[start : start + count] for start in range(0, len(group), count))


def _can_stack(lesson: Lesson, name: str) -> bool:
    network = fresh_network(lesson.factories[name], lesson.spec, lesson.seed, name, 0)
    dropout = any(isinstance(module, _DropoutNd) and module.p > 0 for module in network.modules())
    protocol = lesson.protocol
    return not (dropout or protocol.looks or protocol.has_teacher or protocol.optimizer == "muon")


def run_side_by_side(
    lesson: Lesson, students: Sequence[Student], trainings: Sequence[TrainingSet], test: Labelled
) -> list[Outcome]:
    """Train and test a group of `grouped`, on the device of the labels; the seconds are each student's share."""
    started = time.perf_counter()
    with torch.inference_mode(False), torch.enable_grad(), one_thread(test.labels.device):
        scores = [lesson.accuracy(network, test) for network in train(lesson, students, trainings)]
    seconds = (time.perf_counter() - started) / len(students)
    return [Outcome(score, seconds) for score in scores]


def train(lesson: Lesson, students: Sequence[Student], trainings: Sequence[TrainingSet]) -> list[nn.Module]:
    """Return the students of a group after their last epoch, as they are tested."""
    protocol, epochs, device = lesson.protocol, students[0].epochs, trainings[0].labels.device
    networks = [
        fresh_network(lesson.factories[s.network], lesson.spec, lesson.seed, s.network, s.repeat).to(device)
        for s in students
    ]
    stack = _Stack(networks)
    optimizer = student_optimizer(networks[0], protocol, stack.weights, stacked=True)
    schedule = LambdaLR(optimizer, lambda epoch: protocol.lr_at(epoch, epochs))
    average = epoch_average(stack.weights) if protocol.weight_ema else None
    batches = _Batches(lesson, students, trainings)
    for epoch in range(epochs):
        for images, targets in batches.of_epoch(epoch):
            # The sum of the students' mean losses: none has a gradient in another's weights.
            logits = stack(images).flatten(0, 1) / protocol.temperature
            loss = F.cross_entropy(logits, targets.flatten(0, 1), reduction="sum") / images.shape[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if protocol.forgets_after(epoch, epochs):
            forget(optimizer)
        if average is not None:
            average.update_parameters(stack.weights)
    return stack.networks(stack.weights if average is None else average.module)


class _Stack:
    """Networks of one architecture as one, in training mode: images (R, n, C, H, W) -> logits (R, n, K)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = networks
        base = networks[0].train()
        self._names = [name for name, _ in base.named_parameters()]
        named = [dict(network.named_parameters()) for network in networks]
        kept = [dict(network.named_buffers()) for network in networks]
        self.weights = nn.ParameterList(
            torch.stack([own[name].detach() for own in named]) for name in self._names
        )
        self._buffers = {name: torch.stack([own[name] for own in kept]) for name in kept[0]}

        def forward(weights: tuple[Tensor, ...], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            state = dict(zip(self._names, weights, strict=True)) | buffers
            logits: Tensor = functional_call(base, state, (images,))
            return logits

        self._forward = vmap(forward)

    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self._forward(tuple(self.weights), self._buffers, images)
        return logits

    @torch.no_grad()
    def networks(self, weights: nn.Module) -> list[nn.Module]:
        """The networks with these weights, each its own."""
        for row, network in enumerate(self._networks):
            for own, stacked in zip(network.parameters(), weights.parameters(), strict=True):
                own.copy_(stacked[row])
            for name, buffer in network.named_buffers():
                buffer.copy_(self._buffers[name][row])
        return list(self._networks)


class _Batches:
    """What each student of a group sees in each step, as it would alone."""

    def __init__(self, lesson: Lesson, students: Sequence[Student], trainings: Sequence[TrainingSet]) -> None:
        self._batch_size = students[0].batch_size or lesson.protocol.batch_size
        protocol = lesson.protocol
        augmented = students[0].augmented
        self._transform = student_transform(lesson.spec, protocol, None, augmented=augmented)
        self._seeds = [derive_seed(lesson.seed, "student", s.network, s.repeat) for s in students]
        self._images = [
            by_epoch(training, protocol, students[0].epochs, seed)
            or partial(_the_same, Labelled(training.images, training.labels.clone()))
            for training, seed in zip(trainings, self._seeds, strict=True)
        ]

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (R, n, C, H, W) as networks take them, and targets (R, n) or (R, n, K)."""
        each = [
            epoch_batches(*images(epoch), self._batch_size, seed, epoch, self._transform)
            for images, seed in zip(self._images, self._seeds, strict=True)
        ]
        for parts in zip(*each, strict=True):
            images, targets = zip(*parts, strict=True)
            yield torch.stack(images), torch.stack(targets)


def _the_same(images: Labelled, epoch: int) -> Labelled:
    return images
