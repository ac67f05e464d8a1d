"""What has become of a step's time and memory since another commit of this project: both are run in turns.

    git worktree add ../before 1369bc3
    python -m benchmarks.versions --before ../before [--json] [--turns 2] [--kinds step,s5,...]

A process of one thread does all kinds of work with the package of one checkout, the next one with that of the other.
Seconds are those of the process (CPU time) by step of Lightning's trainer, after the first, or by student: the least
over steps and turns (of `dc` the mean over steps). Memory is the most that tensors hold at one time in a step. All on
the digits with one image a class; the kinds:

- `step`: a step of LD3M on the digits as `configs/ld3m_digits.yaml` has it (DM, 16 real images a class, S = 10).
- `s5`, `s10`, `s20`, `s40`: DM at these S with `checkpointing: always`, four real images a class and a narrow matching
  network, so that the chain is what counts.
- `dc`: DC whose network is trained between three steps (`outer_loop: 3`), S = 10.
- `d3`: D3 with its trained decoder: full unroll of ten steps, then MMD of eight draws.
- `student`: one student of each network of the protocol `quick`, 30 epochs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

KINDS = ("step", "s5", "s10", "s20", "s40", "dc", "d3", "student")
_STEPS = 3


def _find(name: str, *places: str) -> Any:  # noqa: ANN401 - of either version
    """What bears this name in the first place that has it: modules have moved."""
    for place in places:
        try:
            return getattr(import_module(place), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"{name}: not in {', '.join(places)}")


def _distiller(kind: str, data: Any, folder: str) -> Any:  # noqa: ANN401
    from ldd import objectives
    from ldd.codes import GaussianCodes, PointCodes
    from ldd.networks import ConvNet
    from ldd.priors import DeconvolutionPrior, LatentDiffusionPrior

    distiller = _find("Distiller", "ldd.distiller.module", "ldd.distiller")
    if kind == "d3":
        network = partial(ConvNet, width=32)
        record = _find("record_experts", "ldd.experts.recording", "ldd.experts")
        record(data, network, num_experts=1, epochs=1, out=folder, progress=False)
        rates = {"lr_latents": 0.1, "lr_spread": 0.1}
        common: dict[str, Any] = {"trajectories": folder, "network": network}
        trajectory = objectives.TrajectoryMatching(
            **common, **rates, expert_epochs=1, max_start_epoch=1, syn_steps=10, unroll="full"
        )
        discrepancy = objectives.MaximumMeanDiscrepancy(**common, **rates, samples=8)
        matched = objectives.Alternating([trajectory, discrepancy])
        return distiller(DeconvolutionPrior("small", 32), matched, data.spec, codes=GaussianCodes)
    of_steps = kind[1:].isdigit()
    prior = LatentDiffusionPrior("embedded:digits", num_steps=int(kind[1:]) if of_steps else 10)
    options: dict[str, Any] = {}
    matched = objectives.DistributionMatching(real_batch=16)
    if of_steps:
        options = {"checkpointing": "always", "chunk_size": 10}  # no plan is measured
        matched = objectives.DistributionMatching(real_batch=4, network=partial(ConvNet, width=8))
    if kind == "dc":
        matched = objectives.GradientMatching(real_batch=16, outer_loop=3)
    return distiller(prior, matched, data.spec, codes=PointCodes, **options)


def _student() -> dict[str, float]:
    import torch

    from ldd.data import DistillationData
    from ldd.evaluation import Protocol

    lesson_of, student_of = (
        _find(name, "ldd.students.training", "ldd.evaluation.students") for name in ("Lesson", "Student")
    )
    labelled = _find("Labelled", "ldd.images", "ldd.classes")
    data, protocol = DistillationData(), Protocol.load("quick")
    data.setup()
    images = torch.cat([data.train_images.of_class(label)[:1] for label in range(10)])
    test = labelled(data.test_images.images, data.test_images.labels)
    lesson = lesson_of(data.spec, protocol, protocol.factories(), seed=0)
    found = {}
    for name in protocol.factories():
        started = time.process_time()
        lesson.run(student_of("distilled", name, 0, 30), labelled(images, torch.arange(10)), test)
        found[f"{name}_seconds"] = time.process_time() - started
    return found


def work(kind: str) -> dict[str, float]:
    """Figures of one kind, by the package that is imported here."""
    import lightning as L
    import torch

    from ldd.data import DistillationData

    torch.set_num_threads(1)
    if kind == "student":
        return _student()
    data = DistillationData()
    data.setup()
    times: list[float] = []

    class Clock(L.Callback):
        def on_train_batch_start(self, *_: object) -> None:
            self.started = time.process_time()

        def on_train_batch_end(self, *_: object) -> None:
            times.append(time.process_time() - self.started)

    def fit(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            L.Trainer(
                max_steps=steps, max_epochs=-1, limit_val_batches=0, accelerator="cpu", devices=1, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                default_root_dir=folder, callbacks=[Clock()],
            ).fit(_distiller(kind, data, f"{folder}/experts"), data)  # fmt: skip

    fit(1 + _STEPS)
    seconds = statistics.fmean(times[1:]) if kind == "dc" else min(times[1:])  # its steps differ
    peak = _find("peak_bytes", "ldd.distiller.memory", "ldd.memory")(partial(fit, 1))
    return {"seconds": seconds, "peak_mib": peak / 2**20}


def run(kinds: str, checkout: Path) -> dict[str, float]:
    """The same of several kinds by a checkout, in a process of its own."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), kinds]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the figures of both, and their ratios."""
    from benchmarks.figures import parser_of, show  # the other checkout may not have it

    parser = parser_of(__doc__)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the other commit")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before.resolve(), "after": Path(__file__).resolve().parent.parent}
    figures: dict[str, float] = {}
    for _ in range(arguments.turns):
        for name, checkout in checkouts.items():
            for figure, value in run(arguments.kinds, checkout).items():
                key = f"{figure}_{name}"
                figures[key] = min(value, figures.get(key, value))
    for bare in [key.removesuffix("_before") for key in figures if key.endswith("_before")]:
        figures[f"{bare}_ratio"] = figures[f"{bare}_after"] / figures[f"{bare}_before"]
    show(figures, arguments.json)


if __name__ == "__main__":
    if len(sys.argv) == 2 and set(sys.argv[1].split(",")) <= set(KINDS):
        made = {
            f"{kind}_{key}": value for kind in sys.argv[1].split(",") for key, value in work(kind).items()
        }
        print(json.dumps(made))
    else:
        main()
