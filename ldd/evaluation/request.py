"""What an evaluation is asked for, apart from the set: real images, protocol, networks and all that goes with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch

from ldd.artefact.set import DistilledSet
from ldd.data.real import EvaluationData
from ldd.errors import UserError, check_at_least
from ldd.evaluation.baselines.base import Baseline, Setting
from ldd.images import Labelled
from ldd.labels.base import Labeller
from ldd.labels.crops import CropLabels
from ldd.networks import NetworkFactory
from ldd.priors import Prior
from ldd.students.protocol import Protocol
from ldd.students.training_set import Sampler
from ldd.students.workers import NumWorkers, count_workers

Device = Literal["auto"] | torch.device

Tested = Literal["test", "selection"]
"""The split that students are tested on: `selection` while settings are chosen, `test` for what is reported."""


@dataclass(frozen=True)
class Request:
    """How a set is evaluated: what its students meet, and how they are trained.

    Its attributes are the arguments of `ldd.evaluate`, where they are described; here the protocol has been loaded and
    the device chosen.

    Attributes:
        draws_must_fit: refuse draws of codes that the memory of this machine cannot hold.

    Raises:
        UserError: no repeats, no networks or no workers.
    """

    data: EvaluationData
    protocol: Protocol
    networks: Mapping[str, NetworkFactory] | None = None
    repeats: int = 5
    seed: int = 0
    baselines: Sequence[Baseline] | None = None
    initial: DistilledSet | None = None
    budgets: Sequence[int] = ()
    sampler: Sampler | None = None
    labeller: Labeller | None = None
    crops: CropLabels | None = None
    prior: Prior | None = None
    records: Path | str | None = None
    num_workers: NumWorkers = "auto"
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    progress: bool = True
    draws_must_fit: bool = True
    split: Tested = "test"

    def __post_init__(self) -> None:
        check_at_least(1, repeats=self.repeats)
        count_workers(self.num_workers)
        if not self.factories:
            raise UserError("networks is empty; name at least one, or leave it null for the protocol's")

    @cached_property
    def factories(self) -> dict[str, NetworkFactory]:
        """The networks by name."""
        return self.protocol.factories() if self.networks is None else dict(self.networks)

    def setting(self, distilled: DistilledSet) -> Setting:
        """Return what the baselines of a set are told of its evaluation."""
        parts = {"labeller": self.labeller, "prior": self.prior, "device": self.device}
        return Setting.of(distilled, self.data, self.seed, **parts)

    def test_split(self) -> Labelled:
        """Return what students are tested on: the test images that the protocol takes, or the whole selection split.

        Raises:
            UserError: a selection split without images.
        """
        if self.split == "selection":
            return self._selection("split (selection) tests on the selection split", "test on the test split")
        test = self.data.test_images
        return self.protocol.test_part(Labelled(test.images, test.labels))

    def selection_split(self) -> Labelled | None:
        """Return the selection split where the protocol looks at it during training; None where it is the test."""
        if not self.protocol.looks or self.split == "selection":
            return None
        looks = f"protocol {self.protocol.id} looks at the selection split during training"
        return self._selection(looks, "take a protocol without looks")

    def _selection(self, wanted: str, instead: str) -> Labelled:
        found = self.data.selection_images
        if not len(found):
            raise UserError(
                f"{wanted}, which is empty: each class has one training image; add images, or {instead}"
            )
        return Labelled(found.images, found.labels)
