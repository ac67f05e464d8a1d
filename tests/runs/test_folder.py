"""A run's folder: one writer, what goes on from which checkpoint, links to scratch disks."""

import os
import signal
import time

import pytest
from processes import Started, latentdd, torchrun_variables
from small_runs import ROOT, small_arguments

from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.disk.files import sha256
from ldd.runs.folder import find_last, fit_or_resume
from ldd.runtime.logs import RANKS, log_file
from ldd.runtime.ranks import starts_first

ENDLESS = 100_000


@pytest.fixture
def small(tiny_prior_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["latentdd"])
    common = [
        *small_arguments(tiny_prior_path),
        "--preview.every_n_steps",
        0,
        "--trainer.enable_progress_bar",
        False,
    ]
    return ["fit", *map(str, common)]


def start(small, run, *more, name="log"):
    log = run.with_name(f"{run.name}-{name}")
    return Started(latentdd, [*small, "--trainer.default_root_dir", run, *more], log), log


def fit(small, run, steps, *more):
    return cli.main(
        [*small, "--trainer.default_root_dir", str(run), "--trainer.max_steps", str(steps), *more]
    )


def test_a_second_process_is_refused_until_the_first_is_gone(small, tmp_path, capsys):
    run = tmp_path / "run"
    first, log = start(small, run, "--trainer.max_steps", ENDLESS)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert first.process.is_alive(), log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for how in (["--ckpt_path", "auto"], ["--overwrite", "true"]):
        assert fit(small, run, 2, *how) == 2
        assert f"is being written by process {first.process.pid} on " in capsys.readouterr().err
    data = ["--data", "configs/data/digits.yaml", "--data.subset", '["digit-0", "digit-1", "digit-7"]']
    assert (
        cli.main(["evaluate", "tests/data/1369bc3/dm", *data, "--protocol", "quick", "--out", str(run)]) == 2
    )
    assert f"out ({run}) is being written by process {first.process.pid}" in capsys.readouterr().err
    first.send(signal.SIGKILL)
    first.process.join()
    assert fit(small, run, 1, "--overwrite", "true") == 0
    assert DistilledSet.load(run).manifest.step == 1
    assert not (run / ".lock").exists()


def test_of_two_started_at_once_one_runs(small, tmp_path):
    run = tmp_path / "run"
    both = [
        start(small, run, "--trainer.max_steps", 20, "--seed_everything", seed, name=seed) for seed in (1, 2)
    ]
    codes = [one.result() for one, _ in both]
    assert sorted(codes) == [0, 2]
    assert DistilledSet.load(run).manifest.seed == 1 + codes.index(0)
    assert "trainer.default_root_dir" in both[codes.index(2)][1].read_text()


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0", "RANK": ""}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"GROUP_RANK": "2", "RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "1"}, False),
        ({"OMPI_COMM_WORLD_RANK": "3"}, False),
    ],
)
def test_who_starts_first(monkeypatch, environment, first):
    for name in (
        "RANK",
        "LOCAL_RANK",
        "SLURM_PROCID",
        "NODE_RANK",
        "GROUP_RANK",
        "OMPI_COMM_WORLD_RANK",
        "PMI_RANK",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert starts_first() == first


def test_ranks_share_the_lock_of_the_first(small, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    devices = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.max_steps", 2]
    arguments = [*small, "--trainer.default_root_dir", run, *devices]
    ranks = [
        Started(latentdd, arguments, log.with_suffix(f".{rank}"), environment=variables)
        for rank, variables in enumerate(torchrun_variables(2))
    ]
    assert [one.result() for one in ranks] == [0, 0], log.with_suffix(".0").read_text()
    assert DistilledSet.load(run).manifest.step == 2
    for rank in range(2):
        said = log_file(run / RANKS, rank).read_text().splitlines()
        assert all(f" rank {rank} of 2 " in line for line in said if line[:2] == "20")
        assert said[-1].endswith("INFO: has ended")


def test_the_previous_checkpoint_alone_is_gone_on_with(small, tmp_path, monkeypatch):
    """What a file system without hard links leaves when a run is killed between the two renames of a save."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert fit(small, whole, 4) == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
        assert fit(small, run, 4) == 0
    (run / "checkpoints" / "last.ckpt").unlink()
    resumed = fit_or_resume(["--x"], 0, run)
    assert resumed[-2:] == ["--ckpt_path", "last"]
    assert find_last(run).name == "previous.ckpt"
    assert fit(small, run, 4, "--ckpt_path", "last") == 0
    for name in ("codes", "images"):
        files = [folder / "distilled" / f"{name}.safetensors" for folder in (whole, run)]
        assert sha256(files[0]) == sha256(files[1])


def test_folders_on_a_scratch_disk_stay_there(small, tmp_path):
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    run.mkdir()
    for name in ("checkpoints", "distilled"):
        (scratch / name).mkdir(parents=True)
        (run / name).symlink_to(scratch / name)
    assert fit(small, run, 2, "--overwrite", "true") == 0
    (scratch / "checkpoints" / "stale").touch()
    assert fit(small, run, 4, "--overwrite", "true", "--seed_everything", "1") == 0
    assert sorted(path.name for path in (scratch / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert DistilledSet.load(scratch / "distilled").manifest.seed == 1
