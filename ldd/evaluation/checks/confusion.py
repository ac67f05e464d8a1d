"""Confusion matrices: which classes the students of a set tell apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldd.images import ClassInfo, DataSpec, Labelled
from ldd.networks.scoring import in_batches
from ldd.students.training import Lesson, Student
from ldd.students.training_set import TrainingSet

_WORST = 5  # confusions listed


@dataclass(frozen=True)
class Confusion:
    """Test images (K, K) by class (down) and by the class that students of one network took them for (across)."""

    network: str
    counts: Tensor
    students: int

    @property
    def accuracy(self) -> float:
        """Top-1 over all test images."""
        return int(self.counts.diag().sum()) / int(self.counts.sum())

    @property
    def per_class(self) -> list[float | None]:
        """Top-1 of each class; None for one without test images."""
        rows = zip(self.counts.diag().tolist(), self.counts.sum(1).tolist(), strict=True)
        return [right / total if total else None for right, total in rows]

    def worst(self, classes: Sequence[ClassInfo]) -> list[dict[str, Any]]:
        """Return the five most frequent confusions as shares of their class."""
        shares = self.counts.double() / self.counts.sum(1, keepdim=True).clamp(min=1)
        shares.fill_diagonal_(0)
        order = shares.flatten().argsort(descending=True, stable=True)[:_WORST].tolist()
        found = [(divmod(place, len(classes)), float(shares.flatten()[place])) for place in order]
        return [
            {"class": classes[true].name, "taken_for": classes[answer].name, "share": share}
            for (true, answer), share in found
            if share > 0
        ]

    def summary(self, classes: Sequence[ClassInfo]) -> dict[str, Any]:
        """Return plain values."""
        return {
            "accuracy": self.accuracy,
            "students": self.students,
            "per_class": self.per_class,
            "confusion": self.counts.tolist(),
            "worst": self.worst(classes),
        }


def confusion_matrix(network: nn.Module, spec: DataSpec, test: Labelled) -> Tensor:
    """Return counts (K, K) of a network on images (M, 3, H, W) uint8 with labels (M,), on its device."""
    logits = in_batches(network.eval(), spec, test.images, test.images.device)
    size = spec.num_classes  # of one class too, which torchmetrics refuses
    cells = test.labels.cpu() * size + logits.argmax(1).cpu()
    return torch.bincount(cells, minlength=size * size).view(size, size)


def confusions(
    lesson: Lesson, training: TrainingSet, test: Labelled, students: Sequence[Student]
) -> list[Confusion]:
    """Train students on one set and test them, all on one device; the counts of one network are added up."""
    counted: dict[str, list[Tensor]] = {}
    measure = partial(confusion_matrix, spec=lesson.spec, test=test)
    for student in students:
        counted.setdefault(student.network, []).append(measure(lesson.train(student, training)))
    return [
        Confusion(name, torch.stack(matrices).sum(0), len(matrices)) for name, matrices in counted.items()
    ]
