"""A run whose folder is in an object store (S3, as moto serves it on this machine): what do kills and outages cost?

    python -m benchmarks.stores [--json] [--kills 6] [--outages 2] [--steps 30] [--every 5] [--seed 0]

`latentdd fit` of `--steps` steps with a checkpoint every `--every`, sent every second, is killed (SIGKILL) at a moment
drawn uniformly over the undisturbed run, and the same command is given on another machine: in a process with a cache
of its own, which knows nothing but the store. Outages: the store stops answering at such a moment, for two seconds or,
every other time, until the run has ended, after which the same command is given where it ran. Compared are images and
codes with the undisturbed run, byte for byte; counted are the steps that were done twice.
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import fsspec
import moto.server
import stores
from processes import Started, free_port, latentdd

from benchmarks.figures import parser_of, show
from ldd.disk.files import sha256

SET = [f"distilled/{name}.safetensors" for name in ("images", "codes")]
RECIPE = (
    *("fit", "--config", "configs/quickstart.yaml", "--model.prior", "configs/prior/pixel.yaml"),
    *("--model.objective.lr_latents", "2", "--model.objective.real_batch", "2"),
    *("--model.objective.network.width", "4", "--data.subset", '["digit-0", "digit-1"]'),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"),
    *("--trainer.callbacks+=stores.SlowSteps", "--ckpt_path", "auto"),
)  # fmt: skip


class Store:
    """S3 with one bucket, which can be stopped and started again with what it holds."""

    def __init__(self) -> None:
        self._port = free_port()
        self.start()
        self.variables = stores.s3_variables(f"http://127.0.0.1:{self._port}")
        os.environ.update(self.variables)
        fsspec.filesystem("s3").mkdir("runs")

    def start(self) -> None:
        self._server = moto.server.ThreadedMotoServer(port=self._port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


class Trial:
    """One run in the store."""

    def __init__(self, name: str, world: Path, options: list[str], store: Store) -> None:
        self.url, self._world, self._options, self._store = f"runs/{name}", world / name, options, store
        self._world.mkdir()
        self.steps = self._world / "steps"
        self._starts = 0

    def start(self, machine: str) -> Started:
        self._starts += 1
        variables = {**self._store.variables, "LATENTDD_STORE_SECONDS": "1", stores.STEPS: str(self.steps)}
        variables["XDG_CACHE_HOME"] = str(self._world / machine)
        words = [*RECIPE, *self._options, "--trainer.default_root_dir", f"s3://{self.url}"]
        return Started(latentdd, words, self._world / f"{self._starts}.log", environment=variables)

    def content(self) -> dict[str, str]:
        system, back = fsspec.filesystem("s3"), self._world / "back"
        system.invalidate_cache()
        system.get(self.url, str(back), recursive=True)
        return {name: sha256(back / name) for name in SET}

    def done(self) -> list[int]:
        return [int(line) for line in self.steps.read_text().split()] if self.steps.is_file() else []


def killed(trial: Trial, seconds: float, store: Store) -> None:
    run = trial.start("first")
    run.process.join(seconds)
    run.process.kill()
    run.process.join()
    if code := trial.start("second").result(600):
        raise RuntimeError(f"{trial.url}: exit code {code} on the second machine")


def brief_outage(trial: Trial, seconds: float, store: Store) -> None:
    run = trial.start("first")
    run.process.join(seconds)
    store.stop()
    time.sleep(2)
    store.start()
    if code := run.result(600):
        raise RuntimeError(f"{trial.url}: exit code {code} after an outage of two seconds")


def long_outage(trial: Trial, seconds: float, store: Store) -> None:
    run = trial.start("first")
    run.process.join(seconds)
    store.stop()
    code = run.result(600)
    store.start()
    if code not in (0, 2) or (code == 2 and trial.start("first").result(600)):
        raise RuntimeError(f"{trial.url}: exit code {code} after an outage to the end")


def main() -> None:
    parser = parser_of(__doc__)
    for name, default in (("kills", 6), ("outages", 2), ("steps", 30), ("every", 5), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    os.chdir(Path(__file__).parents[1])
    draws, same, repeated = random.Random(arguments.seed), 0, list[int]()
    options = [f"--trainer.max_steps={arguments.steps}", f"--checkpoint.every_n_steps={arguments.every}"]
    outages: tuple[Callable[..., None], ...] = (brief_outage, long_outage)
    acts = [killed] * arguments.kills + [outages[number % 2] for number in range(arguments.outages)]
    with tempfile.TemporaryDirectory() as base:
        world, store = Path(base), Store()
        undisturbed, began = Trial("undisturbed", world, options, store), time.monotonic()
        if undisturbed.start("first").result(600):
            raise RuntimeError("the undisturbed run has failed")
        whole, expected = time.monotonic() - began, undisturbed.content()
        for number, act in enumerate(acts):
            trial, share = Trial(f"{number}", world, options, store), draws.random()
            act(trial, share * whole, store)
            equal, twice = trial.content() == expected, len(trial.done()) - len(set(trial.done()))
            same += equal
            repeated.append(twice)
            print(f"{number:>2} {act.__name__:<13} at {100 * share:3.0f} %  {'same' if equal else 'OTHER'} set, "
                  f"{twice} steps done twice", flush=True)  # fmt: skip
        store.stop()
    figures = {"trials": len(acts), "the same set": same, "steps done twice, most": max(repeated)}
    show({**figures, "steps between checkpoints": arguments.every}, arguments.json)


if __name__ == "__main__":
    main()
