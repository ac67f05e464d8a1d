"""Runs of the command line that end before their time: signals, lost ranks, SLURM, and how they are gone on with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from processes import Started, latentdd, slurm_variables, torchrun_variables
from small_runs import ROOT, small_arguments

from ldd.runs.folder import find_last
from ldd.runtime.processes import no_orphans

ENDLESS = 100_000
PATIENCE = 10
"""Seconds within which the others end when a rank has died (stated in docs/survival.md), and a second more."""


@pytest.fixture(scope="module")
def small(tiny_prior_path):
    return ["fit", *small_arguments(tiny_prior_path), "--preview.every_n_steps", 0]


def start(small, folder, environment, *more):
    folder.mkdir(exist_ok=True)
    log = folder.with_name(f"{folder.name}-{environment.get('RANK', 0)}.log")
    arguments = [*small, "--trainer.default_root_dir", folder, *more]
    return Started(latentdd, arguments, log, environment={"OMP_NUM_THREADS": "1", **environment}), log


def start_two(small, folder, steps=ENDLESS):
    devices = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.max_steps", steps)
    return zip(
        *(start(small, folder, variables, *devices) for variables in torchrun_variables(2)), strict=True
    )


def wait_for(path, *alive):
    """Until a file is there; `alive` tell whether those who should write it are."""
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline
        assert all(asked() for asked in alive)
        time.sleep(0.05)


def step_of(folder):
    return torch.load(find_last(folder), weights_only=True)["global_step"]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(small, tmp_path):
    folder = tmp_path / "run"
    ranks, _ = start_two(small, folder)
    wait_for(folder / "checkpoints" / "last.ckpt", *(one.process.is_alive for one in ranks))
    ranks[1].send(signal.SIGTERM)
    assert [one.result() for one in ranks] == [128 + signal.SIGTERM] * 2
    stopped = step_of(folder)
    resumed, logs = start_two([*small, "--ckpt_path", "last"], folder, stopped + 2)
    assert [one.result() for one in resumed] == [0, 0], logs[0].read_text()
    assert step_of(folder) == stopped + 2


@pytest.mark.parametrize("dies", [0, 1])
def test_when_a_rank_dies_the_other_says_so_and_ends(small, tmp_path, dies):
    folder = tmp_path / "run"
    ranks, logs = start_two(small, folder)
    wait_for(folder / "checkpoints" / "last.ckpt", *(one.process.is_alive for one in ranks))
    ranks[dies].send(signal.SIGKILL)
    killed = time.monotonic()
    assert ranks[1 - dies].result() == 1
    assert time.monotonic() - killed < PATIENCE
    said = logs[1 - dies].read_text()
    assert f"rank {1 - dies} stops: another rank has ended" in said
    assert "Traceback" not in said
    assert step_of(folder) % 2 == 0


def test_lightnings_own_launcher_and_a_rank_of_it_that_dies(small, tmp_path):
    arguments = [
        "--trainer.devices",
        2,
        "--trainer.strategy",
        "ddp",
        "--trainer.default_root_dir",
        tmp_path / "run",
    ]
    command = [sys.executable, "-m", "ldd", *small, *arguments, "--trainer.max_steps", ENDLESS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    with log.open("w") as output:
        first = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        main = psutil.Process(first.pid)
        wait_for(tmp_path / "run" / "checkpoints" / "previous.ckpt", lambda: first.poll() is None)
        (second,) = (one for one in main.children() if one.environ().get("LOCAL_RANK") == "1")
        second.kill()
        killed = time.monotonic()
        first.wait(timeout=60)
        assert time.monotonic() - killed < PATIENCE
    finally:
        first.kill()
    said = log.read_text()
    assert first.returncode in (1, -signal.SIGKILL), said
    assert "another rank has ended" in said or "Forcefully terminating all other processes" in said
    assert step_of(tmp_path / "run") % 2 == 0


SCONTROL = """#!/bin/sh
echo "$@" >> {log}
exit {code}
"""


@pytest.mark.parametrize(
    ("variables", "asked", "code", "said"),
    [
        ({"SLURM_JOB_ID": "77"}, "requeue 77\n", 0, "queuing SLURM job 77 again"),
        (
            {"SLURM_JOB_ID": "78", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"},
            "requeue 77_3\n",
            1,
            "SLURM job 77_3 could not be queued again",
        ),
    ],
    ids=["job", "array"],
)
def test_slurm_is_asked_to_queue_the_job_again(small, tmp_path, variables, asked, code, said):
    log = tmp_path / "asked"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(SCONTROL.format(log=log, code=code))
    scontrol.chmod(0o755)
    folder = tmp_path / "run"
    environment = {**slurm_variables(1)[0], **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    one, output = start(small, folder, environment, "--trainer.max_steps", ENDLESS)
    wait_for(folder / "checkpoints" / "last.ckpt", one.process.is_alive)
    one.send(signal.SIGUSR1)
    assert one.result() == 128 + signal.SIGUSR1
    assert log.read_text() == asked
    assert said in output.read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_told_to_stop_while_it_is_loaded(small, tmp_path, rank):
    """Nothing is lost, so that the job has its place in the queue again, for which one of its ranks asks."""
    scontrol, log, out = tmp_path / "scontrol", tmp_path / "asked", tmp_path / "out"
    scontrol.write_text(SCONTROL.format(log=log, code=0))
    scontrol.chmod(0o755)
    variables = {
        **slurm_variables(2)[rank],
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    with out.open("w") as output:
        command = [sys.executable, "-m", "ldd", *map(str, small)]
        one = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | variables, stdout=output, stderr=output
        )
    while "libtorch" not in Path(f"/proc/{one.pid}/maps").read_text():
        assert one.poll() is None
        time.sleep(0.01)
    one.send_signal(signal.SIGUSR1)
    assert one.wait(timeout=60) == 128 + signal.SIGUSR1
    assert log.exists() == (rank == 0)
    if rank == 0:
        assert log.read_text() == "requeue 1234\n"
    assert "latentdd fit: interrupted" in out.read_text()


def test_stopped_before_the_first_checkpoint(small, tmp_path):
    """The same command that resumes starts such a run again, and `auto` starts one that never began."""
    folder = tmp_path / "run"
    steps = ("--trainer.max_steps", 2)
    first, log = start([*small, "--ckpt_path", "auto"], folder, {}, *steps)
    assert first.result() == 0, log.read_text()
    codes = (folder / "distilled" / "codes.safetensors").read_bytes()
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    again, log = start([*small, "--ckpt_path", "last"], folder, {}, *steps)
    assert again.result() == 0, log.read_text()
    assert "was stopped before its first checkpoint; it starts again" in log.read_text()
    assert (folder / "distilled" / "codes.safetensors").read_bytes() == codes


def drive(folder):
    """Starts a process in a session of its own, which has one too, and is killed."""
    with no_orphans():
        command = "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", command], start_new_session=True)
        while len(found := psutil.Process().children(recursive=True)) < 3:  # with the one that watches
            time.sleep(0.05)
        time.sleep(1)
        (folder / "pids").write_text(" ".join(str(one.pid) for one in found))
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_has_started_ends(tmp_path):
    Started(drive, tmp_path).result()
    started = time.monotonic()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    while left := [
        pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"
    ]:
        assert time.monotonic() - started < 20, left
        time.sleep(0.1)
