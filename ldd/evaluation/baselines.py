"""Sets that stand beside the distilled one: what the same students learn without distillation."""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final
from typing import Protocol as Interface

import torch
from torch import Tensor

from ldd.classes import DataSpec, Labelled, to_bytes
from ldd.errors import UserError
from ldd.seeding import generator

if TYPE_CHECKING:  # worker processes import this file, and would wait for all that ldd.data imports
    from ldd.data.real import RealImages


class EvaluationData(Interface):
    """What an evaluation needs of `DistillationData`.

    Attributes:
        spec: classes, image size and normalisation.
        train_images, test_images: two of the splits, here after `setup`.
    """

    spec: DataSpec
    train_images: "RealImages"
    test_images: "RealImages"

    def setup(self, stage: str | None = None) -> None:
        """Load the splits; a second call does nothing."""


@dataclass(frozen=True)
class Setting:
    """What an evaluation tells its baselines.

    Attributes:
        data: real images, set up.
        counts: K numbers of images per class of the distilled set: the budget.
        seed: of the evaluation.
    """

    data: EvaluationData
    counts: Sequence[int]
    seed: int


class Baseline(ABC):
    """A set of images to train students on. Subclasses are final.

    Attributes:
        name: what results call the set.
        repeats: students per network; None takes the evaluation's number.
        full_data: train for the protocol's `full_data_epochs` instead of its `epochs`.
    """

    name: str
    repeats: int | None = None
    full_data: bool = False

    @abstractmethod
    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """Images (N, 3, H, W) uint8 with labels (N,) for the students of one repeat, on the CPU.

        Raises:
            UserError: the data cannot give such a set.
        """


@final
class RandomReal(Baseline):
    """As many real images per class as the distilled set has, from the whole training split; a new draw per repeat."""

    name = "random_real"

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """Draws without replacement; the classes' draws follow from (seed, repeat, label)."""
        drawn: list[Tensor] = []
        for label, n in enumerate(setting.counts):
            draws = generator(setting.seed, "random real", repeat, label)
            images = setting.data.train_images.draw(label, n, draws, wanted="random_real: images per class")
            drawn.append(to_bytes(images))
        labels = torch.arange(len(setting.counts)).repeat_interleave(torch.tensor(setting.counts))
        return Labelled(torch.cat(drawn), labels)


@final
class FullReal(Baseline):
    """The whole training split, before any pruning: the upper bound.

    Args:
        repeats: students per network.

    Raises:
        UserError: fewer than one repeat.
    """

    name = "full_real"
    full_data = True

    def __init__(self, repeats: int = 1) -> None:
        if repeats < 1:
            raise UserError(f"repeats of full_real ({repeats}) must be at least 1")
        self.repeats = repeats

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """The same images for every repeat."""
        return Labelled(setting.data.train_images.images, setting.data.train_images.labels)


@final
class FixedSet(Baseline):
    """A set that exists already: the distilled one itself, or the codes before their first step.

    Args:
        name: what results call it.
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
    """

    def __init__(self, name: str, images: Tensor, labels: Tensor) -> None:
        self.name = name
        self._set = Labelled(images, labels)

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """The same images for every repeat."""
        return self._set


DEFAULT_BASELINES: tuple[Baseline, ...] = (RandomReal(), FullReal())
"""What an evaluation compares with unless told otherwise."""


def baselines_by_name(names: str) -> tuple[Baseline, ...]:
    """Baselines from a command line: `random_real,full_real`, or dotted names of classes; empty for none.

    Raises:
        UserError: a name that is neither.
    """
    built_in = {baseline.name: baseline for baseline in DEFAULT_BASELINES}
    chosen: list[Baseline] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            found = built_in[name] if name in built_in else pkgutil.resolve_name(name)()
        except (ImportError, AttributeError, ValueError, TypeError):
            found = None
        if not isinstance(found, Baseline):
            raise UserError(
                f"baselines: {name!r} is unknown; choose from {', '.join(built_in)}, or give the dotted name of a "
                "Baseline class that needs no arguments"
            )
        chosen.append(found)
    return tuple(chosen)
