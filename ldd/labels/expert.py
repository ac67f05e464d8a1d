"""Soft labels of an expert of the whole task at an early epoch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, final

import torch
from torch.nn.utils import vector_to_parameters

from ldd.artefact.soft_labels import Precision
from ldd.errors import UserError, check_at_least
from ldd.experts.trajectories import ExpertNeed, Trajectories, blank_network, find_experts
from ldd.images import DataSpec, Labelled
from ldd.labels.base import Labeller, Labels
from ldd.networks import ConvNet, NetworkFactory
from ldd.runtime.progress import progress
from ldd.runtime.seeding import derive_seed
from ldd.students.protocol import Protocol
from ldd.students.training import Lesson, Outcome, Student
from ldd.students.training_set import TrainingSet
from ldd.students.workers import NumWorkers, run_students

if TYPE_CHECKING:  # worker processes import this file, and need no data
    from ldd.data.real import EvaluationData

MAX_CANDIDATES = 8
"""Epochs that are tried where nobody names them."""


@final
class ExpertLabels(Labels):
    """Labels by softmax(logits / T) of one expert of the whole task at an early epoch (D3, arXiv 2403.00999).

    The best epoch is early; the more images there are, the later it is (Qin et al., arXiv 2406.10485). D3 took 9, 12
    and 13 for 1, 2 and 10 images per class of ImageNet. `auto` chooses the epoch without the set to be labelled and
    without the test split: for each candidate, students learn from equally many random real training images with the
    labels of that epoch, and the epoch whose students do best on the selection split is taken (the earliest of
    equals). So the baseline of random real images with soft labels has the labels that are best for it.

    Args:
        trajectories: folder that `latentdd experts` recorded on the whole task, or that holds several recordings.
        network: the experts' network; students of `auto` are of the same kind.
        expert: number of the one expert that labels.
        epoch: training epochs of the expert, or `auto`.
        temperature: see `Labels`.
        top_k: see `Labels`.
        precision: see `Labels`.
        candidates: epochs that `auto` tries; null takes up to eight of the recorded ones, from 1 to the last (of a run
            that records its experts itself: `experts.epochs`), evenly spread on a logarithmic scale.
        protocol: how `auto` trains students: a shipped protocol's name, or the path of a protocol file; none with a
            teacher.
        repeats: students per candidate, each with other real images.

    Raises:
        UserError: a number out of range, or a protocol with a teacher; in `choose`, trajectories that are missing or
            do not fit.
    """

    def __init__(
        self,
        trajectories: str,
        network: NetworkFactory = ConvNet,
        expert: int = 0,
        epoch: int | Literal["auto"] = "auto",
        temperature: float = 1.0,
        top_k: int | None = None,
        precision: Precision = "float16",
        candidates: Sequence[int] | None = None,
        protocol: str = "quick",
        repeats: int = 1,
    ) -> None:
        super().__init__(temperature, top_k, precision)
        check_at_least(0, "labels", expert=expert, epoch=None if epoch == "auto" else epoch)
        check_at_least(1, "labels", repeats=repeats)
        if candidates is not None and (not candidates or min(candidates) < 0):
            raise UserError(
                f"labels.candidates ({list(candidates)}) must be epochs of 0 or more, at least one"
            )
        self.protocol = Protocol.load(protocol)
        if self.protocol.has_teacher:
            raise UserError(
                f"labels.protocol ({protocol}) has a teacher's labels, and students of auto learn from those that are "
                "tried; give one with labels: own"
            )
        self.trajectories = trajectories
        self.network = network
        self.expert = expert
        self.epoch = epoch
        self.candidates = candidates
        self.repeats = repeats

    @torch.inference_mode(False)
    def choose(
        self,
        data: "EvaluationData",
        counts: Sequence[int],
        seed: int,
        device: torch.device,
        num_workers: NumWorkers = "auto",
    ) -> Labeller:
        """See `Labels.choose`.

        Raises:
            UserError: no recording fits the data and the network, or the expert or an epoch is not in it.
        """
        experts = self._find(data)
        if self.epoch != "auto":
            return self._of_epoch(experts, data.spec, self.epoch, device)
        labellers = {
            epoch: self._of_epoch(experts, data.spec, epoch, device)
            for epoch in self._epochs(experts.training.epochs)
        }
        sets = _labelled_draws(data, counts, self.repeats, seed, labellers)
        seed = derive_seed(seed, "label students")
        budget = self.protocol.budget(counts)
        with progress("choosing the epoch", len(sets), unit="networks") as counter:

            def done(tried: Student, found: Outcome) -> None:
                counter.add(1, f"labels of epoch {tried.set}: {100 * found.accuracy:.1f} %")

            outcomes = run_students(
                Lesson(data.spec, self.protocol, {"student": self.network}, seed),
                [Student(name, "student", repeat, *budget) for name, repeat in sets],
                sets,
                Labelled(data.selection_images.images, data.selection_images.labels),
                device=device,
                num_workers=num_workers,
                done=done,
            )
        accuracies: dict[int, list[float]] = {}
        for student, outcome in outcomes.items():
            accuracies.setdefault(int(student.set), []).append(outcome.accuracy)
        tried = {epoch: sum(values) / len(values) for epoch, values in accuracies.items()}
        best = max(tried, key=lambda epoch: (tried[epoch], -epoch))
        return self._of_epoch(experts, data.spec, best, device, tried)

    def experts(self) -> tuple[ExpertNeed, ...]:
        """Return one recording, of as many epochs as are named."""
        chosen = max(self.candidates or [1]) if self.epoch == "auto" else self.epoch
        reason = f"labels.{'candidates' if self.epoch == 'auto' else 'epoch'} ({chosen}) takes"
        return (
            ExpertNeed(self.trajectories, self.network, self.expert + 1, max(1, chosen), reason, "labels"),
        )

    def check(self, data: "EvaluationData") -> None:
        """See `Labels.check`."""
        self._find(data)

    def _find(self, data: "EvaluationData") -> Trajectories:
        """Return the recording that fits."""
        self._check_classes(data.spec)
        if self.epoch == "auto" and not len(data.selection_images):
            raise UserError(
                "labels.epoch (auto) is chosen on the selection split, which is empty: each class has one training "
                "image; add images, or give a number"
            )
        network = blank_network(self.network, data.spec)
        if next(network.buffers(), None) is not None:
            raise UserError(
                f"labels.network ({type(network).__name__}) has batch normalisation, whose statistics expert "
                "trajectories do not keep; choose another norm"
            )
        return find_experts(self.experts()[0], data.spec, data.core_set)

    def _of_epoch(
        self,
        experts: Trajectories,
        spec: DataSpec,
        epoch: int,
        device: torch.device,
        tried: Mapping[int, float] | None = None,
    ) -> Labeller:
        expert = blank_network(self.network, spec)
        vector_to_parameters(experts.read(self.expert, [epoch])[0], expert.parameters())
        return self._labeller(
            expert,
            spec,
            device,
            source=experts.setting.network,
            recording=experts.folder.name,
            expert=self.expert,
            epoch=epoch,
            tried=tried,
        )

    def _epochs(self, last: int) -> list[int]:
        if self.candidates is not None:
            return sorted(set(self.candidates))
        steps = torch.logspace(0, torch.tensor(float(last)).log10().item(), MAX_CANDIDATES)
        return sorted({round(step) for step in steps.tolist()})


def _labelled_draws(
    data: "EvaluationData",
    counts: Sequence[int],
    repeats: int,
    seed: int,
    labellers: Mapping[int, Labeller],
) -> dict[tuple[str, int], TrainingSet]:
    """Return, by (epoch, repeat), random real images with that epoch's labels; all epochs label the same images."""
    sets: dict[tuple[str, int], TrainingSet] = {}
    for repeat in range(repeats):
        wanted = "labels: images per class"
        images, _ = data.train_images.draw_set(counts, wanted, seed, "label images", repeat)
        for epoch, labeller in labellers.items():
            sets[str(epoch), repeat] = TrainingSet(images, labeller(images).float())
    return sets
