"""Stored labels of crops: a teacher's labels of every crop that students will see."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from ldd.artefact import soft_labels
from ldd.artefact.identity import identity
from ldd.artefact.set import DistilledSet
from ldd.artefact.soft_labels import DENSE, INDICES, VALUES, Precision
from ldd.disk.files import read_tensors, write_tensors
from ldd.disk.parts import Work
from ldd.disk.shards import Shards
from ldd.errors import UserError
from ldd.labels.base import Labeller
from ldd.networks.training import epoch_batches
from ldd.runtime.progress import progress
from ldd.students.protocol import Protocol
from ldd.students.training import one_thread, student_transform


class CropTeacher(nn.Module):
    """Labels network inputs (n, 3, H, H) with probabilities (n, K) as they come back from storage."""

    def __init__(
        self, network: nn.Module, temperature: float, top_k: int | None, precision: Precision
    ) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.top_k = top_k
        self.precision: Precision = precision

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """Return probabilities (n, K) float32 of inputs (n, 3, H, W)."""
        return soft_labels.quantise(self._probabilities(inputs), self.top_k, self.precision).float()

    @torch.no_grad()
    def packed(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the tensors that hold what `forward` gives."""
        return soft_labels.packed(self._probabilities(inputs), self.top_k, self.precision)

    def _probabilities(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return (logits.float() / self.temperature).softmax(1)

    def extra_repr(self) -> str:
        """Return the settings that distinguish teachers of the same weights."""
        return f"temperature={self.temperature}, top_k={self.top_k}, precision={self.precision}"


_HEADER = "latentdd_crop_labels"  # key of the facts in the file's header
_FACTS = ("seed", "identity", "protocol", "protocol_hash", "teacher", "cost")
_ANEW = "make new ones with `latentdd label-crops`"


@dataclass(frozen=True, eq=False)
class CropLabels:
    """Labels of every crop of every epoch of one set under one protocol (as SRe2L and its successors store them).

    The crops are not stored: views, CutMix and the order of the images follow from `seed` on any machine.

    Attributes:
        tensors: `soft_labels` (E, N, K), or `soft_label_values` and `soft_label_indices` (E, N, k).
        seed: of the crops.
        identity: of the set (`ldd.artefact.identity.identity`).
        protocol: its id.
        protocol_hash: of its content, which has epochs, batches and views.
        teacher: where the labels come from.
        cost: seconds and peak memory of making them, as a ledger's stage has them.
    """

    tensors: Mapping[str, Tensor]
    seed: int
    identity: str
    protocol: str
    protocol_hash: str
    teacher: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float | None] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all."""
        facts = {name: getattr(self, name) for name in _FACTS}
        write_tensors(path, self.tensors, {_HEADER: json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, path: Path | str) -> "CropLabels":
        """Read a file that `save` wrote."""
        tensors = read_tensors(path)
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[_HEADER])
            found = cls(tensors, **facts)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"crop_labels ({path}) does not hold labels of crops; make them with `latentdd label-crops`"
            ) from error
        whole = tensors.keys() in ({DENSE}, {VALUES, INDICES}) and type(found.seed) is int
        if not whole or any(part.ndim != 3 for part in tensors.values()):
            raise UserError(f"crop_labels ({path}) is damaged; {_ANEW}")
        return found

    def check(self, distilled: DistilledSet, protocol: Protocol) -> None:
        """Raise unless these are the labels of this set under this protocol."""
        if (wanted := identity(distilled)) != self.identity:
            raise UserError(
                f"crop_labels are of another set ({self.identity}, this one is {wanted}); make them for this one with "
                "`latentdd label-crops`"
            )
        if protocol.hash != self.protocol_hash:
            edited = " as it was before it was edited" if protocol.id == self.protocol else ""
            raise UserError(
                f"crop_labels are of protocol {self.protocol}{edited}, and not of {protocol.id} as it is: its crops "
                f"differ; {_ANEW}"
            )
        epochs, _ = protocol.budget(distilled.counts)
        if DENSE in self.tensors and self.tensors[DENSE].shape[2] != distilled.num_classes:
            raise UserError(
                f"crop_labels are of {self.tensors[DENSE].shape[2]} classes, the set has {distilled.num_classes}; "
                f"{_ANEW}"
            )
        shapes = {name: tuple(part.shape[:2]) for name, part in self.tensors.items()}
        if set(shapes.values()) != {(epochs, len(distilled.images))}:
            raise UserError(
                f"crop_labels {shapes} are not of {epochs} epochs of {len(distilled.images)} images; {_ANEW}"
            )


def label_crops(
    distilled: DistilledSet, labeller: Labeller, protocol: Protocol, seed: int, device: torch.device
) -> CropLabels:
    """Label every crop that students of a set will see, at the protocol's temperature.

    Codes of the set may have a spread if the protocol takes no draws of them.
    """
    check_croppable(distilled, protocol)
    epochs, _ = protocol.budget(distilled.counts)
    labels = _labels_of(distilled, labeller, protocol, seed, device, range(epochs))
    return _stacked([*labels], distilled, labeller, protocol, seed)


def crop_work(
    out: Path,
    distilled: DistilledSet,
    labeller: Labeller,
    protocol: Protocol,
    seed: int,
    device: torch.device,
    cost: Callable[[float], Mapping[str, float | None]],
    *,
    in_parts: bool = False,
) -> Work[CropLabels]:
    """Return the labelling of crops as work for a file: a unit and a shard are an epoch, whose fact is its seconds.

    Args:
        out: the file.
        distilled: the set.
        labeller: of the teacher.
        protocol: of the students.
        seed: of the crops.
        device: where the teacher runs.
        cost: seconds of all epochs -> what the file says of the cost.
        in_parts: whether a file that is there has been made by other processes, and not before all of this.
    """
    check_croppable(distilled, protocol)
    facts = [identity(distilled), protocol.hash, protocol.temperature, seed, device.type, labeller.facts]
    form = [labeller.top_k, labeller.precision]
    made: list[CropLabels] = []

    def add(shards: Shards, epochs: range) -> None:
        started = time.perf_counter()
        for labels in _labels_of(distilled, labeller, protocol, seed, device, epochs):
            shards.add([save(labels)], time.perf_counter() - started)
            started = time.perf_counter()

    def finish(shards: Shards) -> None:
        by_epoch = [load(shards.read(epoch)) for epoch in range(len(shards.facts))]
        crops = _stacked(by_epoch, distilled, labeller, protocol, seed)
        made.append(replace(crops, cost=cost(sum(shards.facts))))
        made[0].save(out)

    def find() -> CropLabels | None:
        if made or not (in_parts and out.is_file()):
            return made[0] if made else None
        return CropLabels.load(out)

    epochs, _ = protocol.budget(distilled.counts)
    key = json.dumps([*facts, *form], sort_keys=True, default=str)
    return Work(out, key, epochs, len, add, finish, find, "labels of crops", argument="out", hidden=True)


def _labels_of(
    distilled: DistilledSet,
    labeller: Labeller,
    protocol: Protocol,
    seed: int,
    device: torch.device,
    epochs: range,
) -> Iterator[dict[str, Tensor]]:
    """Yield the packed labels of each of some epochs."""
    distilled.refuse_packed("labelling crops")
    _, batch_size = protocol.budget(distilled.counts)
    images = distilled.images.to(device)
    # Floats go through CutMix where labels would: each crop keeps the place of its image.
    places = torch.arange(len(images), device=device, dtype=torch.float64)
    teacher = crop_teacher(labeller, protocol)
    see = student_transform(labeller.spec, protocol, None, augmented=True, stored=True)
    # As students work on one thread: the same sums, the same bits.
    with one_thread(device), progress("labelling crops", len(epochs) * len(images)) as counter:
        for epoch in epochs:
            yield _of_epoch(teacher, epoch_batches(images, places, batch_size, seed, epoch, see))
            counter.add(len(images))


def _stacked(
    by_epoch: Sequence[Mapping[str, Tensor]],
    distilled: DistilledSet,
    labeller: Labeller,
    protocol: Protocol,
    seed: int,
) -> CropLabels:
    return CropLabels(
        {name: torch.stack([part[name] for part in by_epoch]) for name in by_epoch[0]},
        seed,
        identity(distilled),
        protocol.id,
        protocol.hash,
        teacher_facts(labeller, protocol),
    )


def check_croppable(distilled: DistilledSet, protocol: Protocol) -> None:
    """Raise unless every crop of this set under this protocol can have a stored label."""
    if not protocol.has_teacher:
        raise UserError(
            f"protocol ({protocol.id}) takes the labels of the set; labels of crops are for one with labels: teacher, "
            "such as rded-soft"
        )
    if protocol.draws_from(distilled):
        raise UserError(
            f"protocol ({protocol.id}) draws the images anew; give one with samples: 0 to label crops of the mean "
            "images"
        )


def _of_epoch(teacher: CropTeacher, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the packed labels of an epoch's batches of (inputs, places), in the order of the places, on the CPU."""
    parts, places = [], []
    for inputs, where in batches:
        parts.append({name: part.cpu() for name, part in teacher.packed(inputs).items()})
        places.append(where.cpu())
    order = torch.cat(places).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}


def crop_teacher(labeller: Labeller, protocol: Protocol) -> CropTeacher:
    """Return a labeller's network as the teacher of a protocol, at the protocol's temperature."""
    return CropTeacher(labeller.network, protocol.temperature, labeller.top_k, labeller.precision)


def teacher_facts(labeller: Labeller, protocol: Protocol) -> dict[str, Any]:
    """Return what is recorded of a protocol's teacher: the labeller's facts, with the protocol's temperature."""
    return {**labeller.facts, "temperature": protocol.temperature}
