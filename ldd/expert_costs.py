"""What recording expert trajectories took: kept beside a recording, and charged to every run that reads it."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ldd.data import DistillationData
from ldd.ledger import EXPERTS, PEAK, SECONDS, STEPS, Figures, total, whole
from ldd.seeding import seeded
from ldd.store import Store
from ldd.trajectories import ExpertNeed, ExpertSetting, Trajectories, find_trajectories

FOLDER = "cost"
"""In a recording's folder: seconds and peak memory of each expert. The experts themselves do not depend on them."""


def keep_cost(recording: Trajectories, expert: int, figures: Figures) -> None:
    """Keep what an expert took.

    Raises:
        UserError: the folder cannot be written.
    """
    kept = {name: pa.array([figures[name]], pa.float64()) for name in (SECONDS, PEAK)}
    _store(recording).add([recording.path(expert).stem], **kept)


def cost_of(recording: Trajectories) -> dict[str, float | None]:
    """What all experts of a recording took; unknown where one was recorded before costs were kept."""
    rows = _store(recording).find([recording.path(i).stem for i in range(recording.num_experts)])
    batches = -(-recording.setting.num_images // recording.training.batch_size)
    steps = recording.num_experts * recording.training.epochs * batches
    return {**whole(rows.to_pylist()), STEPS: steps}


def cost_of_experts(needs: Sequence[ExpertNeed], data: DistillationData) -> dict[str, float | None]:
    """What recording the experts took that a run reads, whenever they were recorded; empty where it reads none.

    Args:
        needs: of the objective, of the labels; a recording that several read is charged once.
        data: set up.

    Raises:
        UserError: one is not there.
    """
    recordings: dict[Path, Trajectories] = {}
    for need in needs:
        with seeded(0, "expert's layers"):  # only they matter here
            network = need.network(data.spec.num_classes, data.spec.image_size)
        setting = ExpertSetting.of(data.spec, data.core_set.keys, data.core_set.labels, network)
        found = find_trajectories(need.trajectories, setting, need.num_experts)
        other = recordings.get(found.folder)
        if other is None or other.num_experts < found.num_experts:
            recordings[found.folder] = found
    return total([{EXPERTS: cost_of(found)} for found in recordings.values()]).get(EXPERTS, {})


def _store(recording: Trajectories) -> Store:
    return Store(recording.folder / FOLDER, {SECONDS: pa.float64(), PEAK: pa.float64()})
