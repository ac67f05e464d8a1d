"""What can be known of an evaluation before any image is decoded: which images there are, and what it would refuse."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ldd.artefact.identity import refuse_other_data
from ldd.artefact.set import DistilledSet
from ldd.artefact.soft_labels import Precision
from ldd.data import DistillationData
from ldd.data.real import EvaluationData, RealImages
from ldd.data.sources import Split
from ldd.evaluation.courses import courses
from ldd.evaluation.request import Request
from ldd.images import DataSpec
from ldd.labels.base import Labeller, Labels


class Listed:
    """Data without their pixels: the images that the source lists, all of them black.

    Nothing is decoded, so a file that cannot be read still counts; and where the data have a pruner, or leave out what
    cannot be read, the core-set may be smaller (`RealImages.certain` is False).

    Args:
        data: the real images.
    """

    def __init__(self, data: DistillationData) -> None:
        self.spec, self.fingerprints = data.spec, dict[str, str]()
        certain = data.on_error == "raise" and not data.prunes
        self.train_images = self.core_set = self._split(data, "train", certain=certain)
        self.selection_images = self._split(data, "selection")
        self.test_images = self._split(data, "test")

    def setup(self, stage: str | None = None) -> None:
        """Read nothing."""

    def _split(self, data: DistillationData, split: Split, *, certain: bool = True) -> RealImages:
        items, size = data.source.items(split), self.spec.image_size
        labels = torch.tensor([item.label for item in items], dtype=torch.int64)
        black = torch.zeros(1, 3, size, size, dtype=torch.uint8).expand(len(items), -1, -1, -1)
        images = RealImages(black, labels, [item.key for item in items], self.spec.num_classes)
        images.certain = certain
        images.explain = lambda label, _: f"class {data.classes[label].wnid!r}; lower it, or add images"
        return images


def listed(data: EvaluationData) -> EvaluationData:
    """Return `Listed` of `DistillationData`; other data are at hand as they are."""
    return Listed(data) if isinstance(data, DistillationData) else data


def check_evaluation(distilled: DistilledSet, request: Request, labels: Labels | None) -> None:
    """Refuse, before any image is decoded, what `ldd.evaluation.courses.courses` would refuse after that.

    Args:
        distilled: the set, or one of the same form.
        request: how it is evaluated; its baselines are those that are named (None: those that cannot be had are left
            out, so there is nothing to refuse), its labeller is not looked at.
        labels: what is going to label images; whether it can is for `Labels.check`.

    Raises:
        UserError: see `courses`.
    """
    labeller = None if labels is None else stand_in(labels, request.data.spec)
    known = replace(request, data=listed(request.data), labeller=labeller, baselines=request.baselines or ())
    courses(distilled, known)


def check_labels(distilled: DistilledSet, data: EvaluationData, labels: Labels | None) -> None:
    """Refuse a set of other data, and labels that cannot be had for them, before any image is decoded.

    Raises:
        UserError: other classes or another image size, or what labels need is missing.
    """
    refuse_other_data(distilled, data.spec)
    if labels is not None:
        labels.check(listed(data))


def stand_in(labels: Labels, spec: DataSpec) -> Labeller:
    """Return a labeller whose labels are as large as those of `labels`, and all alike."""
    # Labels of a user's own class, which do not say how they are stored, count as whole float16 ones.
    precision: Precision = getattr(labels, "precision", "float16")
    return Labeller(_Equal(spec.num_classes), spec, top_k=getattr(labels, "top_k", None), precision=precision)


def planned_set(
    spec: DataSpec,
    labels: Tensor,
    codes: Mapping[str, Tensor] | None = None,
    decoder: Mapping[str, Tensor] | None = None,
) -> DistilledSet:
    """Return a set of the form of one that is going to be made, with black images.

    Args:
        spec: of its data.
        labels: (N,) of its images.
        codes: tensors of the form of its codes.
        decoder: of the form of its trained decoder.
    """
    black = torch.zeros(1, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
    return DistilledSet.from_images(
        black.expand(len(labels), -1, -1, -1),
        labels,
        spec.classes,
        mean=spec.mean,
        std=spec.std,
        codes=codes,
        decoder=decoder,
    )


class _Equal(nn.Module):
    """A classifier whose logits are all the same."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_classes), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, K) of images (n, C, H, W)."""
        return self.logits.expand(len(images), -1)
