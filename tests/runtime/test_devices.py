"""Free memory is what this process may still take: of the machine, its container, its batch job."""

import resource

import psutil
import pytest
import torch

from ldd.runtime import devices

MIB = 2**20


def group(folder, files, facts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in facts.items()))


def test_control_groups_of_version_2(tmp_path):
    group(tmp_path, {"memory.max": "max", "memory.current": 7}, {"inactive_file": 0})
    group(tmp_path / "pod", {"memory.max": 900, "memory.current": 500}, {"inactive_file": 100})
    group(tmp_path / "pod" / "own", {"memory.max": "max", "memory.current": 400}, {"inactive_file": 0})
    assert list(devices._left_in_groups(tmp_path, "0::/pod/own\n")) == [900 - 500 + 100]


def test_a_container_sees_its_group_as_the_top(tmp_path):
    group(tmp_path, {"memory.max": 900, "memory.current": 500}, {"inactive_file": 0})
    assert list(devices._left_in_groups(tmp_path, "0::/kubepods/pod1/abc\n")) == [400]


def test_control_groups_of_version_1(tmp_path):
    job = {"memory.limit_in_bytes": 800, "memory.usage_in_bytes": 300}
    group(tmp_path / "memory" / "slurm" / "job_1", job, {"total_inactive_file": 50, "inactive_file": 7})
    (tmp_path / "cpu").mkdir()
    lines = "4:cpu,cpuacct:/slurm/job_1\n3:memory:/slurm/job_1\n1:name=systemd:/x\n"
    assert list(devices._left_in_groups(tmp_path, lines)) == [550]


@pytest.mark.parametrize(
    ("variables", "mib"),
    [
        ({}, None),
        ({"SLURM_MEM_PER_NODE": "4096"}, 4096),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # all of the machine
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "4"}, 2048),
        ({"SLURM_MEM_PER_GPU": "1000", "SLURM_GPUS_ON_NODE": "2"}, 2000),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "4(x2)"}, None),
    ],
)
def test_memory_of_a_slurm_job(variables, mib):
    assert devices._slurm_bytes(variables) == (None if mib is None else mib * MIB)


def test_plans_have_no_more_than_the_job(monkeypatch):
    used = psutil.Process().memory_info().rss
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(used // MIB + 64))
    assert 0 < devices.free_bytes(torch.device("cpu")) <= 65 * MIB
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    assert devices.free_bytes(torch.device("cpu")) == 0


def test_plans_have_no_more_than_the_limit_of_the_shell(monkeypatch):
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (psutil.Process().memory_info().vms + 64 * MIB, -1)
    )
    assert devices.free_bytes(torch.device("cpu")) <= 65 * MIB


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps", "xpu"])
def test_auto_is_one_rule_for_all_who_ask(monkeypatch, kind):
    there = None if kind == "cpu" else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: there)
    assert devices.check_device("auto").type == devices.pick_device().type == kind


def test_bytes_in_words():
    words = {0: "0.0 KiB", 1536: "1.5 KiB", 2**20: "1.0 MiB", 5 * 2**29: "2.5 GiB", 2**40: "1,024.0 GiB"}
    assert {count: devices.in_bytes(count) for count in words} == words
