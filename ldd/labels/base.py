"""Soft labels of images: a network that gives them, and the interface of the ways to choose one."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldd.artefact import soft_labels
from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount
from ldd.artefact.soft_labels import Precision
from ldd.errors import UserError, check_at_least
from ldd.experts.trajectories import ExpertNeed
from ldd.images import DataSpec
from ldd.networks.base import name_of
from ldd.networks.scoring import in_batches
from ldd.runtime.classes import dotted_name
from ldd.runtime.devices import pick_device
from ldd.runtime.ledger import LABEL, Ledger
from ldd.students.protocol import Protocol
from ldd.students.workers import NumWorkers

if TYPE_CHECKING:  # worker processes import this file
    from ldd.data.real import EvaluationData


_YOUNGER = {"size", "mean", "std", "architecture"}  # facts that older labels do not have


@dataclass(frozen=True)
class Labeller:
    """Gives images the soft labels of one network.

    Attributes:
        network: in evaluation mode, on the device to work on.
        spec: classes, image size and normalisation.
        temperature: T of softmax(logits / T).
        top_k: probabilities kept of each label; None keeps all.
        precision: of the stored probabilities.
        facts: where the labels come from, for the manifest.
    """

    network: nn.Module
    spec: DataSpec
    temperature: float = 1.0
    top_k: int | None = None
    precision: Precision = "float16"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> Tensor:
        """Return probabilities (N, K) of images (N, 3, H, W) uint8, on the CPU, as they come back from storage."""
        return soft_labels.quantise(self.probabilities(images), self.top_k, self.precision)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return probabilities (N, K) float32 of images (N, 3, H, W) uint8, on the CPU, as the network gives them."""
        device = next(self.network.parameters()).device

        def soft(batch: Tensor) -> Tensor:
            logits: Tensor = self.network(batch)
            return (logits.float() / self.temperature).softmax(1)

        return in_batches(soft, self.spec, images, device)

    def label(self, distilled: DistilledSet) -> DistilledSet:
        """Return the set with these labels in the place of any others; the network now counts as seen."""
        distilled.refuse_packed("labelling")
        seen = {*distilled.manifest.seen_networks, name_of(self.network)}
        return replace(
            distilled,
            soft_labels=self(distilled.images),
            label_top_k=self.top_k,
            manifest=distilled.manifest.replaced(seen_networks=sorted(seen), labels=dict(self.facts)),
        )

    def __str__(self) -> str:
        if self.facts.get("expert") is None:
            return str(self.facts.get("network", dotted_name(type(self.network))))
        return f"expert {self.facts['expert']} at epoch {self.facts['epoch']}"

    @property
    def amount_per_label(self) -> Amount:
        """Numbers and bytes of a stored label; the numbers leave out the indices of classes."""
        return soft_labels.amount_of_one(self.spec.num_classes, self.top_k, self.precision)

    def check_same(self, facts: Mapping[str, Any], whose: str, *, but: Collection[str] = ()) -> None:
        """Raise unless `facts`, the facts of the labeller that made the labels `whose`, are the facts of this one.

        What older labels do not say is not compared.

        Raises:
            UserError: names the facts that differ; those in `but` may.
        """
        left_out = {"selection_accuracy", *but, *(_YOUNGER - facts.keys())}
        compared = [name for name in self.facts if name not in left_out]
        if changed := [name for name in compared if self.facts[name] != facts.get(name)]:
            shown = "; ".join(f"{n}: {facts.get(n)!r}, --labels: {self.facts[n]!r}" for n in changed)
            raise UserError(
                f"--labels: other labels than {whose} ({shown}); give the settings and experts of its run"
            )


class Labels(ABC):
    """A way to label images: softmax(logits / T) of a network. Subclasses are final.

    Args of every subclass:
        temperature: T.
        top_k: how many of the largest probabilities are stored; the rest of 1 is spread evenly. Null stores all.
        precision: of the stored probabilities: int8 (255ths), float16 or float32.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self, temperature: float = 1.0, top_k: int | None = None, precision: Precision = "float16"
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise UserError(f"labels.temperature ({temperature}) must be a number above 0")
        check_at_least(1, "labels", top_k=top_k)
        self.temperature = temperature
        self.top_k = top_k
        self.precision: Precision = precision

    @abstractmethod
    def choose(
        self,
        data: "EvaluationData",
        counts: Sequence[int],
        seed: int,
        device: torch.device,
        num_workers: NumWorkers = "auto",
    ) -> Labeller:
        """Return the labeller of a run; under DDP every rank calls this and gets the same.

        Args:
            data: real images, set up; its test split is not touched.
            counts: K numbers of images per class of the set to be labelled.
            seed: of everything random.
            device: where networks run.
            num_workers: worker processes on a CPU.

        Raises:
            UserError: what it needs is missing.
        """

    def experts(self) -> tuple[ExpertNeed, ...]:
        """Return the expert trajectories that `choose` reads; a run may record them (`experts.num_experts`)."""
        return ()

    @abstractmethod
    def check(self, data: "EvaluationData") -> None:
        """Raise now what `choose` would raise later; `data` is set up.

        Raises:
            UserError: what it needs is missing.
        """

    def choose_for(
        self,
        distilled: DistilledSet,
        data: "EvaluationData",
        protocol: Protocol,
        seed: int,
        num_workers: NumWorkers = "auto",
    ) -> Labeller:
        """Return the labeller of a set that has soft labels, or the one that is chosen for a set of its size.

        A protocol with a teacher takes any labeller, since it does not use the set's own labels.

        Raises:
            UserError: no experts fit, or others than those that labelled the set.
        """
        labeller = self.choose(data, distilled.counts, seed, pick_device(), num_workers)
        was = distilled.manifest.get("labels")
        if was is not None and distilled.soft_labels is not None and not protocol.has_teacher:
            labeller.check_same(was, "the set has")
        return labeller

    def label(
        self, distilled: DistilledSet, data: "EvaluationData", seed: int, num_workers: NumWorkers = "auto"
    ) -> tuple[DistilledSet, Labeller]:
        """Return the set with the labels of the labeller chosen for it, and that labeller; the ledger is charged.

        Raises:
            UserError: see `choose`.
        """
        device, ledger = pick_device(), Ledger()
        with ledger.charge(LABEL, device):
            labeller = self.choose(data, distilled.counts, seed, device, num_workers)
            labelled = labeller.label(distilled)
        return labelled.charged({**distilled.manifest.ledger.stages, **ledger.stages}), labeller

    def _check_classes(self, spec: DataSpec) -> None:
        if self.top_k is not None and self.top_k > spec.num_classes:
            raise UserError(
                f"labels.top_k ({self.top_k}) is more than the {spec.num_classes} classes; lower it"
            )

    def _labeller(
        self,
        network: nn.Module,
        spec: DataSpec,
        device: torch.device,
        *,
        source: str,
        recording: str | None = None,
        expert: int | None = None,
        epoch: int | None = None,
        tried: Mapping[int, float] | None = None,
        sight: Mapping[str, Any] | None = None,
    ) -> Labeller:
        """Return the labeller of a network, whose facts say what it is, its `sight` of images, how it was chosen."""
        form: dict[str, Any] = {name: getattr(self, name) for name in ("temperature", "top_k", "precision")}
        facts = {
            "recording": recording,
            "network": source,
            **(sight or {}),
            "expert": expert,
            "epoch": epoch,
            **form,
            "selection_accuracy": {str(name): score for name, score in (tried or {}).items()},
        }
        return Labeller(network.to(device).eval().requires_grad_(False), spec, **form, facts=facts)
