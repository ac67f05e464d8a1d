"""`latentdd federate --address` on a real Ray cluster of hosts, some of which do not see the driver's disk.

The hosts are namespaces of this machine (tests/helpers/hosts.py). They are lost one after the other: a machine in the
middle of its job, then the driver. The tests of this file follow each other in one cluster, which takes long to start.
"""

import sys
import tempfile
import time
from pathlib import Path

import hosts
import pytest
import torch

from ldd import cli
from ldd.disk.files import read_tensors, sha256

STEPS = 150
SMALL = [
    *("--config", str(hosts.ROOT / "configs" / "quickstart.yaml")),
    *("--model.prior", str(hosts.ROOT / "configs" / "prior" / "pixel.yaml")),
    *("--data.subset", '["digit-0", "digit-1", "digit-4", "digit-7"]'),
    *("--model.objective.init_args.real_batch", "4"),
    *("--model.objective.init_args.network.init_args.width", "8"),
    *("--trainer.max_steps", str(STEPS), "--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_val_batches", "0", "--checkpoint.every_n_steps", "1", "--preview.every_n_steps", "0"),
]
PLACED = """
import sys
from pathlib import Path
import ray
from ldd.errors import UserError
from ldd.federation.jobs import Job, Machines, Needs
from ldd.federation.ray_engine import run_jobs

home, address = Path(sys.argv[1]), sys.argv[2]
ray.init(address, log_to_driver=False)
jobs = [Job(str(i), ("--version",), home, home / str(i) / "output.log", (home / str(i),)) for i in range(2)]
def ended(name, code):
    print("ended", name, code)
for needs in (Needs(1, gpus=1), Needs(1, memory=2.5), Needs(2)):
    print(needs)
    run_jobs(home, jobs, needs, Machines(workers=2, address=address), ended)
try:
    run_jobs(home, jobs, Needs(1, 1, memory=2.5), Machines(workers=2, address=address), ended)
except UserError as error:
    print(error)
"""

reason = hosts.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(reason is not None, reason=reason or "")]


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["latentdd"])


@pytest.fixture(scope="module")
def disk():
    """What the first host, where the driver runs, and the last one see of /tmp; each has the rest for itself."""
    with tempfile.TemporaryDirectory(prefix="latentdd-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(disk):
    pytest.importorskip("ray")
    options = [
        ("--num-cpus", 0),
        ("--num-cpus", 2, "--memory", 2**30, "--num-gpus", 1),  # which is counted, not there
        ("--num-cpus", 1, "--memory", 2**30, "--num-gpus", 1),
        ("--num-cpus", 1, "--memory", 3 * 2**30),
    ]
    with hosts.RayHosts([disk, None, None, disk], options, disk / "ray") as started:
        yield started


@pytest.fixture
def undisturbed(disk):
    """The same federation in this process."""
    assert cli.main(["federate", *SMALL, "--subtasks", "2", "--out", str(disk / "here")]) == 0
    return disk / "here"


def wait_for(file, driver, log):
    while not file.is_file():
        assert driver.poll() is None, log.read_text()
        time.sleep(0.02)


def steps_of(run):
    """Numbers of the steps that each start of a run has logged."""
    found = sorted(run.glob("logs/version_*/metrics.csv"))
    return [[int(line.split(",")[1]) for line in file.read_text().splitlines()[1:]] for file in found]


def test_jobs_go_where_there_is_room(cluster, disk):
    home, output = disk / "placed", disk / "placed.log"
    home.mkdir()
    with output.open("wb") as log:
        words = [sys.executable, "-c", PLACED, home, cluster.address]
        assert cluster.start(0, *words, stdout=log, stderr=log, env=cluster.environment).wait(600) == 0
    text = output.read_text()
    of_gpu, of_memory, of_cores = text.split("Needs(")[1:]
    assert of_gpu.count("came back from 10.213.0.2") + of_gpu.count("came back from 10.213.0.3") == 2
    assert (of_memory.count("came back"), of_memory.count("ended")) == (0, 2), (
        "10.213.0.4 works where DIR lies"
    )
    assert of_cores.count("came back from 10.213.0.2") == 2
    assert "no machine of the Ray cluster has the 1 cores, 1 GPUs and 2.5 GiB" in text
    assert not (home / ".machines").exists()


def test_a_machine_with_a_disk_of_its_own_is_lost(cluster, disk, undisturbed):
    """What its job had at its last checkpoint had come back, and the other machine goes on from there."""
    out, log = disk / "lost", disk / "lost.log"
    words = [
        "federate",
        *SMALL,
        "--trainer.accelerator",
        "auto",
        "--subtasks",
        2,
        "--workers",
        2,
        "--out",
        out,
    ]
    driver = cluster.drive(*words, "--address", cluster.address, output=log)
    checkpoint = out / "subtasks" / "0" / "checkpoints" / "last.ckpt"
    wait_for(checkpoint, driver, log)
    lost = next(host for host in cluster.hosts if host.runs("--only", "0"))
    lost.kill()
    had = torch.load(checkpoint, weights_only=True)["global_step"]
    assert driver.wait(600) == 0, log.read_text()
    text = log.read_text()
    assert "job 0 was lost (NodeDiedError: " in text
    assert "it starts again (1 of 3)" in text
    (other,) = {"10.213.0.2", "10.213.0.3"} - {lost.address}
    assert text.count(f"came back from {other}") == 2
    assert sha256(out / "distilled" / "codes.safetensors") == sha256(
        undisturbed / "distilled" / "codes.safetensors"
    )
    first, again = steps_of(out / "subtasks" / "0")
    assert again[0] >= had >= 1, "no step before the last checkpoint is taken again"
    assert (first, again[-1]) == ([*range(len(first))], STEPS - 1)
    assert str(out / "subtasks" / "0") in (out / "subtasks" / "0" / "config.yaml").read_text()


def test_the_driver_is_lost(cluster, disk):
    """With two ranks in a sub-task, on the one machine that sees DIR and has the memory."""
    out, log = disk / "driver", disk / "driver.log"
    whole = ["federate", *SMALL, "--trainer.max_steps", "40", "--subtasks", "1", "--out"]
    where = ["--workers", 1, "--memory_per_job", 2.5, "--address", cluster.address]
    ddp = ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    driver = cluster.drive(*whole, out, *ddp, *where, output=log)
    wait_for(out / "subtasks" / "0" / "checkpoints" / "previous.ckpt", driver, log)
    host = cluster.hosts[3]
    assert host.runs("-m", "ldd.__main__"), "the second rank"
    for process in cluster.hosts[0].runs("--address"):
        process.kill()
    driver.wait()
    started = time.monotonic()
    while host.runs("--only", "0") or host.runs("-m", "ldd.__main__"):
        assert time.monotonic() - started < 120, "jobs end with their driver"
        time.sleep(0.1)
    assert cluster.drive("federate", "--out", out, *where, output=log).wait(600) == 0, log.read_text()
    assert "came back" not in log.read_text()
    assert len(steps_of(out / "subtasks" / "0")) == 2, "it went on from its checkpoint"
    assert cli.main([*whole, str(disk / "alone")]) == 0
    mine, theirs = (read_tensors(run / "distilled" / "codes.safetensors") for run in (out, disk / "alone"))
    assert mine.keys() == theirs.keys()
    for name in mine:  # the sum over two ranks is rounded in another order
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-3)
