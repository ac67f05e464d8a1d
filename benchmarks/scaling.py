"""Steps of two ranks against steps of one, one thread each, on the same work.

    python -m benchmarks.scaling [--json] [--ranks 2] [--steps 12] [--real-batch 32]

Distribution and gradient matching on the digits with the embedded prior, through Lightning's DDP over gloo. The
classes are dealt over the ranks. A step's time is the median over the steps after the first two; the two settings
alternate, and the better of each one's repetitions counts, since what else the machine does only ever adds. Needs as
many idle cores as ranks.
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping

import lightning as L
import torch
from torch import multiprocessing

from benchmarks.figures import parser_of, show
from ldd.data import DistillationData
from ldd.distiller.module import Distiller
from ldd.objectives import DistributionMatching, GradientMatching, Objective
from ldd.priors import LatentDiffusionPrior

WARM_UP = 2


class Clock(L.Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.moments.append(time.perf_counter())


def objective_of(kind: str, real_batch: int) -> Objective:
    """By the name that figures carry."""
    return {"dm": DistributionMatching, "dc": GradientMatching}[kind](real_batch=real_batch)


def train(rank: int, ranks: int, port: int, kind: str, arguments: argparse.Namespace, result: str) -> None:
    """One rank's process; rank 0 writes its seconds per step."""
    variables: Mapping[str, object] = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": ranks,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": ranks,
        "TORCHELASTIC_RUN_ID": "benchmark",
        "OMP_NUM_THREADS": 1,
    }
    os.environ.update({name: str(value) for name, value in variables.items()} if ranks > 1 else {})
    torch.set_num_threads(1)
    clock = Clock()
    data = DistillationData()
    model = Distiller(
        LatentDiffusionPrior("embedded:digits"),
        objective_of(kind, arguments.real_batch),
        data.spec,
        images_per_class=arguments.images_per_class,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=arguments.steps + WARM_UP,
            accelerator="cpu",
            devices=ranks,
            strategy="ddp" if ranks > 1 else "auto",
            use_distributed_sampler=False,
            default_root_dir=folder,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        trainer.fit(model, data)
    if rank == 0:
        ends = clock.moments[WARM_UP - 1 :]
        seconds = statistics.median(b - a for a, b in itertools.pairwise(ends))
        with open(result, "w") as file:
            json.dump(seconds, file)


def seconds_per_step(ranks: int, kind: str, arguments: argparse.Namespace) -> float:
    """Of a run in processes of its own."""
    with tempfile.NamedTemporaryFile("r") as result:
        multiprocessing.spawn(train, (ranks, _free_port(), kind, arguments, result.name), nprocs=ranks)
        return float(json.load(result))


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--objectives", nargs="+", choices=("dm", "dc"), default=("dm", "dc"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--real-batch", type=int, default=32)
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=2)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    for kind in arguments.objectives:
        times: dict[int, list[float]] = {1: [], arguments.ranks: []}
        for _ in range(arguments.repetitions):
            for ranks, measured in times.items():
                measured.append(seconds_per_step(ranks, kind, arguments))
        best = {ranks: min(measured) for ranks, measured in times.items()}
        for ranks, seconds in best.items():
            figures[f"{kind}_step_seconds_{ranks}_ranks"] = seconds
        figures[f"{kind}_speedup_{arguments.ranks}_ranks"] = best[1] / best[arguments.ranks]
    figures[f"speedup_{arguments.ranks}_ranks"] = min(
        figures[f"{kind}_speedup_{arguments.ranks}_ranks"] for kind in arguments.objectives
    )
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
