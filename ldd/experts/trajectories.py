"""Expert trajectories on disk: a safetensors file per expert, and an index of what they were recorded on.

A recording's folder is named by a hash of its index. So recordings of other data, pruning, resolution, network or
training lie side by side and are never mistaken for each other.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldd.disk.files import write_json, write_tensors
from ldd.disk.records import read_record, to_json
from ldd.errors import UserError, listed
from ldd.images import DataSpec
from ldd.networks import Network, NetworkFactory
from ldd.networks.base import seeded_network
from ldd.networks.settings import settings_of
from ldd.runtime.classes import dotted_name

if TYPE_CHECKING:  # worker processes import this file, and need no data
    from ldd.data.real import RealImages

INDEX = "index.json"
FORMAT_VERSION = 1
_MOST = 2**53  # of anything that an index counts
_HOW_TO_RECORD = (
    "record some by `latentdd experts --config configs/experts/digits.yaml` with this run's data and network"
)


@dataclass(frozen=True)
class ExpertSetting:
    """The facts that experts share with every run that matches them.

    Attributes:
        classes: wnids, ordered by label.
        image_size: height and width in pixels.
        mean, std: the normalisation, see `DataSpec`.
        num_images: images in the core-set.
        core_set: hash over their keys and labels; empty where some may still be left out.
        contents: hash over their files, see `ldd.data.fingerprints`; None in recordings that are older than this field,
            or where the files are not known.
        network: dotted name of the network's class.
        layers: the network as torch prints it, line by line.
        parameters: name and shape of each parameter, in order.
        num_parameters: P.
        settings: what the network's modules keep of their arguments, see `ldd.networks.settings`; None in recordings
            that are older than this field.
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
    contents: str | None = None
    settings: tuple[str, ...] | None = None

    @classmethod
    def of(cls, spec: DataSpec, core_set: "RealImages", network: Network) -> Self:
        """Return the setting of a run; only the layers of the matching network count, not its weights."""
        digest = hashlib.sha256()
        for key, label in zip(core_set.keys, core_set.labels.tolist(), strict=True):
            digest.update(f"{label}\t{key}\n".encode())
        named = dict(network.named_parameters())
        return cls(
            classes=tuple(info.wnid for info in spec.classes),
            image_size=spec.image_size,
            mean=tuple(spec.mean),
            std=tuple(spec.std),
            num_images=len(core_set),
            core_set=digest.hexdigest()[:32] if core_set.certain else "",
            network=dotted_name(type(network)),
            layers=tuple(repr(network).splitlines()),
            parameters=tuple(f"{name} {tuple(value.shape)}" for name, value in named.items()),
            num_parameters=sum(value.numel() for value in named.values()),
            contents=None if core_set.fingerprint is None else core_set.fingerprint(),
            settings=settings_of(network),
        )

    def differences(self, run: "ExpertSetting") -> list[str]:
        """Return in words where a run's setting differs from the experts' (self); empty where nothing does."""
        found = []
        if self.image_size != run.image_size:
            found.append(f"image_size {self.image_size} (this run: {run.image_size})")
        if self.classes != run.classes:
            found.append(f"the classes [{listed(self.classes, 3)}] (this run: [{listed(run.classes, 3)}])")
        elif run.core_set and self.core_set != run.core_set:
            other = f"{run.num_images}{' other ones' if run.num_images == self.num_images else ''}"
            found.append(
                f"a core-set of {self.num_images} images (this run: {other}; pruner and data.seed must be the same)"
            )
        elif None not in (self.contents, run.contents) and self.contents != run.contents:
            found.append(
                f"images of other contents (fingerprint {self.contents}; this run: {run.contents}) under the same names"
            )
        if (self.mean, self.std) != (run.mean, run.std):
            found.append(
                f"mean {list(self.mean)}, std {list(self.std)} (this run: {list(run.mean)}, {list(run.std)})"
            )
        # Resolution and number of classes shape the layers: a difference in those is told once.
        same_sizes = self.image_size == run.image_size and len(self.classes) == len(run.classes)
        if self.network != run.network or (same_sizes and self._lines(run) != run._lines(self)):
            found.append(
                f"the network {self._network_in_words(run)} (this run: {run._network_in_words(self)})"
            )
        return found

    def _lines(self, other: "ExpertSetting") -> tuple[str, ...]:
        """Return all that is said of the network and can be compared with another's."""
        settings = (self.settings, other.settings)
        return (*self.layers, *self.parameters, *(() if None in settings else self.settings or ()))

    def _network_in_words(self, other: "ExpertSetting") -> str:
        words = f"{self.network} with {self.num_parameters:,} parameters"
        if (self.network, self.num_parameters) != (other.network, other.num_parameters):
            return words
        here = [line for line in self._lines(other) if line not in other._lines(self)]
        return f"{words} and {here[0].strip() if here else 'its layers in another order'}"


@dataclass(frozen=True)
class ExpertTraining:
    """How experts were trained; a run may match recordings of any training.

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
class _Index:
    format_version: int
    num_experts: int
    setting: ExpertSetting
    training: ExpertTraining

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise UserError(
                f"format_version {self.format_version}, this version of latentdd reads {FORMAT_VERSION}"
            )
        for count in (self.num_experts, self.training.epochs, self.setting.num_parameters):
            if not 0 < count < _MOST:
                raise UserError(f"{count} cannot be a number of experts, epochs or parameters")


class Trajectories:
    """A recording: the weights of experts 0..n-1 after 0..E epochs, from `under` (to record) or `find_experts`.

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
        """Return the recording of these facts in `root`, whether or not it is there; nothing is written."""
        by_names = root / _name(replace(setting, contents=None, settings=None), training)
        for folder in (by_names, root / _name(setting, training)):
            if not (folder / INDEX).exists():
                break
            found = cls.open(folder)
            if not found.setting.differences(setting):
                return cls(folder, found.setting, training, max(num_experts, found.num_experts))
        return cls(folder, setting, training, num_experts)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return the recording in `folder`."""
        index = read_record(folder / INDEX, _Index, f"delete {folder} and record the experts anew")
        return cls(folder, index.setting, index.training, index.num_experts)

    def write_index(self) -> None:
        """Make the folder and its index, which never names fewer experts than before; under the folder's lock."""
        before = self.open(self.folder).num_experts if (self.folder / INDEX).exists() else 0
        index = _Index(FORMAT_VERSION, max(before, self.num_experts), self.setting, self.training)
        write_json(self.folder / INDEX, to_json(index))

    def path(self, expert: int) -> Path:
        """Return the file of one expert."""
        return self.folder / f"expert-{expert:05d}.safetensors"

    @property
    def bytes_per_expert(self) -> int:
        """Size of an expert's file without its header."""
        return 4 * ((self.training.epochs + 1) * self.setting.num_parameters + self.training.epochs)

    def write(self, expert: int, snapshots: Tensor, losses: Tensor) -> None:
        """Store an expert: its weights (E + 1, P) after 0..E epochs, laid end to end, and mean losses (E,), float32."""
        assert snapshots.shape == (self.training.epochs + 1, self.setting.num_parameters)
        assert snapshots.dtype == torch.float32
        write_tensors(self.path(expert), {"parameters": snapshots, "losses": losses})

    def read(self, expert: int, epochs: Sequence[int]) -> Tensor:
        """Read the weights after the given epochs, (len(epochs), P) float32 on the CPU, and nothing else."""
        shape = [self.training.epochs + 1, self.setting.num_parameters]
        with self._opened(expert, "parameters", shape) as rows:
            return torch.cat([rows[epoch : epoch + 1] for epoch in epochs])

    def losses(self, expert: int) -> Tensor:
        """Read the mean training loss of each epoch, (E,) float32."""
        with self._opened(expert, "losses", [self.training.epochs]) as losses:
            values: Tensor = losses[:].clone()
            return values

    @contextmanager
    def _opened(self, expert: int, name: str, shape: list[int]) -> Iterator[Any]:
        """Return a tensor of an expert's file, of which only what is indexed is read."""
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
        """Return whether an expert's file is there and not truncated; little more than its header is read."""
        try:
            return self.path(expert).exists() and len(self.read(expert, [0])) == len(self.losses(expert)[:1])
        except UserError:
            return False


@dataclass(frozen=True)
class ExpertNeed:
    """Expert trajectories that an objective or labels read.

    Attributes:
        trajectories: folder they lie in: a recording's own, or one that holds several.
        network: their network.
        num_experts: how many; None for all that were to be recorded.
        epochs: how many at least.
        reason: the settings that need them, for messages: "expert_epoch (7) takes".
        section: whose setting `trajectories` is, for messages.
    """

    trajectories: str
    network: NetworkFactory
    num_experts: int | None
    epochs: int
    reason: str = "this run reads"
    section: Literal["objective", "labels"] = "objective"


class MissingExperts(UserError):
    """No recording fits a run, or none that is whole and long enough: recording some mends it."""


def find_experts(need: ExpertNeed, spec: DataSpec, core_set: "RealImages") -> Trajectories:
    """Return the recording that a run needs: made with its data and network, whole and long enough."""
    setting = ExpertSetting.of(spec, core_set, blank_network(need.network, spec))
    return find_trajectories(
        need.trajectories, setting, need.num_experts, need.section, need.epochs, need.reason
    )


def blank_network(factory: NetworkFactory, spec: DataSpec) -> Network:
    """Return a network whose weights do not count: they are replaced by an expert's, or never used."""
    return seeded_network(factory, spec, 0, "expert's layers")


def find_trajectories(
    root: str,
    setting: ExpertSetting,
    num_experts: int | None = None,
    section: str = "objective",
    epochs: int = 1,
    reason: str = "this run reads",
) -> Trajectories:
    """Return the recording in `root`, or in one of its subfolders, that fits a run and has `epochs` at least.

    Raises:
        MissingExperts: there is none, or experts of it are missing.
        UserError: several are there, of which only the user can choose, or one is damaged.
    """
    base = Path(root).expanduser()
    folders = [path.parent for path in (base / INDEX, *sorted(base.glob(f"*/{INDEX}"))) if path.is_file()]
    recordings = [Trajectories.open(folder) for folder in folders]
    if not recordings:
        state = "holds no expert trajectories" if base.is_dir() else "does not exist"
        raise MissingExperts(f"{section}.trajectories ({root}) {state}; {_HOW_TO_RECORD}")
    fitting = [recording for recording in recordings if not recording.setting.differences(setting)]
    if not fitting:
        reasons = "; ".join(
            f"{r.folder.name} was recorded for {' and '.join(r.setting.differences(setting))}"
            for r in recordings
        )
        raise MissingExperts(
            f"{section}.trajectories ({root}) does not fit this run: {reasons}. {_HOW_TO_RECORD}"
        )
    longest = max(fitting, key=lambda recording: recording.training.epochs)
    if longest.training.epochs < epochs:
        raise MissingExperts(
            f"{section}.trajectories ({longest.folder}) has {longest.training.epochs} epochs, but {reason} epoch "
            f"{epochs}; lower one of them, or record experts with --epochs {epochs} or more"
        )
    found, *others = (recording for recording in fitting if recording.training.epochs >= epochs)
    if others:
        choices = "; ".join(f"{r.folder} ({_in_words(r.training)})" for r in (found, *others))
        raise UserError(f"{section}.trajectories ({root}) holds several that fit; name one of: {choices}")
    wanted = found.num_experts if num_experts is None else num_experts
    there = next((i for i in range(wanted) if not found.path(i).exists()), wanted)
    if there < wanted:
        most = f"{section}.num_experts to {max(there, 1)} or less"
        if section == "labels":
            most = f"labels.expert to one below {max(there, 1)}"
        raise MissingExperts(
            f"{section}.trajectories ({found.folder}) holds the first {there} of {wanted} experts; let the command "
            f"that records them finish, or set {most}"
        )
    return Trajectories(found.folder, found.setting, found.training, wanted)


def _name(setting: ExpertSetting, training: ExpertTraining) -> str:
    """Return the name of a recording's folder; `under` leaves contents and settings out of it where it can."""
    facts = {"setting": to_json(setting), "training": asdict(training)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{setting.network.rpartition('.')[2].lower()}-{setting.image_size}px-{digest[:12]}"


def _in_words(training: ExpertTraining) -> str:
    return ", ".join(
        f"{name} {'+'.join(value) if isinstance(value, tuple) else value}"
        for name, value in asdict(training).items()
    )
