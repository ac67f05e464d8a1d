"""What each stage of making and evaluating a set costs: seconds, peak memory, steps, decoded images.

Stages are `prune` (scoring the real images), `experts`, `distil`, `rediffuse`, `label`, `evaluate`, and `sample`
(drawing a set from a prior).

A figure that does not apply to a stage is missing; one that is None is unknown. Costs reach a saved set
through `DistilledSet.charged` and `ldd.artefact.manifest.charge`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ldd.runtime.devices import peak_memory_mib, pick_device

Figures = Mapping[str, float | None]
Stages = Mapping[str, Figures]

PRUNE, EXPERTS, DISTIL, LABEL, EVALUATE, SAMPLE = "prune", "experts", "distil", "label", "evaluate", "sample"
REDIFFUSE = "rediffuse"
SECONDS, PEAK, STEPS, DECODES = "seconds", "peak_memory_mib", "steps", "decodes"


class Ledger:
    """Costs of a run, stage by stage, summed over the processes that continue it."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float | None]] = {}

    @contextmanager
    def charge(self, stage: str, device: torch.device | None = None, **counts: float) -> Iterator[None]:
        """Charge a stage the seconds of a `with` block, the peak memory of a device at its end, and `counts`."""
        started = time.perf_counter()
        yield
        self.add({stage: {**measured(time.perf_counter() - started, device), **counts}})

    def add(self, stages: Stages) -> None:
        """Add figures to each stage's; of two peaks the larger one counts."""
        self.stages = total([self.stages, stages])


def measured(seconds: float, device: torch.device | None = None) -> dict[str, float]:
    """Return seconds, with the peak memory of this process so far."""
    return {SECONDS: seconds, PEAK: peak_memory_mib(device or pick_device())}


def total(all_stages: Sequence[Stages]) -> dict[str, dict[str, float | None]]:
    """Return the figures of each stage summed over processes, runs or sub-tasks, as `whole` sums them."""
    stages: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(name for stages_ in all_stages for name in stages_):
        of_stage = [stages_[name] for stages_ in all_stages if name in stages_]
        figures = dict.fromkeys(figure for found in of_stage for figure in found)
        stages[name] = whole([{figure: found.get(figure) for figure in figures} for found in of_stage])
    return stages


def whole(all_figures: Iterable[Figures]) -> dict[str, float | None]:
    """Return figures summed over stages, of peaks the largest; None where one of them is unknown."""
    values: dict[str, list[float | None]] = {}
    for figures in all_figures:
        for figure, value in figures.items():
            values.setdefault(figure, []).append(value)
    return {figure: _sum(figure, found) for figure, found in values.items()}


def _sum(figure: str, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return max(known) if figure.startswith("peak") else sum(known)
