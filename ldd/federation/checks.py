"""Checks before any sub-task runs: could the merged set be labelled and evaluated at the end?"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ldd.artefact.set import DistilledSet
from ldd.artefact.soft_labels import Precision
from ldd.data import DistillationData
from ldd.data.real import RealImages
from ldd.distiller.module import Distiller
from ldd.evaluation import Labeller, Labels
from ldd.evaluation.comparison import report_in
from ldd.evaluation.courses import courses
from ldd.images import DataSpec
from ldd.runs.recipe import Recipe


def check_the_end(recipe: Recipe, folder: Path, subtasks: int, *, here: bool) -> None:
    """Raise if the merged set of `subtasks` could not be labelled, or evaluated `here`; nothing is read or trained."""
    evaluation, model = recipe.evaluation, recipe.model
    labels = model.labels
    if labels is not None and _is_there_already(recipe, labels):
        labels.check(_Listed(recipe.data))
    if not recipe.evaluates:
        return
    report_in(folder, evaluation.protocol)
    labeller = None if labels is None else _stand_in(labels, model.data_spec)
    planned = _planned(model, labeller, subtasks)
    request = evaluation.request(
        _Listed(recipe.data),
        baselines=evaluation.baselines or (),  # unless they are named, those that cannot be had are left out
        labeller=labeller,
        prior=model.prior.eval(),
        sampler=lambda _: planned.images,  # of which only the number counts
        draws_must_fit=here,
    )
    courses(planned, request)


def _is_there_already(recipe: Recipe, labels: Labels) -> bool:
    """Return whether the labels' experts are not recorded here, and can be found by the names of the images alone."""
    data = recipe.config.data
    listed = data.pruner is None and data.on_error == "raise"
    return not labels.experts() or (listed and not recipe.experts.num_experts)


def _planned(model: Distiller, labeller: Labeller | None, subtasks: int) -> DistilledSet:
    """Return a set of the size and form of the merged one, with black images."""
    spec, labels = model.data_spec, model.codes.labels.cpu()
    black = torch.zeros(1, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
    trained = model.prior.trained()
    planned = DistilledSet.from_images(
        black.expand(len(labels), -1, -1, -1),
        labels,
        spec.classes,
        mean=spec.mean,
        std=spec.std,
        codes=model.codes.tensors(),
        decoder={f"{k}.{name}": value for k in range(subtasks) for name, value in trained.items()} or None,
    )
    return planned if labeller is None else labeller.label(planned)


class _Equal(nn.Module):
    """A classifier whose logits are all the same."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_classes), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, K) of images (n, C, H, W)."""
        return self.logits.expand(len(images), -1)


def _stand_in(labels: Labels, spec: DataSpec) -> Labeller:
    """Stands for `labels`, whose experts may not be there yet, by labels of the same size."""
    # Labels of a user's own class, which do not say how they are stored, count as whole float16 ones.
    precision: Precision = getattr(labels, "precision", "float16")
    return Labeller(_Equal(spec.num_classes), spec, top_k=getattr(labels, "top_k", None), precision=precision)


class _Listed:
    """The data without its pixels: all splits are the training split, and all images black."""

    def __init__(self, data: DistillationData) -> None:
        self.spec, self.fingerprints = data.spec, dict[str, str]()
        items = data.source.items("train")
        size, labels = data.spec.image_size, torch.tensor([item.label for item in items])
        black = torch.zeros(1, 3, size, size, dtype=torch.uint8).expand(len(items), -1, -1, -1)
        listed = RealImages(black, labels, [item.key for item in items], data.spec.num_classes)
        self.train_images = self.core_set = self.selection_images = self.test_images = listed

    def setup(self, stage: str | None = None) -> None:
        """Read nothing."""
