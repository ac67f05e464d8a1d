"""Rows of an evaluation, one for each trained network, and the names of the sets that they are of."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Self

DISTILLED = "distilled"
DISTILLED_HARD = "distilled_hard"
"""The distilled images with hard labels, where the set has soft ones."""

INITIAL = "initial"
"""The codes before the first step; also the name of their folder in a run."""

REFERENCE = "random_real"
"""The set that the distilled one is measured against: real images at an equal budget."""

FULL = "full_real"
"""All real training images, whose accuracies are the upper bound."""

PLAIN = "_plain"
"""What a set's name ends with where its students see no augmentation."""

_BUDGET = "_ipc"


def budget_name(name: str, images_per_class: int) -> str:
    """Return the name of the first `images_per_class` images of each class of a set."""
    return f"{name}{_BUDGET}{images_per_class}"


def of_a_step(name: str) -> bool:
    """Return whether the set of this name is another one at each training step."""
    return name in (DISTILLED, DISTILLED_HARD, DISTILLED + PLAIN) or name.startswith(DISTILLED + _BUDGET)


@dataclass(frozen=True)
class Row:
    """One trained network.

    Attributes:
        step: training step of the codes that were evaluated; sets that do not depend on it carry the step of the
            latest evaluation they were compared in.
        set: name of the set it learned from.
        network: its name.
        unseen: its class took no part in making the set, see `Manifest.seen_networks`.
        repeat: from 0.
        seed: of the evaluation; with network and repeat it fixes everything random.
        accuracy: top-1 on the test split after the last epoch, in [0, 1].
        seconds: of training and testing.
        protocol: id.
        selected: accuracy of the epoch that is best on the selection split; None where the protocol does not look.
        best_on_test: the largest accuracy of any look, chosen on the test split itself.
    """

    step: int
    set: str
    network: str
    unseen: bool
    repeat: int
    seed: int
    accuracy: float
    seconds: float
    protocol: str
    selected: float | None = None
    best_on_test: float | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """New rows replace all earlier ones with their key; of all sets, only the distilled ones differ by step."""
        return self.step if of_a_step(self.set) else None, self.protocol, self.set, self.network

    @classmethod
    def from_text(cls, text: Mapping[str, str]) -> Self:
        """Read one line of a CSV file.

        Raises:
            ValueError: a cell of another kind, or a number that no student has.
        """
        if text["unseen"] not in ("true", "false"):
            raise ValueError(text["unseen"])
        return cls(
            step=int(text["step"]),
            set=text["set"],
            network=text["network"],
            unseen=text["unseen"] == "true",
            repeat=int(text["repeat"]),
            seed=int(text["seed"]),
            accuracy=_number(text["accuracy"], 1),
            seconds=_number(text["seconds"], _LONGEST),
            protocol=text["protocol"],
            **{name: _number(text[name], 1) for name in LOOKS if text.get(name)},
        )

    def to_text(self, columns: Iterable[str]) -> list[object]:
        """Return the cells of these columns as a CSV file holds them."""
        cells = [getattr(self, name) for name in columns]
        return [
            str(cell).lower() if isinstance(cell, bool) else "" if cell is None else cell for cell in cells
        ]


_LONGEST = 1e12  # seconds


def _number(text: str, most: float) -> float:
    value = float(text)
    if not 0 <= value <= most:
        raise ValueError(f"{text} is not a number from 0 to {most:g}")
    return value


LOOKS = ("selected", "best_on_test")
"""Columns that are there only where a protocol looks at its students during training."""

COLUMNS = tuple(f.name for f in fields(Row) if f.name not in LOOKS)


@dataclass(frozen=True)
class Score:
    """Mean over repeats.

    Attributes:
        mean: of the accuracies.
        std: population standard deviation over the repeats (ddof 0), as the papers print it.
        n: repeats.
    """

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Return the score of accuracies, at least one."""
        values = list(values)
        return cls(statistics.fmean(values), statistics.pstdev(values), len(values))

    def __str__(self) -> str:
        spread = f" ± {100 * self.std:.1f}" if self.n > 1 else ""
        return f"{100 * self.mean:.1f}{spread}"
