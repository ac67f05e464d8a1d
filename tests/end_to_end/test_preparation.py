"""Stopped while images are decoded: at once, with the usual exit code, and nothing that was finished is done again."""

import signal
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from processes import Started, latentdd
from small_runs import small_arguments

from ldd.disk.files import sha256
from ldd.runtime.devices import available_cores

SHARD = 32 * available_cores()


@pytest.fixture
def read(tmp_path):
    return tmp_path / "read"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes that the tiny prior knows, three shards of training images together."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 3 * SHARD // 2), ("val", 2)):
        for name in ("digit-0", "digit-1"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
                image.save(root / split / name / f"{number:04d}.png")
    return root


def started(arguments, read, slow):
    environment = {"OMP_NUM_THREADS": "1", "SLOW": str(slow), "READ": str(read)}
    return Started(latentdd, arguments, read.with_name("log"), environment=environment)


def caches(folder):
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_a_stopped_run_goes_on_with_what_is_decoded(number, tiny_prior_path, root, tmp_path, read):
    def arguments(name):
        slow = ("--data.source", "slow_source.SlowFolder", "--data.root", root)
        place = ("--data.cache_dir", tmp_path / name, "--trainer.default_root_dir", tmp_path / f"run-{name}")
        options = ("--trainer.max_steps", 1, "--preview.every_n_steps", 0, "--ckpt_path", "auto")
        return ["fit", *small_arguments(tiny_prior_path), *slow, *place, *options]

    first = started(arguments("cache"), read, 0.02)
    deadline = time.monotonic() + 120
    while not read.exists() or len(read.read_text().splitlines()) < SHARD + 10:
        assert time.monotonic() < deadline
        assert first.process.is_alive()
        time.sleep(0.01)
    first.send(number)
    told = time.monotonic()
    if number == signal.SIGKILL:
        first.process.join()
    else:
        assert first.result() == 128 + number
    assert time.monotonic() - told < 20  # far below what the rest would take on a busy machine
    assert any(path.name.endswith(".shards.tmp") for path in (tmp_path / "cache").iterdir())
    assert started(arguments("cache"), read, 0).result() == 0, read.with_name("log").read_text()
    again = Counter(read.read_text().split())
    assert sum(again.values()) - len(again) <= SHARD
    read.unlink()
    assert started(arguments("whole"), read, 0).result() == 0
    assert set(again) == set(read.read_text().split())
    assert caches(tmp_path / "cache") == caches(tmp_path / "whole")


def test_a_signal_stops_a_verb_without_a_trainer_too(root, tmp_path, read):
    pruner = ("--pruner", "ldd.data.RandomPruner", "--pruner.keep", 0.5)
    data = ("--data.source", "slow_source.SlowFolder", "--data.root", root, "--data.on_error", "skip")
    one = started(["prune", *data, *pruner, "--out", tmp_path / "scores.parquet"], read, 0.02)
    deadline = time.monotonic() + 120
    while not read.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    one.send(signal.SIGTERM)
    assert one.result() == 128 + signal.SIGTERM
    assert "interrupted" in read.with_name("log").read_text()
    assert not (tmp_path / "scores.parquet").exists()
