"""Recording of expert trajectories: networks are trained on the core-set, and their weights kept after every epoch."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

from ldd.augmentation.siamese import OPERATIONS, SiameseAugmentation
from ldd.data import DistillationData
from ldd.disk.files import LOCK, remove_leftovers
from ldd.disk.locks import locked, made
from ldd.disk.stores import as_named
from ldd.disk.table import Store
from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.experts.trajectories import (
    ExpertNeed,
    ExpertSetting,
    ExpertTraining,
    Trajectories,
    blank_network,
    find_experts,
)
from ldd.images import DataSpec, Images
from ldd.networks import ConvNet, NetworkFactory
from ldd.networks.base import seeded_network
from ldd.networks.training import train_classifier
from ldd.runtime.devices import find_device, in_bytes, resident
from ldd.runtime.ledger import EXPERTS, PEAK, SECONDS, STEPS, measured, total, whole
from ldd.runtime.progress import progress as shown_progress
from ldd.runtime.seeding import derive_seed

# Folder in a recording's: seconds and peak memory of each expert. They are no part of what it follows from.
_COSTS = "cost"
_PATIENCE = 0.5  # seconds between two looks at another process's lock


def record_experts(
    data: DistillationData,
    network: NetworkFactory = ConvNet,
    num_experts: int = 100,
    first_expert: int = 0,
    epochs: int = 15,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    augmentation: Sequence[str] = tuple(OPERATIONS),
    seed: int = 0,
    device: str = "auto",
    out: str = "experts",
    progress: bool = True,
    wait: bool = False,
) -> Path:
    """Train experts on the core-set and store their weights after each epoch (MTT, arXiv 2203.11932, section 4.1).

    Files that are already there are kept and only the missing ones are recorded, so that a run that was killed
    continues with the same command and ends with the same files. An expert follows from (seed, its number) alone.

    Args:
        data: the experts learn its core-set.
        network: the matching network of the runs that will use them.
        num_experts: how many (published: 100 by GLaD, 5000 by LD3M); a later call may ask for more.
        first_expert: number of the first, so that several processes can share the work.
        epochs: passes over the core-set; a run needs max_start_epoch - 1 + expert_epochs of them.
        batch_size: images per step.
        learning_rate: of SGD, constant.
        momentum: of SGD.
        weight_decay: of SGD.
        augmentation: siamese augmentation strategies, one per batch; empty for none.
        seed: of initial weights, shuffling and augmentation.
        device: "auto" (the accelerator where there is one), "cpu", "cuda", "cuda:1", ...
        out: folder in which the recording gets one of its own.
        progress: show a bar with the loss and the time left.
        wait: for another process that records some of these experts; False refuses.

    Returns:
        The recording's folder.

    Raises:
        UserError: a number out of range, an unknown device, too little disk space, weights that became NaN, or another
            process that records some of these experts.
    """
    check_at_least(1, num_experts=num_experts, epochs=epochs, batch_size=batch_size)
    check_at_least(0, first_expert=first_expert)
    check_not_negative(learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay)
    place, strategies = find_device(device), SiameseAugmentation(augmentation).strategies
    training = ExpertTraining(epochs, batch_size, learning_rate, momentum, weight_decay, strategies, seed)
    data.setup()
    setting = ExpertSetting.of(data.spec, data.core_set, blank_network(network, data.spec))
    wanted = range(first_expert, first_expert + num_experts)
    recording = Trajectories.under(Path(out).expanduser(), setting, training, wanted.stop)
    with _alone(recording.folder, wanted, wait=wait):
        _record_missing(recording, wanted, data, network, place, progress)
    losses = torch.stack([recording.losses(expert) for expert in wanted]).mean(0)
    print("mean training loss by epoch:", " ".join(f"{loss:.3f}" for loss in losses.tolist()))
    return recording.folder


@contextmanager
def _alone(folder: Path, wanted: range, *, wait: bool) -> Iterator[None]:
    """Be the only process that records these experts; other processes may record others in the same folder."""

    def busy(holder: str) -> None:
        raise UserError(
            f"experts {wanted.start} to {wanted.stop - 1} of {folder} are being recorded by {holder}; wait until that "
            "has ended, or name other experts by first_expert and num_experts"
        )

    told = False
    with made(folder), ExitStack() as held:
        while True:
            with locked(folder / LOCK, lambda holder: None):  # for a moment, in which nobody else chooses
                try:
                    for other in folder.glob(".*-*.lock"):
                        first, stop = map(int, other.name.removesuffix(".lock")[1:].split("-"))
                        if first < wanted.stop and wanted.start < stop:
                            with locked(other, busy):
                                pass
                    if not any(folder.glob(".*-*.lock")):  # nobody else writes here
                        for each in (folder, folder / _COSTS):
                            remove_leftovers(each)
                    held.enter_context(locked(folder / f".{wanted.start}-{wanted.stop}.lock", busy))
                    break
                except UserError as error:
                    if not wait:
                        raise
                    told = told or print(f"waiting: {error}", file=sys.stderr) is None
            time.sleep(_PATIENCE)
        yield


def _record_missing(
    recording: Trajectories,
    wanted: range,
    data: DistillationData,
    network: NetworkFactory,
    device: torch.device,
    progress: bool,
) -> None:
    """Train and write the experts that are not there yet, and keep what each took."""
    training = recording.training
    missing = [expert for expert in wanted if not recording.is_whole(expert)]
    _check_disk(recording, missing, len(wanted))
    with locked(recording.folder / LOCK, lambda holder: None):  # other processes record other experts
        recording.write_index()
    images, labels = resident(data.core_set.at_hand, device), data.core_set.labels.to(device)
    total = len(missing) * training.epochs
    with shown_progress("recording experts", total, unit="epochs", shown=progress) as counter:

        def tick(loss: Tensor) -> None:
            counter.add(note=lambda: f"loss {float(loss):.3f}")

        for done, expert in enumerate(missing):
            started = time.perf_counter()
            snapshots, losses = _train_expert(network, data.spec, (images, labels), training, expert, tick)
            try:
                recording.write(expert, snapshots, losses)
                figures = measured(time.perf_counter() - started, device)
                kept = {name: pa.array([figures[name]], pa.float64()) for name in (SECONDS, PEAK)}
                _costs(recording).add([recording.path(expert).stem], **kept)
            except UserError as error:
                there = len(wanted) - len(missing) + done
                raise UserError(
                    f"{error}. {there} of {len(wanted)} experts are kept; the same command continues with the rest"
                ) from error


def _train_expert(
    network: NetworkFactory,
    spec: DataSpec,
    images: tuple[Images, Tensor],
    training: ExpertTraining,
    expert: int,
    tick: Callable[[Tensor], None],
) -> tuple[Tensor, Tensor]:
    """Train an expert where the labels are; return its snapshots (E + 1, P) and mean losses (E,) on the CPU."""
    student = seeded_network(network, spec, training.seed, "expert", expert).to(images[1].device)
    first = parameters_to_vector(student.parameters()).detach()
    snapshots, losses = torch.empty(training.epochs + 1, len(first)), torch.empty(training.epochs)
    snapshots[0] = first

    def keep(epoch: int, loss: Tensor) -> None:
        # Copied into rows: a detached parameter would go on changing with the training.
        snapshots[epoch + 1] = parameters_to_vector(student.parameters()).detach()
        losses[epoch] = loss
        tick(loss)

    rates: dict[str, Any] = {"lr": training.learning_rate, "momentum": training.momentum}
    train_classifier(
        student,
        *images,
        epochs=training.epochs,
        batch_size=training.batch_size,
        optimizer=partial(SGD, **rates, weight_decay=training.weight_decay),
        augmentation=SiameseAugmentation(training.augmentation),
        normalise=spec.as_input,
        seed=derive_seed(training.seed, "expert training", expert),
        on_epoch=keep,
    )
    if not snapshots.isfinite().all():
        raise UserError(
            f"expert {expert}: weights became NaN or infinite with learning_rate {training.learning_rate:g}; lower it"
        )
    return snapshots, losses


def _check_disk(recording: Trajectories, missing: Sequence[int], wanted: int) -> None:
    """Remove what a killed process left, print what will be written, and raise if it does not fit on the disk."""
    folder = recording.folder
    for expert in missing:
        remove_leftovers(folder, recording.path(expert).name)
    disk = next(path for path in folder.absolute().parents if path.is_dir())
    needed, free = len(missing) * recording.bytes_per_expert, shutil.disk_usage(disk).free
    print(
        f"{as_named(folder)}: {wanted - len(missing)} of {wanted} experts are there; the other {len(missing)}, of "
        f"{recording.training.epochs + 1} snapshots of {recording.setting.num_parameters:,} parameters, take "
        f"{in_bytes(needed)}; the disk has {in_bytes(free)} free",
        flush=True,
    )
    if needed > free:
        raise UserError(
            f"the {len(missing)} experts to record take {in_bytes(needed)}, but the disk of out ({disk}) has "
            f"{in_bytes(free)} free; lower num_experts ({wanted}) or epochs ({recording.training.epochs}), or choose "
            "another disk with out"
        )


def cost_of(recording: Trajectories) -> dict[str, float | None]:
    """Return what all experts of a recording took; unknown where one was recorded before costs were kept."""
    rows = _costs(recording).find([recording.path(i).stem for i in range(recording.num_experts)])
    batches = -(-recording.setting.num_images // recording.training.batch_size)
    steps = recording.num_experts * recording.training.epochs * batches
    return {**whole(rows.to_pylist()), STEPS: steps}


def cost_of_experts(needs: Sequence[ExpertNeed], data: DistillationData) -> dict[str, float | None]:
    """Return what it took to record the experts that a run reads, whenever that was; empty where it reads none."""
    recordings: dict[Path, Trajectories] = {}
    for need in needs:
        found = find_experts(need, data.spec, data.core_set)
        other = recordings.get(found.folder)
        if other is None or other.num_experts < found.num_experts:
            recordings[found.folder] = found
    return total([{EXPERTS: cost_of(found)} for found in recordings.values()]).get(EXPERTS, {})


def _costs(recording: Trajectories) -> Store:
    return Store(recording.folder / _COSTS, {SECONDS: pa.float64(), PEAK: pa.float64()})
