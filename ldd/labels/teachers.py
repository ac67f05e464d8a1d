"""Soft labels of a given teacher: a classifier of torchvision by name or file, or a network of `latentdd train`."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from ldd.artefact.soft_labels import Precision
from ldd.disk.files import read_tensors, sha256
from ldd.errors import UserError, check_at_least
from ldd.images import DataSpec
from ldd.labels.base import Labeller, Labels
from ldd.networks import NetworkFactory
from ldd.networks.base import seeded_network
from ldd.networks.settings import architecture_of
from ldd.runtime.classes import dotted_name
from ldd.students.workers import NumWorkers

if TYPE_CHECKING:
    from ldd.data.real import EvaluationData


class TeacherLabels(Labels):
    """Soft labels of one given network."""

    @abstractmethod
    def teacher(self, spec: DataSpec) -> nn.Module:
        """Return the network: images as `DataSpec.normalise` gives them -> logits of the data's classes."""

    @abstractmethod
    def source(self) -> str:
        """Return what the network is, wherever its file lies."""

    @abstractmethod
    def sight(self, network: nn.Module) -> dict[str, Any]:
        """Return what else its answers follow from, as plain values: what it is given, or how it is built."""

    @torch.inference_mode(False)
    def choose(
        self,
        data: "EvaluationData",
        counts: Sequence[int],
        seed: int,
        device: torch.device,
        num_workers: NumWorkers = "auto",
    ) -> Labeller:
        """See `Labels.choose`; nothing is chosen, and no image is looked at."""
        network = self.teacher(data.spec)
        return self._labeller(network, data.spec, device, source=self.source(), sight=self.sight(network))

    def check(self, data: "EvaluationData") -> None:
        """See `Labels.check`."""
        self._check_classes(data.spec)
        self.teacher(data.spec)


@final
class ClassifierLabels(TeacherLabels):
    """Soft labels of a classifier of torchvision's architectures.

    Of 1,000 outputs the ones of the data's ImageNet classes are taken; where there are as many outputs as classes, each
    class has its own.

    Args:
        classifier: torchvision's name of the architecture, e.g. resnet18.
        weights: name of published weights (IMAGENET1K_V1, DEFAULT), or path of a state dict.
        size: side in pixels to which images are resized for it (bilinear, antialiased); null takes the size that the
            published weights were made for, and leaves the images as they are for a file.
        mean: per channel; null takes the mean of the published weights, or ImageNet's for a file.
        std: likewise.
        temperature: see `Labels`.
        top_k: see `Labels`.
        precision: see `Labels`.

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
        check_at_least(1, "labels", size=size)
        self._classifier = Classifier(classifier, weights)
        self.size = size
        self.mean, self.std = mean, std

    def teacher(self, spec: DataSpec) -> nn.Module:
        """See `TeacherLabels.teacher`."""
        from ldd.networks.pretrained import class_outputs

        outputs = class_outputs(spec.classes, self._classifier.outputs, self._classifier.architecture)
        return self._classifier.seen_by(
            self._classifier.load(), spec, outputs, self.size, self.mean, self.std
        )

    def source(self) -> str:
        """See `TeacherLabels.source`."""
        return str(self._classifier.identity)

    def sight(self, network: nn.Module) -> dict[str, Any]:
        """Return side, mean and standard deviation of the images that it is given."""
        own = self._classifier.preprocessing(None, self.size, self.mean, self.std)
        return {"size": network.size, "mean": list(own.mean), "std": list(own.std)}


@final
class NetworkLabels(TeacherLabels):
    """Soft labels of a network of this package's kind with weights from a file, such as `latentdd train` writes.

    Args:
        network: class and arguments, as it was trained.
        weights: path of its state dict (safetensors).
        temperature: see `Labels`.
        top_k: see `Labels`.
        precision: see `Labels`.

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
            raise UserError(f"labels.weights ({weights}) is not a file; give what `latentdd train` saved")
        self.network = network
        self.weights = weights

    def teacher(self, spec: DataSpec) -> nn.Module:
        """See `TeacherLabels.teacher`."""
        network = seeded_network(self.network, spec, 0, "teacher")
        try:
            network.load_state_dict(read_tensors(Path(self.weights).expanduser()))
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(
                f"labels.weights ({self.weights}) are not of {dotted_name(type(network))} for these classes and this "
                f"image size: {reason}"
            ) from error
        return network

    def source(self) -> str:
        """See `TeacherLabels.source`."""
        return f"sha256:{sha256(Path(self.weights).expanduser())}"

    def sight(self, network: nn.Module) -> dict[str, Any]:
        """Return the architecture, of which a file of weights does not say all."""
        return {"architecture": architecture_of(network)}
