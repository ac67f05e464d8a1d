"""Many ranks on one machine: do they end in the codes of one, and what do they say to each other in a step?

    python -m benchmarks.many_ranks [--json] [--ranks 2,8,64] [--steps 3] [--objectives dm,dc]

As many processes of one thread each, started as torchrun starts them, with DDP over gloo through Lightning: 128 classes
of noise at 32 px, a prior with random weights, float64, so that what differs is not rounding. For each number of ranks:
the largest distance of its codes from those of one rank, as a share of how far these have moved; the messages of a
step (calls of torch.distributed on rank 0) and their bytes, which do not depend on the number of ranks; and the memory
of all processes together. Seconds are not told: the processes share the cores.
"""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from processes import CONTEXT, free_port

from benchmarks.figures import parser_of, show
from benchmarks.worlds import noise_data, random_prior
from ldd.disk.files import read_json, read_tensors, write_json, write_tensors
from ldd.distiller.module import Distiller
from ldd.networks import ConvNet
from ldd.objectives import DistributionMatching, GradientMatching
from ldd.priors import LatentDiffusionPrior

CLASSES, SIZE = 128, 32
SAID = (
    "all_reduce",
    "broadcast",
    "all_gather",
    "all_gather_object",
    "broadcast_object_list",
    "barrier",
    "reduce",
)
OBJECTIVES = {"dm": DistributionMatching, "dc": GradientMatching}


class Messages(L.Callback):
    """Counts what rank 0 says in each step."""

    def __init__(self) -> None:
        self.of_steps: list[Counter[str]] = []
        for name in SAID:
            setattr(dist, name, partial(self._count, getattr(dist, name)))

    def _count(self, function: Callable[..., object], *arguments: object, **options: object) -> object:
        if self.of_steps:
            self.of_steps[-1]["messages"] += 1
            self.of_steps[-1]["bytes"] += sum(a.nbytes for a in arguments if isinstance(a, Tensor))
        return function(*arguments, **options)

    def on_train_batch_start(self, *_: object) -> None:
        self.of_steps.append(Counter())


def train(rank: int, ranks: int, port: int, kind: str, steps: int, prior: str, out: str) -> None:
    """One rank's process."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "RANK": rank,
                 "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "TORCHELASTIC_RUN_ID": "benchmark"}  # fmt: skip
    os.environ.update({name: str(value) for name, value in variables.items()} if ranks > 1 else {})
    torch.set_num_threads(1)
    data, messages = noise_data(CLASSES, 2, SIZE), Messages()
    network = partial(ConvNet, width=4, depth=2)
    objective = OBJECTIVES[kind](real_batch=2, network=network, lr_latents=1e-3, lr_conditioning=1e-3)
    model = Distiller(LatentDiffusionPrior(prior, num_steps=1), objective, data.spec)
    start = {name: value.detach().clone() for name, value in model.codes.named_parameters()}
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto",
        precision="64-true", use_distributed_sampler=False, default_root_dir=f"{out}-run", limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[messages],
    )  # fmt: skip
    trainer.fit(model, data)
    anonymous = psutil.Process().memory_full_info().uss
    if rank == 0:
        codes = {name: value.detach().double() for name, value in model.codes.named_parameters()}
        before = {f"start.{name}": value.double() for name, value in start.items()}
        write_tensors(f"{out}.safetensors", {**codes, **before})
        write_json(f"{out}.json", {"of_steps": messages.of_steps, "mib": ranks * anonymous / 2**20})


def ran(
    ranks: int, kind: str, steps: int, prior: str, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Codes and figures of a run in as many processes."""
    out, port = str(folder / f"{kind}-{ranks}"), free_port()
    arguments = [(rank, ranks, port, kind, steps, prior, out) for rank in range(ranks)]
    processes = [CONTEXT.Process(target=train, args=one) for one in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{kind}, {ranks} ranks: exit codes {[process.exitcode for process in processes]}")
    return read_tensors(f"{out}.safetensors"), read_json(f"{out}.json")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--ranks", default="2,8,64")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--objectives", default="dm,dc")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classes = list(noise_data(CLASSES, 2, SIZE).spec.classes)
        prior = random_prior(folder / "prior", "tiny", classes, SIZE)
        for kind in options.objectives.split(","):
            one, _ = ran(1, kind, options.steps, prior, folder)
            moved = {
                key: (one[key] - one[f"start.{key}"]).norm() for key in one if not key.startswith("start.")
            }
            for ranks in map(int, options.ranks.split(",")):
                many, told = ran(ranks, kind, options.steps, prior, folder)
                off = max(float((many[key] - one[key]).norm() / moved[key]) for key in moved)
                figures[f"{kind}, {ranks} ranks: distance of the codes"] = off
                figures[f"{kind}, {ranks} ranks: messages of a step"] = told["of_steps"][-1].get(
                    "messages", 0
                )
                figures[f"{kind}, {ranks} ranks: kB of a step"] = told["of_steps"][-1].get("bytes", 0) / 1e3
                figures[f"{kind}, {ranks} ranks: MiB of all processes"] = told["mib"]
    show(figures, options.json)


if __name__ == "__main__":
    main()
