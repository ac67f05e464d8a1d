"""The image is built and run as clusters run it: not as root, with a root that cannot be written, without a network.

Only where it is asked for, since it takes minutes, gigabytes and root (docs/clusters.md):
    sudo LDD_BUILD_IMAGE=1 pytest -n 0 tests/end_to_end/test_image.py
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from small_runs import ROOT

from ldd.disk.files import sha256

PROGRAMS = ("buildah", "debootstrap", "podman", "runc")
USER = 10001
NAME = "localhost/latentdd-test"
STEPS = 6


def missing():
    """Why no image can be built here; None if one can."""
    if not os.environ.get("LDD_BUILD_IMAGE"):
        return "an image is built only with LDD_BUILD_IMAGE=1: it takes minutes, 20 GB of disk and root"
    if os.geteuid() != 0:
        return "debootstrap and the builder need root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


reason = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(reason is not None, reason=reason or "")]


@pytest.fixture(scope="module")
def image():
    subprocess.run([ROOT / "docker" / "build_local.sh", NAME], check=True)
    return NAME


@pytest.fixture
def runs(tmp_path):
    """A folder on the host that the image's user may write, for what a container mounts at /app/runs."""
    folder = tmp_path / "runs"
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def container(runs, name, *options):
    """The command that starts a container as `cluster/kubernetes.yaml` starts a pod."""
    return [
        *("podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs", "run", "--rm", "--name", name),
        *(
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=4096:4096",
        ),  # no more than a builder without a right
        *("--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all"),
        *("--security-opt", "no-new-privileges", "--user", f"{USER}:{USER}", "--env", "OMP_NUM_THREADS=1"),
        *("--volume", f"{runs}:/app/runs", *options, NAME),
    ]


def fit(folder):
    return [
        *("fit", "--config", "configs/quickstart.yaml", "--trainer.max_steps", str(STEPS)),
        *("--checkpoint.every_n_steps", "1", "--trainer.limit_val_batches", "0"),
        *("--trainer.enable_progress_bar", "false", "--ckpt_path", "auto"),
        *("--trainer.default_root_dir", f"/app/runs/{folder}"),
    ]


def ran(command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def undisturbed(image, tmp_path_factory):
    """A run of a few steps of the quickstart, and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    os.chown(runs, USER, USER)
    code, text = ran(container(runs, "latentdd-undisturbed") + fit("whole"))
    assert code == 0, text
    return runs / "whole", text


def test_the_user_is_not_root_and_writes_into_mounts_alone(image, runs):
    look = "id -u; touch /app/x; touch /home/latentdd/x; touch /app/runs/x && touch /tmp/x; ls /sys/class/net"
    code, text = ran([*container(runs, "latentdd-look", "--entrypoint", "sh"), "-c", look])
    lines = text.splitlines()
    assert (code, lines[:2]) == (0, [str(USER), "lo"])
    assert text.count("Read-only file system") == 2
    assert [path.name for path in runs.iterdir()] == ["x"]


def test_the_quickstart_runs_without_a_word_about_folders(undisturbed):
    run, text = undisturbed
    assert (run / "distilled" / "codes.safetensors").stat().st_uid == USER
    for fault in ("Read-only", "not writable", "Permission", "temporary cache", "Traceback", "Warning"):
        assert fault not in text, text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_goes_on_to_the_same_codes(undisturbed, runs, number):
    """SIGTERM reaches the program, which is process 1 of its container."""
    name = f"latentdd-{number}"
    started = subprocess.Popen([*container(runs, name), *fit("stopped")])
    checkpoint = runs / "stopped" / "checkpoints" / "last.ckpt"
    while not checkpoint.is_file():
        assert started.poll() is None
        time.sleep(0.05)
    pid = subprocess.run(
        ["podman", "inspect", "--format", "{{.State.Pid}}", name], capture_output=True, text=True, check=True
    )
    os.kill(int(pid.stdout), number)
    assert started.wait(300) == 128 + number
    assert not (runs / "stopped" / "distilled").exists() or number == signal.SIGTERM
    code, text = ran([*container(runs, f"{name}-again"), *fit("stopped")])
    assert code == 0, text
    whole, _ = undisturbed
    codes = [sha256(run / "distilled" / "codes.safetensors") for run in (whole, runs / "stopped")]
    assert codes[0] == codes[1]


def test_a_checkpoint_is_validated(undisturbed):
    """With networks trained in two worker processes, which is what /dev/shm and process 1 are asked for."""
    whole, _ = undisturbed
    words = [
        *("validate", "--config", "configs/quickstart.yaml", "--ckpt_path", "last"),
        *(
            "--evaluation.repeats",
            "1",
            "--evaluation.num_workers",
            "2",
            "--trainer.enable_progress_bar",
            "false",
        ),
        *("--trainer.default_root_dir", "/app/runs/whole", "--trainer.max_steps", str(STEPS)),
    ]
    code, text = ran([*container(Path(whole).parent, "latentdd-validate"), *words])
    assert code == 0, text
    assert "random_real" in text
    assert (whole / "evaluation.csv").is_file()
