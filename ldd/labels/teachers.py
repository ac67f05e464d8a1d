"""Soft labels of any teacher: a classifier of torchvision by name or file, or a network that `latentdd train` saved."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldd.artefact.soft_labels import Precision
from ldd.disk.files import read_tensors, sha256
from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.labels.base import Labeller, Labels, check_form, check_top_k
from ldd.networks import NetworkFactory
from ldd.networks.base import dotted_name
from ldd.runtime.seeding import seeded
from ldd.students.workers import NumWorkers

if TYPE_CHECKING:
    from ldd.data.real import EvaluationData
    from ldd.networks.pretrained import Classifier


class TeacherLabels(Labels):
    """softmax(logits / T) of one given network.

    Args of every subclass:
        temperature: T.
        top_k: store so many of the largest probabilities; what is left of 1 is spread evenly. Null stores all.
        precision: of what is stored: int8 (255ths), float16 or float32.

    Raises:
        UserError: a number out of range.
    """

    def __init__(self, temperature: float, top_k: int | None, precision: Precision) -> None:
        check_form(temperature, top_k)
        self.temperature = temperature
        self.top_k = top_k
        self.precision: Precision = precision

    @abstractmethod
    def teacher(self, spec: DataSpec) -> nn.Module:
        """The network: images as `DataSpec.normalise` gives them -> logits of the data's classes.

        Raises:
            UserError: it is not there, or is none of these classes.
        """

    @abstractmethod
    def source(self) -> str:
        """What it is, wherever its file lies."""

    @torch.inference_mode(False)
    def choose(
        self,
        data: "EvaluationData",
        counts: Sequence[int],
        seed: int,
        device: torch.device,
        num_workers: NumWorkers = "auto",
    ) -> Labeller:
        """See `Labels.choose`; nothing is chosen, and no image is looked at.

        Raises:
            UserError: see `teacher`.
        """
        network = self.teacher(data.spec).to(device).eval().requires_grad_(False)
        facts: dict[str, Any] = {
            "recording": None,
            "network": self.source(),
            "expert": None,
            "epoch": None,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "precision": self.precision,
            "selection_accuracy": {},
        }
        return Labeller(network, data.spec, self.temperature, self.top_k, self.precision, facts)

    def check(self, data: "EvaluationData") -> None:
        """See `Labels.check`."""
        check_top_k(self.top_k, data.spec)
        self.teacher(data.spec)


@final
class ClassifierLabels(TeacherLabels):
    """Of a classifier of torchvision's architectures.

    Of 1,000 outputs those of the data's ImageNet classes are taken; of as many outputs as classes, each its own.

    Args:
        classifier: torchvision's name of the architecture, e.g. resnet18.
        weights: name of published weights (IMAGENET1K_V1, DEFAULT), or path of a state dict.
        size: side in pixels to which images are resized for it (bilinear, antialiased); null takes what the published
            weights were made for, and for a file the images as they are.
        mean: per channel; null takes that of the published weights, and for a file ImageNet's.
        std: likewise.
        temperature: see `TeacherLabels`.
        top_k: see `TeacherLabels`.
        precision: see `TeacherLabels`.

    Raises:
        UserError: an unknown architecture, no such weights, or a number out of range.
    """

    def __init__(
        self,
        classifier: str,
        weights: str,
        size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        precision: Precision = "float16",
    ) -> None:
        from ldd.networks.pretrained import Classifier

        super().__init__(temperature, top_k, precision)
        if size is not None and size < 1:
            raise UserError(f"labels.size ({size}) must be at least 1")
        self._classifier = Classifier(classifier, weights)
        self.size = size
        self.mean, self.std = mean, std

    def teacher(self, spec: DataSpec) -> nn.Module:
        """See `TeacherLabels.teacher`."""
        from ldd.networks.pretrained import class_outputs

        outputs = class_outputs(spec.classes, self._classifier.outputs, self._classifier.architecture)
        network = self._classifier.load()
        return seen_by(network, spec, outputs, self._classifier, self.size, self.mean, self.std)

    def source(self) -> str:
        """See `TeacherLabels.source`."""
        return str(self._classifier.identity)


@final
class NetworkLabels(TeacherLabels):
    """Of a network of this package's kind with weights from a file, such as `latentdd train` writes.

    Args:
        network: class and arguments, as it was trained.
        weights: path of its state dict (safetensors).
        temperature: see `TeacherLabels`.
        top_k: see `TeacherLabels`.
        precision: see `TeacherLabels`.

    Raises:
        UserError: no such file, or a number out of range.
    """

    def __init__(
        self,
        network: NetworkFactory,
        weights: str,
        temperature: float = 1.0,
        top_k: int | None = None,
        precision: Precision = "float16",
    ) -> None:
        super().__init__(temperature, top_k, precision)
        if not Path(weights).expanduser().is_file():
            raise UserError(f"labels.weights ({weights}) is no file; give what `latentdd train` saved")
        self.network = network
        self.weights = weights

    def teacher(self, spec: DataSpec) -> nn.Module:
        """See `TeacherLabels.teacher`."""
        with torch.inference_mode(False), seeded(0, "teacher"):
            network = self.network(spec.num_classes, spec.image_size)
        self._load(network, read_tensors(Path(self.weights).expanduser()))
        return network

    def source(self) -> str:
        """See `TeacherLabels.source`."""
        return f"sha256:{sha256(Path(self.weights).expanduser())}"

    def _load(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        try:
            network.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(
                f"labels.weights ({self.weights}) are not of {dotted_name(type(network))} for these classes and this "
                f"image size: {reason}"
            ) from error


def seen_by(
    network: nn.Module,
    spec: DataSpec,
    outputs: Tensor,
    classifier: "Classifier",
    size: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> "SeenBy":
    """A network behind the data's normalisation, with what its published weights state where None is given.

    Weights from a file state nothing: without a size the images stay as they are.
    """
    own = classifier.preprocessing(None, size, mean, std)
    side = own.crop if size is not None or classifier.published is not None else None
    return SeenBy(network, spec, outputs, side, tuple(own.mean), tuple(own.std))


class SeenBy(nn.Module):
    """A classifier behind the data's normalisation: it sees images at its own size, with its own constants.

    Args:
        classifier: images (n, 3, s, s) by its own normalisation -> logits.
        spec: whose `normalise` made the images.
        outputs: (K,) int64, which of the classifier's outputs is each class.
        size: s; None leaves the images at theirs.
        mean: of the classifier, per channel, for images in [0, 1].
        std: likewise.
    """

    mean: Tensor
    std: Tensor
    own_mean: Tensor
    own_std: Tensor
    outputs: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        spec: DataSpec,
        outputs: Tensor,
        size: int | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.size = size
        columns: dict[str, Any] = {"mean": spec.mean, "std": spec.std, "own_mean": mean, "own_std": std}
        for name, values in columns.items():
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.register_buffer("outputs", outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of images (n, 3, H, W) as `DataSpec.normalise` gives them."""
        images = x * self.std + self.mean
        if self.size is not None and images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size,) * 2, mode="bilinear", antialias=True)
        logits: Tensor = self.classifier((images - self.own_mean) / self.own_std)
        return logits[:, self.outputs]
