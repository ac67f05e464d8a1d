"""The plan of a run: a few of its steps and a few epochs of its evaluation are measured, and the rest is worked out."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from ldd.callbacks import CrossArchitecture, LastCheckpoints, Preview
from ldd.data import DistillationData
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.planning.evaluation import EvaluationCost, measure_evaluation
from ldd.planning.probes import StepClock, cache_bytes, expert_bytes, run_bytes, since_start
from ldd.planning.ranks import Network, OnRanks, check_ranks, on_ranks
from ldd.runs.command_line import DistillationCLI
from ldd.runtime.devices import peak_memory_mib

_MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """What a run will take on this machine.

    Attributes:
        device: where it was measured.
        steps: training steps of the run.
        chunk: images per decoding pass.
        checkpointing: whether activations are computed again in backward.
        seconds_per_step: of a training step.
        setup_seconds: from the start of the process to the first step.
        distillation_seconds: of all steps, with checkpoints and pictures.
        evaluation_seconds: of all evaluations.
        total_seconds: of the run.
        peak_memory_mib: while distilling: of the process on a CPU, of the device otherwise.
        evaluation_peak_memory_mib: of all evaluation workers together (CPU), or of the device.
        disk_mib: of the run's folder by part, and their sum.
        cache_mib: decoded images in data.cache_dir.
        experts_mib: recorded expert trajectories that the run reads.
        on_ranks: the same run on several ranks, worked out; None for one.
    """

    device: str
    steps: int
    chunk: int
    checkpointing: bool
    seconds_per_step: float
    setup_seconds: float
    distillation_seconds: float
    evaluation_seconds: float
    total_seconds: float
    peak_memory_mib: float
    evaluation_peak_memory_mib: float
    disk_mib: dict[str, float] = field(default_factory=dict)
    cache_mib: float = 0.0
    experts_mib: float = 0.0
    on_ranks: OnRanks | None = None


class PlanCLI(DistillationCLI):
    """The run that a configuration describes, cut to a few steps in another folder.

    Args:
        folder: for the short run.
        arguments: of `latentdd plan`.
    """

    program = "latentdd plan"

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.folder = folder
        self.clock = StepClock()
        super().__init__(Distiller, "runs/default", arguments)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--json`, `--probe_steps`, `--ranks` and what joins these."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--json", type=bool, default=False, help="Print one JSON object instead of a table."
        )
        parser.add_argument("--probe_steps", type=int, default=4, help="Training steps that are measured.")
        parser.add_argument(
            "--ranks", type=int, default=1, help="Ranks for which the figures are worked out, too."
        )
        parser.add_class_arguments(Network, "network")

    def before_instantiate_classes(self) -> None:
        """Remember the run that was asked for, and cut it to a few steps without evaluation."""
        options, trainer = self.options, self.options.trainer
        self.max_steps = int(trainer.max_steps)
        evaluated = trainer.limit_val_batches != 0
        self.evaluations = _evaluations(trainer.val_check_interval, self.max_steps) if evaluated else 0
        if options.probe_steps < 2:
            raise UserError(
                f"probe_steps ({options.probe_steps}) must be at least 2: the first step is a warm-up"
            )
        if self.max_steps < 1:
            raise UserError(f"trainer.max_steps ({self.max_steps}) must be at least 1 to be planned")
        if trainer.devices not in ("auto", 1, "1"):
            raise UserError(
                f"trainer.devices ({trainer.devices}): plan measures one rank; set --trainer.devices 1, and --ranks "
                "to the number of ranks for which it is to be worked out"
            )
        trainer.devices = 1
        trainer.max_steps = min(self.max_steps, options.probe_steps)
        trainer.limit_val_batches = 0
        trainer.default_root_dir = str(self.folder)
        trainer.enable_progress_bar = False
        trainer.enable_model_summary = False
        if trainer.logger not in (None, True):
            trainer.logger = False  # another logger's files are not known, and nothing is sent to its server

    def instantiate_trainer(self, **kwargs: Any) -> Any:  # noqa: ANN401 - LightningCLI's signature
        """Put the clock before all other callbacks, so that their work is not in a step's time."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.insert(0, self.clock)  # type: ignore[attr-defined]
        return trainer

    def probe(self) -> None:
        """Run the few steps that are measured."""
        self._call(self.trainer.fit, model=self.model, datamodule=self.datamodule)


def _evaluations(interval: int | float | None, steps: int) -> int:
    """Count the validations of a run of one epoch."""
    if interval is None:
        return 1
    return max(1, steps // interval if isinstance(interval, int) else int(1 / interval))


def plan_run(cli: PlanCLI) -> Plan:
    """Run the few steps and a few epochs of each evaluation network, and work out the rest."""
    clock, trainer, model, data = cli.clock, cli.trainer, cli.model, cli.datamodule
    assert isinstance(model, Distiller)
    assert isinstance(data, DistillationData)
    network = Network(**vars(cli.options.network))
    check_ranks(cli.options.ranks, data.spec.num_classes)
    before = since_start() - time.perf_counter()
    cli.probe()
    closing = time.perf_counter() - clock.ended
    device = trainer.strategy.root_device
    peak = peak_memory_mib(device)
    assert model.planner.plans
    evaluation, initial = EvaluationCost(), False
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    evaluator = next((c for c in callbacks if isinstance(c, CrossArchitecture)), None)
    if cli.evaluations and evaluator is not None:
        evaluation, initial = measure_evaluation(evaluator, model, data, device), evaluator.initial
    pictures = _events([c.every_n_steps for c in callbacks if isinstance(c, Preview)], cli.max_steps)
    checkpoints = _events(
        [c.every_n_steps for c in callbacks if isinstance(c, LastCheckpoints)], cli.max_steps
    )
    # The end of the short run writes one picture, one checkpoint and the artefact.
    distillation = cli.max_steps * (clock.seconds_per_step + clock.gap) + max(pictures, checkpoints) * closing
    parts = run_bytes(
        cli.folder,
        cli.max_steps,
        len(clock.steps),
        checkpoints=checkpoints,
        previews=pictures + 1 if pictures else 0,
        initial=initial,
        rows=evaluation.students * cli.evaluations,
    )
    setup, evaluations = clock.started + before, evaluation.seconds * cli.evaluations
    many = on_ranks(
        cli.options.ranks,
        network,
        classes=data.spec.num_classes,
        gradient_bytes=sum(each.nbytes for each in model.parameters() if each.requires_grad),
        steps=cli.max_steps,
        seconds_per_step=clock.seconds_per_step,
        other_seconds=setup + distillation + evaluations - cli.max_steps * clock.seconds_per_step,
    )
    return Plan(
        device=str(device),
        steps=cli.max_steps,
        chunk=min(found.chunk for found in model.planner.plans.values()),
        checkpointing=any(found.checkpointed for found in model.planner.plans.values()),
        seconds_per_step=clock.seconds_per_step,
        setup_seconds=setup,
        distillation_seconds=distillation,
        evaluation_seconds=evaluations,
        total_seconds=setup + distillation + evaluations,
        peak_memory_mib=peak,
        evaluation_peak_memory_mib=evaluation.peak_memory_mib,
        disk_mib={name: count / _MIB for name, count in {**parts, "total": sum(parts.values())}.items()},
        cache_mib=cache_bytes(data) / _MIB,
        experts_mib=expert_bytes(model.objective) / _MIB,
        on_ranks=many if many.ranks > 1 else None,
    )


def _events(intervals: Sequence[int], steps: int) -> int:
    """Count how often callbacks with these intervals act in `steps` steps, the last step included."""
    return sum(math.ceil(steps / interval) for interval in intervals if interval)
