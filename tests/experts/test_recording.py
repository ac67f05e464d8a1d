import errno
import shutil
import threading
import time
from collections import namedtuple
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from processes import Started
from safetensors.torch import load_file
from torch.nn import functional as F

import ldd
from ldd.commands import experts as command
from ldd.data import DistillationData, RandomPruner
from ldd.disk.files import sha256
from ldd.errors import UserError
from ldd.experts import recording as experts_recording
from ldd.experts.recording import record_experts
from ldd.experts.trajectories import Trajectories
from ldd.images import to_unit_range
from ldd.networks import ConvNet
from ldd.runtime.seeding import derive_seed, generator, seeded

CONFIGS = Path(ldd.__file__).parent.parent / "configs" / "experts"
TWO = ["0", "1"]
TINY = partial(ConvNet, depth=2, width=4)


@pytest.fixture(scope="module")
def data():
    return DistillationData(subset=["0", "1"], pruner=RandomPruner(0.2))


@pytest.fixture
def record(data, tmp_path):
    """`record(num_experts, **arguments)` -> the folder."""
    settings = {"network": TINY, "epochs": 2, "batch_size": 16, "progress": False, "learning_rate": 0.1}
    return lambda num_experts=1, **arguments: record_experts(
        data, num_experts=num_experts, **{"out": str(tmp_path / "out")} | settings | arguments
    )


def hashes(folder):
    return {path.name: sha256(path) for path in folder.glob("*.safetensors")}


def test_snapshots_are_those_of_a_plain_training(data, record):
    recording = Trajectories.open(record(augmentation=[]))
    with seeded(0, "expert", 0):
        network = TINY(2, 32)
    images, labels = data.core_set.images, data.core_set.labels
    seed = derive_seed(0, "expert training", 0)
    for epoch in range(3):
        flat = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        torch.testing.assert_close(recording.read(0, [epoch])[0], flat, rtol=0, atol=1e-6 if epoch else 0)
        if epoch == 2:
            break
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator(seed, "shuffle", epoch)).split(16):
            logits = network(data.spec.normalise(to_unit_range(images[rows])))
            loss = F.cross_entropy(logits, labels[rows])
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
            total += loss.item() * len(rows)
        assert float(recording.losses(0)[epoch]) == pytest.approx(total / len(images), abs=1e-6)


def test_snapshots_are_no_aliases(record):
    snapshots = load_file(record() / "expert-00000.safetensors")["parameters"]
    assert snapshots.dtype == torch.float32
    assert len(snapshots.unique(dim=0)) == 3


def test_experts_differ_and_follow_from_their_number(record, tmp_path):
    all_three = hashes(record(3))
    assert len(set(all_three.values())) == 3
    shared = tmp_path / "shared"
    folder = record(2, first_expert=1, out=str(shared))
    assert hashes(folder) == {name: all_three[name] for name in sorted(all_three)[1:]}
    record(1, out=str(shared))
    assert hashes(folder) == all_three
    assert Trajectories.open(folder).num_experts == 3


def record_endlessly(out, first, ready):
    """Expert `first` of the recording, for ever."""

    def told(*arguments):
        ready.touch()
        time.sleep(600)

    experts_recording._train_expert = told
    settings = {"network": TINY, "num_experts": 1, "epochs": 2, "batch_size": 64, "learning_rate": 0.05}
    record_experts(DistillationData(subset=TWO), out=out, first_expert=first, progress=False, **settings)


def test_two_processes_share_the_work_but_no_expert(tmp_path):
    out, ready = str(tmp_path / "experts"), tmp_path / "ready"
    settings = {"network": TINY, "epochs": 2, "batch_size": 64, "learning_rate": 0.05, "progress": False}
    other = Started(record_endlessly, out, 1, ready)
    try:
        while not ready.exists():
            time.sleep(0.02)
        record_experts(DistillationData(subset=TWO), out=out, num_experts=1, **settings)
        holder = rf"experts 0 to 1 of .* are being recorded by process {other.process.pid} on"
        with pytest.raises(UserError, match=holder):
            record_experts(DistillationData(subset=TWO), out=out, num_experts=2, **settings)
        threading.Timer(1, other.process.kill).start()
        folder = record_experts(DistillationData(subset=TWO), out=out, num_experts=2, wait=True, **settings)
    finally:
        other.process.kill()
    assert sorted(hashes(folder)) == ["expert-00000.safetensors", "expert-00001.safetensors"]
    assert not [path for path in folder.iterdir() if path.suffix == ".lock"]


def test_the_index_counts_what_others_have_recorded_meanwhile(record, monkeypatch):
    """Whoever waited for another process, or began beside it, names its experts too."""
    waiting, others = experts_recording._alone, []

    @contextmanager
    def late(folder, wanted, *, wait):
        with waiting(folder, wanted, wait=wait):
            if wanted == range(1):
                others.append(record(2, first_expert=1))
            yield

    monkeypatch.setattr(experts_recording, "_alone", late)
    folder = record(1)
    assert others == [folder]
    assert len(hashes(folder)) == 3
    assert Trajectories.open(folder).num_experts == 3


def test_continues_after_a_kill(record, tmp_path, monkeypatch, capsys):
    unbroken = record(3)
    written = []

    def killed(self, expert, *args):
        if expert == 2:
            raise KeyboardInterrupt
        written.append(expert)
        return original(self, expert, *args)

    original = Trajectories.write
    with monkeypatch.context() as patch:
        patch.setattr(Trajectories, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            record(3, out=str(tmp_path / "again"))
    folder = tmp_path / "again" / unbroken.name
    assert written == [0, 1]
    assert sorted(hashes(folder)) == ["expert-00000.safetensors", "expert-00001.safetensors"]
    left = folder / ".expert-00002.safetensors.0a1b2c3d.tmp"  # what SIGKILL leaves
    left.write_bytes(b"half")
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("*.safetensors"))]
    (folder / "expert-00000.safetensors").write_bytes(b"cut off")  # and what a crashed disk may
    capsys.readouterr()
    assert record(3, out=str(tmp_path / "again")) == folder
    assert "1 of 3 experts are there; the other 2" in capsys.readouterr().out
    assert hashes(folder) == hashes(unbroken)
    assert (folder / "expert-00001.safetensors").stat().st_mtime_ns == times[1]
    assert not left.exists()


def test_disk_use_is_said_and_refused_when_too_much(record, monkeypatch, capsys, tmp_path):
    record(2)
    said = capsys.readouterr().out
    assert "0 of 2 experts are there; the other 2, of 3 snapshots of 790 parameters, take 18.5 KiB" in said
    assert "mean training loss by epoch: 0." in said
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 5_000_000))
    with pytest.raises(
        UserError,
        match=r"the 998 experts to record take 9.0 MiB, but the disk of out .* has 4.8 MiB free; lower",
    ):
        record(1000)
    with pytest.raises(UserError, match="the 1000 experts"):
        record(1000, out=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert Trajectories.open(record(2)).num_experts == 2  # what was refused has left no trace


def test_disk_full_keeps_what_is_done(record, monkeypatch, tmp_path):
    unbroken = record(3)
    save, calls = safetensors.torch.save_file, []

    def full(*args):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(
            UserError,
            match=r"cannot write .*expert-00002.*No space left on device.* 2 of 3 experts are kept; the same command",
        ):
            record(3, out=str(tmp_path / "again"))
    folder = tmp_path / "again" / unbroken.name
    assert sorted(path.name for path in folder.iterdir()) == [
        "cost",
        "expert-00000.safetensors",
        "expert-00001.safetensors",
        "index.json",
    ]
    record(3, out=str(tmp_path / "again"))
    assert hashes(folder) == hashes(unbroken)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 0}, r"num_experts \(0\) must be at least 1"),
        ({"epochs": 0}, r"epochs \(0\) must be at least 1"),
        ({"batch_size": 0}, r"batch_size \(0\) must be at least 1"),
        ({"first_expert": -1}, r"first_expert \(-1\) must be at least 0"),
        ({"learning_rate": -1.0}, r"^learning_rate \(-1.0\) must be a number of 0 or more"),
        ({"momentum": float("nan")}, r"^momentum \(nan\) must be a number of 0 or more"),
        ({"device": "abacus"}, "device='abacus' is unknown; use auto, cpu"),
        ({"learning_rate": 1e30}, r"expert 0: .* NaN or infinite with learning_rate 1e\+30; lower it"),
        ({"augmentation": ["blur"]}, "unknown 'blur'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_refuses(record, arguments, message):
    with pytest.raises(UserError, match=message):
        record(**arguments)


def test_command(tmp_path):
    arguments = ["--config", str(CONFIGS / "digits.yaml"), "--num_experts", "1", "--epochs", "1"]
    arguments += ["--data.subset", '["3", "5"]', "--network.width", "4", "--out", str(tmp_path)]
    ending = command.main("experts", arguments)
    (folder,) = tmp_path.iterdir()
    assert ending.made == (folder,)
    assert ending.next[-1] == folder
    assert ending.next[:5] == ("fit", "--config", "quickstart", "--data.subset", '["3", "5"]')
    recording = Trajectories.open(folder)
    assert recording.setting.classes == ("digit-3", "digit-5")
    assert recording.training.epochs == 1
    assert recording.is_whole(0)


def test_shipped_configs_agree():
    """Both describe the published training; they differ in data and size of the recording only."""
    import yaml

    digits, imagenette = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("digits", "imagenette")
    )
    own = {"data", "num_experts", "epochs"}
    assert {k: v for k, v in digits.items() if k not in own} == {
        k: v for k, v in imagenette.items() if k not in own
    }
    assert (digits["learning_rate"], digits["momentum"], digits["batch_size"]) == (0.01, 0.0, 256)
