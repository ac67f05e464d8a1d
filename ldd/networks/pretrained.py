"""Pre-trained classifiers of torchvision's architectures: weights by name or from a file, and how they see images."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from ldd.disk.files import read_tensors, sha256
from ldd.disk.pickles import load_plain
from ldd.errors import UserError
from ldd.imagenet import tables as imagenet
from ldd.images import IMAGENET_MEAN, IMAGENET_STD, ClassInfo, DataSpec, per_channel
from ldd.networks.base import TORCHVISION

Size = int | tuple[int, int]
"""Short side in pixels, or height and width (the aspect ratio is then squashed)."""


@dataclass(frozen=True)
class Preprocessing:
    """The way to a classifier's input: resize, centre crop, normalise.

    Attributes:
        resize: short side in pixels, or (height, width).
        crop: side of the centre crop in pixels.
        mean, std: per channel, for images in [0, 1].
        interpolation: of the resize, which is antialiased and works on bytes.

    Raises:
        UserError: the crop is larger than the image, or a number is outside its range.
    """

    resize: Size
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        sides = (self.resize,) if isinstance(self.resize, int) else self.resize
        if min(self.crop, *sides) < 1:
            raise UserError(f"resize={self.resize}, crop={self.crop}: sizes are pixels, 1 or more")
        if self.crop > min(sides):
            raise UserError(
                f"crop={self.crop} is larger than resize={self.resize}; crop at most {min(sides)}, or resize to more"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(
                f"mean={list(self.mean)}, std={list(self.std)}: three numbers each, and every std above 0"
            )

    def pixels(self, image: Tensor) -> Tensor:
        """Resize and crop (3, h, w) uint8 to (3, crop, crop) uint8."""
        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        resized = resize(image, size, interpolation=InterpolationMode(self.interpolation), antialias=True)
        square: Tensor = center_crop(resized, [self.crop, self.crop])
        return square

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return (N, 3, crop, crop) uint8 as float32, as the classifier takes it."""
        images = pixels.float() / 255
        mean, std = (per_channel(numbers, images) for numbers in (self.mean, self.std))
        return (images - mean) / std

    def __str__(self) -> str:
        """Return one line, the same for the same pixels."""
        size = self.resize if isinstance(self.resize, int) else "{}x{}".format(*self.resize)
        return (
            f"resize {size} ({self.interpolation}, antialiased, on bytes), centre crop {self.crop}, "
            f"mean {list(self.mean)}, std {list(self.std)}"
        )


_LISTED = 5  # keys spelt out in a message


@dataclass(frozen=True)
class Classifier:
    """A classifier by architecture and weights; nothing is loaded before `load`.

    Attributes:
        architecture: torchvision's name of a classification model, e.g. `resnet18`.
        weights: name of published weights of this architecture (`IMAGENET1K_V1`, `DEFAULT`), or path of a state dict
            in torchvision's key names (safetensors, or what `torch.save` wrote and `weights_only` loads).

    Raises:
        UserError: the architecture is unknown, or the weights are neither such a name nor a file.
    """

    architecture: str
    weights: str

    def __post_init__(self) -> None:
        known = list_models(module=torchvision.models)
        if self.architecture not in known:
            near = ", ".join(get_close_matches(self.architecture, known, n=3, cutoff=0.3)) or "resnet18"
            raise UserError(
                f"classifier={self.architecture!r} is not a classification model of torchvision; nearest: {near}"
            )
        if self.published is None and not Path(self.weights).expanduser().is_file():
            names = ", ".join(member.name for member in get_model_weights(self.architecture))
            raise UserError(
                f"weights={self.weights!r} are neither published weights of {self.architecture} ({names}) nor a file; "
                "check the path"
            )

    @cached_property
    def published(self) -> WeightsEnum | None:
        """The published weights, or None for a file."""
        name = self.weights.rpartition(".")[2]
        names = get_model_weights(self.architecture).__members__
        return names[name] if name in names and self.weights in (name, f"{names[name]}") else None

    @property
    def name(self) -> str:
        """What counts as seen where it took part; torchvision's class would not say which ResNet it is."""
        return f"{TORCHVISION}{self.architecture}"

    @cached_property
    def identity(self) -> str:
        """Architecture and what the weights are, wherever they lie."""
        if self.published is not None:
            return f"torchvision {self.architecture} {self.published.name} ({Path(self.published.url).name})"
        return f"torchvision {self.architecture} sha256:{sha256(Path(self.weights).expanduser())}"

    def preprocessing(
        self,
        resize: Size | None,
        crop: int | None,
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
    ) -> Preprocessing:
        """Return what is given, else what the published weights state, else (for a file) ImageNet's 256 / 224."""
        own = self.published.transforms() if self.published is not None else None
        return Preprocessing(
            resize=(own.resize_size[0] if own else 256) if resize is None else resize,
            crop=(own.crop_size[0] if own else 224) if crop is None else crop,
            mean=tuple((own.mean if own else IMAGENET_MEAN) if mean is None else mean),
            std=tuple((own.std if own else IMAGENET_STD) if std is None else std),
            interpolation=own.interpolation.value if own else "bilinear",
        )

    @cached_property
    def outputs(self) -> int:
        """The number of classes that it tells apart."""
        if self.published is not None:
            return len(self.published.meta["categories"])
        with torch.device("meta"):
            last = list(get_model(self.architecture, weights=None).state_dict())[-1]
        state = self._read()
        if last not in state:
            raise UserError(self._other_keys([last], []))
        return len(state[last])

    def load(self) -> nn.Module:
        """Return the network on the CPU in evaluation mode; raise UserError where the weights do not fit."""
        if self.published is not None:
            try:
                fetched: nn.Module = get_model(self.architecture, weights=self.published)
            except (URLError, OSError, RuntimeError) as error:
                raise UserError(
                    f"cannot fetch {self.published.url} ({error}); download it where there is a network and set "
                    "weights to the file"
                ) from error
            return fetched.eval()
        network: nn.Module = get_model(self.architecture, weights=None, num_classes=self.outputs)
        try:
            missing, unexpected = network.load_state_dict(self._read(), strict=False)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(
                f"weights={self.weights!r} are of another shape than {self.architecture}: {reason}"
            ) from error
        if missing or unexpected:
            raise UserError(self._other_keys(missing, unexpected))
        return network.eval()

    def load_features(
        self,
        spec: DataSpec,
        size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> "SeenBy":
        """Return the network without its last linear layer, as `seen_by` puts it behind the normalisation of `spec`.

        Raises:
            UserError: weights that cannot be had or do not fit, or an architecture without a linear layer at its end.
        """
        network = self.load()
        ends = [
            (name, part)
            for name, part in network.named_modules()
            if isinstance(part, nn.Linear) and part.out_features == self.outputs
        ]
        if not ends:
            raise UserError(
                f"features.classifier ({self.architecture}) does not end in a linear layer, before which its features "
                "are; take another, such as resnet18"
            )
        place, last = ends[-1]
        network.set_submodule(place, nn.Identity())
        return self.seen_by(network, spec, torch.arange(last.in_features), size, mean, std)

    def seen_by(
        self,
        network: nn.Module,
        spec: DataSpec,
        outputs: Tensor,
        size: int | None,
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
    ) -> "SeenBy":
        """Put `network`, made of this classifier, behind the normalisation of `spec`.

        What is None is taken from the published weights. Weights from a file do not say for what size they were made:
        without one the images stay as they are.
        """
        own = self.preprocessing(None, size, mean, std)
        side = own.crop if size is not None or self.published is not None else None
        return SeenBy(network, spec, outputs, side, tuple(own.mean), tuple(own.std), self.name)

    def _read(self) -> dict[str, Tensor]:
        path = Path(self.weights).expanduser()
        if path.suffix == ".safetensors":
            return read_tensors(path)
        try:
            state = load_plain(path)
        except (ValueError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"weights={self.weights!r} cannot be loaded as tensors only ({reason}); save a state dict"
            ) from error
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError(
                f"weights={self.weights!r} are not a state dict (names to tensors); save network.state_dict()"
            )
        return state

    def _other_keys(self, missing: Sequence[str], unexpected: Sequence[str]) -> str:
        return (
            f"weights={self.weights!r} are not of {self.architecture}: {len(missing)} keys are missing "
            f"({', '.join(missing[:_LISTED])}) and {len(unexpected)} unknown ({', '.join(unexpected[:_LISTED])}); name "
            "the architecture they belong to in classifier"
        )


def class_outputs(classes: Sequence[ClassInfo], outputs: int, classifier: str) -> Tensor:
    """Return which of the classifier's outputs is each class, (K,) int64.

    Of 1,000 outputs an ImageNet class has its place in the sorted synset list; of K outputs each class its label; of
    any other number the class's own id (a subset of the data that the classifier was trained on).
    """
    indices = imagenet.indices()
    strangers = [info for info in classes if info.wnid not in indices]
    if outputs == len(indices) and not strangers:
        return torch.tensor([indices[info.wnid] for info in classes])
    if outputs == len(classes):
        return torch.arange(outputs)
    if outputs != len(indices) and outputs > len(classes) and max(info.id for info in classes) < outputs:
        return torch.tensor([info.id for info in classes])
    example = f", e.g. {strangers[0].wnid!r} is not an ImageNet class" if outputs == len(indices) else ""
    raise UserError(
        f"classifier {classifier} has {outputs} outputs and the data {len(classes)} classes{example}: which is which "
        "cannot be told; use a classifier trained on these classes, or CrossFittedLossPruner, which trains one"
    )


class SeenBy(nn.Module):
    """A classifier with its own size, constants and outputs (K,), for images as the data's `spec` normalises them."""

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
        seen_as: str,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.size = size
        self.seen_as = seen_as
        columns: dict[str, Any] = {"mean": spec.mean, "std": spec.std, "own_mean": mean, "own_std": std}
        for name, values in columns.items():
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.register_buffer("outputs", outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, K) of images (n, 3, H, W) as `DataSpec.normalise` gives them."""
        images = x * self.std + self.mean
        if self.size is not None and images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size,) * 2, mode="bilinear", antialias=True)
        logits: Tensor = self.classifier((images - self.own_mean) / self.own_std)
        return logits[:, self.outputs]

    def extra_repr(self) -> str:
        """Return the setting that is in no weight."""
        return f"size={self.size}"
