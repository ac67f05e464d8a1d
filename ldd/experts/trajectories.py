"""Expert trajectories on disk: a safetensors file per expert, beside an index of what they were recorded on.

A recording's folder is named by a hash of its index, so that recordings of other data, pruning, resolution, network
or training lie side by side and are never mistaken for each other.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldd.disk.files import read_json, write_json, write_tensors
from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.networks import Network, NetworkFactory

INDEX = "index.json"
FORMAT_VERSION = 1
_MOST = 2**53  # of anything that an index counts
HOW_TO_RECORD = (
    "record some by `latentdd experts --config configs/experts/digits.yaml` with this run's data and network"
)


@dataclass(frozen=True)
class ExpertSetting:
    """What experts and a run that matches them must share.

    Attributes:
        classes: wnids, ordered by label.
        image_size: height and width in pixels.
        mean, std: the normalisation, see `DataSpec`.
        num_images: images in the core-set.
        core_set: hash over their keys and labels.
        network: dotted name of the network's class.
        layers: the network as torch prints it, line by line.
        parameters: name and shape of each parameter, in order.
        num_parameters: P.
    """

    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_images: int
    core_set: str
    network: str
    layers: tuple[str, ...]
    parameters: tuple[str, ...]
    num_parameters: int

    @classmethod
    def of(cls, spec: DataSpec, keys: Sequence[str], labels: Tensor, network: Network) -> Self:
        """The setting of a run.

        Args:
            spec: classes, resolution and normalisation.
            keys: M names of the core-set's images.
            labels: (M,) int64.
            network: the matching network; its weights do not matter.
        """
        digest = hashlib.sha256()
        for key, label in zip(keys, labels.tolist(), strict=True):
            digest.update(f"{label}\t{key}\n".encode())
        named = dict(network.named_parameters())
        return cls(
            classes=tuple(info.wnid for info in spec.classes),
            image_size=spec.image_size,
            mean=tuple(spec.mean),
            std=tuple(spec.std),
            num_images=len(keys),
            core_set=digest.hexdigest()[:32],
            network=f"{type(network).__module__}.{type(network).__qualname__}",
            layers=tuple(repr(network).splitlines()),
            parameters=tuple(f"{name} {tuple(value.shape)}" for name, value in named.items()),
            num_parameters=sum(value.numel() for value in named.values()),
        )

    def differences(self, run: "ExpertSetting") -> list[str]:
        """Where a run's setting is another one than the experts' (self), in words; empty if nowhere."""
        found = []
        if self.image_size != run.image_size:
            found.append(f"image_size {self.image_size} (this run: {run.image_size})")
        if self.classes != run.classes:
            found.append(f"the classes {_listed(self.classes)} (this run: {_listed(run.classes)})")
        elif self.core_set != run.core_set:
            other = f"{run.num_images}{' other ones' if run.num_images == self.num_images else ''}"
            found.append(
                f"a core-set of {self.num_images} images (this run: {other}; pruner and data.seed must be the same)"
            )
        if (self.mean, self.std) != (run.mean, run.std):
            found.append(
                f"mean {list(self.mean)}, std {list(self.std)} (this run: {list(run.mean)}, {list(run.std)})"
            )
        # Resolution and number of classes shape the layers: another one of those is said once.
        same_sizes = self.image_size == run.image_size and len(self.classes) == len(run.classes)
        if self.network != run.network or (same_sizes and self._architecture != run._architecture):
            found.append(
                f"the network {self._network_in_words(run)} (this run: {run._network_in_words(self)})"
            )
        return found

    @property
    def _architecture(self) -> tuple[str, ...]:
        return self.layers + self.parameters

    def _network_in_words(self, other: "ExpertSetting") -> str:
        words = f"{self.network} with {self.num_parameters:,} parameters"
        if (self.network, self.num_parameters) != (other.network, other.num_parameters):
            return words
        here = [line for line in self._architecture if line not in other._architecture]
        return f"{words} and {here[0].strip() if here else 'its layers in another order'}"


@dataclass(frozen=True)
class ExpertTraining:
    """How experts were trained; a run that matches them is free to choose among such recordings.

    Attributes:
        epochs: E; an expert has E + 1 snapshots, the first of its initial weights.
        batch_size: images per step.
        learning_rate, momentum, weight_decay: of SGD, without schedule.
        augmentation: siamese augmentation strategies.
        seed: of initial weights, shuffling and augmentation.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    augmentation: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class ExpertNeed:
    """Expert trajectories that an objective or labels read.

    Attributes:
        trajectories: folder they lie in.
        network: their network.
        num_experts: how many; None for all that are there.
        epochs: how many at least.
    """

    trajectories: str
    network: NetworkFactory
    num_experts: int | None
    epochs: int


Facts = TypeVar("Facts", ExpertSetting, ExpertTraining)


class Trajectories:
    """A recording: the weights of experts 0..n-1 after 0..E epochs.

    Made by `under` (to record) or `find_trajectories` (to match).

    Args:
        folder: of the recording.
        setting: what it was recorded on.
        training: how.
        num_experts: n as asked for; some may still be missing.
    """

    def __init__(
        self, folder: Path, setting: ExpertSetting, training: ExpertTraining, num_experts: int
    ) -> None:
        self.folder = folder
        self.setting = setting
        self.training = training
        self.num_experts = num_experts

    @classmethod
    def under(cls, root: Path, setting: ExpertSetting, training: ExpertTraining, num_experts: int) -> Self:
        """The recording of these facts in `root`, whether or not it is there; nothing is written.

        Raises:
            UserError: it is there but its index is damaged.
        """
        digest = hashlib.sha256(json.dumps(_facts(setting, training), sort_keys=True).encode()).hexdigest()
        name = f"{setting.network.rpartition('.')[2].lower()}-{setting.image_size}px-{digest[:12]}"
        folder = root / name
        if (folder / INDEX).exists():
            num_experts = max(num_experts, cls.open(folder).num_experts)
        return cls(folder, setting, training, num_experts)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The recording in `folder`.

        Raises:
            UserError: the index is damaged or of another version.
        """
        path = folder / INDEX
        try:
            index = read_json(path, f"delete {folder} and record the experts anew")
            if index["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path} has format_version {index['format_version']}, this version of latentdd reads "
                    f"{FORMAT_VERSION}; record the experts anew"
                )
            setting = _checked(ExpertSetting(**_with_tuples(index["setting"])))
            training = _checked(ExpertTraining(**_with_tuples(index["training"])))
            num_experts = index["num_experts"]
            for count in (num_experts, training.epochs, setting.num_parameters):
                if not (type(count) is int and 0 < count < _MOST):
                    raise ValueError(f"{count!r} is no number of experts, epochs or parameters")
            return cls(folder, setting, training, num_experts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} is damaged ({error!r}); delete {folder} and record the experts anew"
            ) from error

    def write_index(self) -> None:
        """Make the folder and its index.

        Raises:
            UserError: the folder cannot be written.
        """
        index = {"format_version": FORMAT_VERSION, "num_experts": self.num_experts}
        write_json(self.folder / INDEX, index | _facts(self.setting, self.training))

    def path(self, expert: int) -> Path:
        """The file of one expert."""
        return self.folder / f"expert-{expert:05d}.safetensors"

    @property
    def bytes_per_expert(self) -> int:
        """Size of an expert's file without its header."""
        return 4 * ((self.training.epochs + 1) * self.setting.num_parameters + self.training.epochs)

    def write(self, expert: int, snapshots: Tensor, losses: Tensor) -> None:
        """Store one expert.

        Args:
            expert: its number.
            snapshots: (E + 1, P) float32, all parameters laid end to end after 0..E epochs.
            losses: (E,) float32, mean training loss of each epoch.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        assert snapshots.shape == (self.training.epochs + 1, self.setting.num_parameters)
        assert snapshots.dtype == torch.float32
        write_tensors(self.path(expert), {"parameters": snapshots, "losses": losses})

    def read(self, expert: int, epochs: Sequence[int]) -> Tensor:
        """Weights after the given epochs, (len(epochs), P) float32 on the CPU; nothing else is read.

        Raises:
            UserError: the file is missing or damaged.
        """
        shape = [self.training.epochs + 1, self.setting.num_parameters]
        with self._opened(expert, "parameters", shape) as rows:
            return torch.cat([rows[epoch : epoch + 1] for epoch in epochs])

    def losses(self, expert: int) -> Tensor:
        """Mean training loss of each epoch, (E,) float32.

        Raises:
            UserError: the file is missing or damaged.
        """
        with self._opened(expert, "losses", [self.training.epochs]) as losses:
            values: Tensor = losses[:].clone()
            return values

    @contextmanager
    def _opened(self, expert: int, name: str, shape: list[int]) -> Iterator[Any]:
        """A tensor of an expert's file, of which only what is indexed is read."""
        path = self.path(expert)
        try:
            with safe_open(path, framework="pt") as file:
                found = file.get_slice(name)
                if (found.get_dtype(), found.get_shape()) != ("F32", shape):
                    raise ValueError(f"{name} is {found.get_dtype()} {found.get_shape()}, not F32 {shape}")
                yield found
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(
                f"{path} is missing or damaged ({error}); the command that recorded the experts records it again"
            ) from error

    def is_whole(self, expert: int) -> bool:
        """Whether an expert's file is there and not truncated (little more than its header is read)."""
        try:
            return self.path(expert).exists() and len(self.read(expert, [0])) == len(self.losses(expert)[:1])
        except UserError:
            return False


def find_trajectories(
    root: str, setting: ExpertSetting, num_experts: int | None = None, section: str = "objective"
) -> Trajectories:
    """The recording in `root`, or in one of its folders, that fits a run.

    Args:
        root: a recording's folder, or one that holds several.
        setting: of the run.
        num_experts: how many must be there; None takes as many as were to be recorded.
        section: whose `trajectories` they are, for messages.

    Raises:
        UserError: no recording, none that fits (with what differs), several that do, or one with experts missing.
    """
    recordings = recordings_in(root)
    if not recordings:
        state = "holds no expert trajectories" if Path(root).expanduser().is_dir() else "does not exist"
        raise UserError(f"{section}.trajectories ({root}) {state}; {HOW_TO_RECORD}")
    fitting = [recording for recording in recordings if not recording.setting.differences(setting)]
    if not fitting:
        reasons = "; ".join(
            f"{r.folder.name} was recorded for {' and '.join(r.setting.differences(setting))}"
            for r in recordings
        )
        raise UserError(f"{section}.trajectories ({root}) does not fit this run: {reasons}. {HOW_TO_RECORD}")
    if len(fitting) > 1:
        choices = "; ".join(f"{r.folder} ({_in_words(r.training)})" for r in fitting)
        raise UserError(f"{section}.trajectories ({root}) holds several that fit; name one of: {choices}")
    found = fitting[0]
    wanted = found.num_experts if num_experts is None else num_experts
    there = next((i for i in range(wanted) if not found.path(i).exists()), wanted)
    if there < wanted:
        most = f"{section}.num_experts to {max(there, 1)} or less"
        if section == "labels":
            most = f"labels.expert to one below {max(there, 1)}"
        raise UserError(
            f"{section}.trajectories ({found.folder}) holds the first {there} of {wanted} experts; let the command "
            f"that records them finish, or set {most}"
        )
    return Trajectories(found.folder, found.setting, found.training, wanted)


def recordings_in(root: str) -> list[Trajectories]:
    """The recordings in `root`: itself, where it is one's folder, or those of its folders.

    Raises:
        UserError: one with a damaged index.
    """
    base = Path(root).expanduser()
    folders = [path.parent for path in (base / INDEX, *sorted(base.glob(f"*/{INDEX}"))) if path.is_file()]
    return [Trajectories.open(folder) for folder in folders]


def _checked(facts: Facts) -> Facts:
    """The same, if each value is of its field's kind."""
    for field in fields(facts):
        value, kinds = getattr(facts, field.name), get_args(field.type)
        kind: Any = kinds[0] if kinds else field.type
        if bool(kinds) != isinstance(value, tuple) or not all(
            isinstance(part, (int, float) if kind is float else kind) and not isinstance(part, bool)
            for part in (value if kinds else (value,))
        ):
            raise ValueError(f"{field.name} is {value!r}")
    return facts


def _facts(setting: ExpertSetting, training: ExpertTraining) -> dict[str, Any]:
    return {"setting": asdict(setting), "training": asdict(training)}


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"[{shown}, ... {len(names)} in all]" if len(names) > 3 else f"[{shown}]"


def _in_words(training: ExpertTraining) -> str:
    return ", ".join(
        f"{name} {'+'.join(value) if isinstance(value, tuple) else value}"
        for name, value in asdict(training).items()
    )
