"""Expert trajectories recorded by the run that needs them."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L

from ldd.augmentation.siamese import OPERATIONS, SiameseAugmentation
from ldd.data import DistillationData
from ldd.data.real import RealImages
from ldd.disk.stores import as_named
from ldd.distiller.module import Distiller
from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.experts.recording import record_experts
from ldd.experts.trajectories import (
    ExpertNeed,
    ExpertSetting,
    MissingExperts,
    Trajectories,
    blank_network,
    find_experts,
)
from ldd.images import DataSpec


class RecordExperts(L.Callback):
    """Records, before the first step, the experts that the objective and the labels read and that are missing.

    They are trained on the run's core-set, with the network and in the folder that the objective or the labels name,
    so that recipe and experts cannot differ: experts that are there but were trained in another way are refused. An
    interrupted recording continues where it stopped; one process records while the others wait, as long as the process
    group lets them (30 minutes, or what the strategy's `timeout` says). Experts that take longer, or are shared by many
    runs, are better recorded once, by `latentdd experts`, and read as they are with `num_experts: 0`.

    Args:
        num_experts: how many; 0 records none, and takes those that are there, however they were trained. An objective's
            own `num_experts` may ask for fewer, not more.
        epochs: passes over the core-set; None takes as many as are read.
        batch_size: images per step.
        learning_rate: of SGD, constant.
        momentum: of SGD.
        weight_decay: of SGD.
        augmentation: siamese augmentation strategies, one per batch; empty for none.
        seed: of initial weights, shuffling and augmentation; not the run's, so that runs of all seeds share experts.

    Raises:
        UserError: a number out of range; when the run starts, fewer experts or epochs than the objective asks for,
            others than these settings give in its folder, or what `record_experts` refuses.
    """

    def __init__(
        self,
        num_experts: int = 0,
        epochs: int | None = None,
        batch_size: int = 256,
        learning_rate: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        augmentation: Sequence[str] = tuple(OPERATIONS),
        seed: int = 0,
    ) -> None:
        check_at_least(0, "experts", num_experts=num_experts)
        check_at_least(1, "experts", epochs=epochs, batch_size=batch_size)
        check_not_negative(
            "experts", learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay
        )
        self.num_experts = num_experts
        self.epochs = epochs
        self._training: dict[str, Any] = {
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "augmentation": SiameseAugmentation(augmentation).strategies,
            "seed": seed,
        }

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record what is missing, unless no step is taken."""
        if not self.num_experts:
            return
        assert isinstance(pl_module, Distiller)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DistillationData)
        needs = pl_module.needs(steps=trainer.max_steps != 0)
        if not needs and trainer.max_steps != 0:
            raise UserError(
                f"experts.num_experts ({self.num_experts}): {type(pl_module.objective).__name__} reads no experts; set "
                "it to 0, or give the objective a folder (trajectories)"
            )
        if trainer.is_global_zero:
            shown = trainer.progress_bar_callback is not None
            self.record(needs, data, str(pl_module.device), progress=shown)
        trainer.strategy.barrier()

    def check(self, needs: Sequence[ExpertNeed], epochs: int = 1) -> int:
        """Return how many epochs are recorded for `needs`: `epochs` at least where the settings name none.

        Raises:
            UserError: fewer experts or epochs than one of them reads.
        """
        # Readers of the same experts need the longer of their epochs.
        most = max([epochs, *(need.epochs for need in needs)])
        recorded = most if self.epochs is None else self.epochs
        for need in needs:
            for name, given, asked in (
                ("num_experts", self.num_experts, need.num_experts or 1),
                ("epochs", recorded, need.epochs),
            ):
                if given < asked:
                    raise UserError(
                        f"experts.{name} ({given}) is less than the {asked} that the objective or the labels read; "
                        "raise it"
                    )
        return recorded

    def record(
        self,
        needs: Sequence[ExpertNeed],
        data: DistillationData,
        device: str = "auto",
        *,
        epochs: int = 1,
        all_experts: bool = True,
        progress: bool = True,
    ) -> None:
        """Record what is missing of `needs`.

        Args:
            needs: what the objective and the labels read.
            data: set up; the experts learn its core-set.
            device: where they train.
            epochs: least number of epochs where these settings name none.
            all_experts: record `num_experts` of them; False records only as many as a need names.
            progress: show a bar with the loss and the time left.

        Raises:
            UserError: see the class; several recordings that fit, or a damaged one.
        """
        recorded = self.check(needs, epochs)
        self.find(needs, data.spec, data.core_set)  # refuses what no recording mends
        for need in needs:
            found = self._found(need, data.spec, data.core_set)
            wanted = need.num_experts or self.num_experts
            if found is not None and all(found.path(expert).exists() for expert in range(wanted)):
                continue
            url = as_named(need.trajectories)
            if url != need.trajectories:  # a copy, which is read and never sent
                raise UserError(
                    f"experts.num_experts ({wanted}): {need.section}.trajectories ({url}) has not all of them, and a "
                    f"run only reads there; record them first, by latentdd experts --out {url}"
                )
            record_experts(
                data,
                need.network,
                num_experts=self.num_experts if all_experts else wanted,
                epochs=recorded if found is None else found.training.epochs,
                device=device,
                out=need.trajectories if found is None else _parent(found, need, wanted),
                progress=progress,
                wait=True,  # runs of a sweep share their experts
                **self._training,
            )

    def find(
        self, needs: Sequence[ExpertNeed], spec: DataSpec, core_set: RealImages
    ) -> list[Trajectories | None]:
        """Return the recording that each reader finds, of which experts may still be missing; None if there is none.

        Raises:
            UserError: it is not what these settings would record; several recordings that fit, or a damaged one; it is
                too short for another reader, for which a second would have to be recorded beside it.
        """
        found = [self._found(need, spec, core_set) for need in needs]
        for need in (need for need, there in zip(needs, found, strict=True) if there is None):
            setting = ExpertSetting.of(spec, core_set, blank_network(need.network, spec))
            for other, short in zip(needs, found, strict=True):
                if short is None or _root(other) != _root(need) or short.setting.differences(setting):
                    continue
                raise UserError(
                    f"{need.section}.trajectories ({short.folder}) has {short.training.epochs} epochs, which another "
                    f"reader in this run takes, but {need.reason} epoch {need.epochs}; name another folder, or delete "
                    f"{short.folder.name}, for {need.epochs} epochs that both take"
                )
        return found

    def _found(self, need: ExpertNeed, spec: DataSpec, core_set: RealImages) -> Trajectories | None:
        """Return the recording that `need` reads, see `find`."""
        try:
            # However few are whole: what is there must be of this training before more are trained beside it.
            there = find_experts(replace(need, num_experts=0), spec, core_set)
        except MissingExperts:
            return None
        found = Trajectories.open(there.folder)
        told = self._training if self.epochs is None else {"epochs": self.epochs, **self._training}
        recorded = asdict(found.training)
        for name, given in told.items():
            if recorded[name] != given:
                raise UserError(
                    f"experts.{name} ({given}): the experts in {found.folder}, which this run would read, were "
                    f"recorded with {recorded[name]}; set it to that, set experts.num_experts to 0 to take them as "
                    f"they are, or name another folder ({need.section}.trajectories)"
                )
        if need.num_experts is None and found.num_experts > self.num_experts:
            raise UserError(
                f"experts.num_experts ({self.num_experts}): {found.folder}, of which this run would read all, holds "
                f"{found.num_experts}; set it to that, or {need.section}.num_experts to {self.num_experts}"
            )
        return found


def _root(need: ExpertNeed) -> Path:
    return Path(need.trajectories).expanduser()


def _parent(found: Trajectories, need: ExpertNeed, wanted: int) -> str:
    """Return the folder in which more experts of a recording are recorded into it, and not beside it."""
    parent = found.folder.parent
    if Trajectories.under(parent, found.setting, found.training, wanted).folder != found.folder:
        raise UserError(
            f"{need.section}.trajectories ({found.folder}) has not all of the {wanted} experts that are read, and none "
            "are added to a recording under another name than it was made with; give it back its name, or set "
            "experts.num_experts to 0 and read fewer"
        )
    return str(parent)
