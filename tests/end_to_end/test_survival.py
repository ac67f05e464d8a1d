"""Killed at any moment and started again: the same bits; damaged checkpoints and full disks leave the last good one."""

import csv
import resource
import struct
import zipfile
from functools import partial

import lightning as L
import pytest
import torch
from processes import Renames, killed
from pruning_cases import NoiseSource, spec_of
from small_runs import NARROW, fit, matching
from small_world import protocol_file

from ldd.artefact.set import DistilledSet
from ldd.callbacks import CrossArchitecture, Export, LastCheckpoints
from ldd.data import CrossFittedLossPruner, DistillationData, ScoringNetwork
from ldd.disk.files import sha256
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.evaluation import RandomReal
from ldd.experts.recording import record_experts
from ldd.networks import ConvNet
from ldd.objectives import GradientMatching, TrajectoryMatching
from ldd.priors import PixelPrior
from ldd.runs.folder import find_fault, find_last

TWO = ["0", "1"]
STEPS = 6
TINY = partial(ConvNet, depth=2, width=4)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    record(folder)
    return folder


def last_of(run):
    return find_last(run) if (run / "checkpoints").is_dir() else None


# What is killed: each starts or goes on, as the same command would, and leaves its result in `folder`.


def distil(objective, folder, *arguments):
    data = DistillationData(subset=TWO)
    fit(PixelPrior(32), objective(*arguments), folder, STEPS, data, last_of(folder), images_per_class=2)
    return [sha256(folder / "distilled" / name) for name in ("codes.safetensors", "images.safetensors")]


def gradient_matching():
    return GradientMatching(real_batch=4, network=NARROW, outer_loop=4, inner_loop=2)


def trajectory_matching(experts):
    return TrajectoryMatching(str(experts), network=TINY, syn_steps=2, expert_epochs=1)


def record(folder):
    settings = {"network": TINY, "num_experts": 4, "epochs": 2, "batch_size": 64, "learning_rate": 0.05}
    recording = record_experts(DistillationData(subset=TWO), out=str(folder), progress=False, **settings)
    return [sha256(path) for path in sorted(recording.glob("*.safetensors"))]


def score(folder):
    training = ScoringNetwork(lambda classes, size: ConvNet(classes, size, width=4), epochs=1, device="cpu")
    pruner = CrossFittedLossPruner(0.5, folds=3, training=training, cache_dir=str(folder))
    source = NoiseSource(6, 6)
    return pruner.score(source, source.items("train"), spec_of(source), seed=0).values.tolist()


def evaluate(folder):
    """Accuracies at each validation; not the seconds."""
    folder.mkdir(exist_ok=True)
    data = DistillationData(subset=TWO)
    evaluation = CrossArchitecture(
        networks={"tiny": TINY, "wider": partial(ConvNet, depth=2, width=5)},
        protocol=protocol_file(folder),
        repeats=2,
        baselines=[RandomReal()],
        num_workers=1,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=4,
        max_epochs=1,
        val_check_interval=2,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LastCheckpoints(every_n_steps=2), Export(), evaluation],
    )
    trainer.fit(Distiller(PixelPrior(32), matching(), data.spec), data, ckpt_path=last_of(folder))
    with (folder / "evaluation.csv").open(newline="") as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


WORK = {
    "distribution": partial(distil, matching),
    "gradient": partial(distil, gradient_matching),
    "trajectory": partial(distil, trajectory_matching),
    "experts": record,
    "scoring": score,
    "evaluation": evaluate,
}


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        *((kind, 0.5) for kind in WORK),
        ("distribution", 0.2),
        ("distribution", 0.8),
        ("evaluation", 0.9),
    ],
)
def test_killed_and_started_again_gives_the_same_bits(kind, share, experts, tmp_path):
    arguments = [experts] if kind == "trajectory" else []
    with Renames() as renames:
        expected = WORK[kind](tmp_path / "unbroken", *arguments)
    moment = max(1, round(share * renames.count))
    assert killed(WORK[kind], tmp_path / "broken", *arguments, before=moment)
    assert WORK[kind](tmp_path / "broken", *arguments) == expected


# Checkpoints that cannot be read


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps, with checkpoints of the second and the fourth."""
    folder = tmp_path_factory.mktemp("run")
    fit(PixelPrior(32), matching(), folder, 4, DistillationData(subset=TWO))
    return folder


@pytest.fixture
def checkpoints(run, tmp_path):
    """A copy of the folder."""
    (tmp_path / "checkpoints").mkdir()
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / "checkpoints" / name).write_bytes((run / "checkpoints" / name).read_bytes())
    return tmp_path / "checkpoints"


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip_in_a_tensor(path):
    """One bit of the largest part: the archive itself stays in order."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    name, extra = struct.unpack("<HH", content[largest.header_offset + 26 : largest.header_offset + 30])
    content[largest.header_offset + 30 + name + extra + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def other_content(path):
    torch.save({"state_dict": {}}, path)


def code(path):
    torch.save({"state_dict": {}, "loops": {}, "global_step": cut}, path)


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_the_last_two_are_kept(checkpoints):
    assert [step_of(checkpoints / name) for name in ("last.ckpt", "previous.ckpt")] == [4, 2]
    assert find_last(checkpoints.parent) == checkpoints / "last.ckpt"


@pytest.mark.parametrize("damage", [cut, empty, flip_in_a_tensor, other_content, code])
def test_a_damaged_last_checkpoint_is_passed_over(checkpoints, damage):
    damage(checkpoints / "last.ckpt")
    with pytest.warns(
        UserWarning, match=r"last.ckpt is damaged \(.+\); going on from the one before, .*previous"
    ):
        assert find_last(checkpoints.parent) == checkpoints / "previous.ckpt"
    damage(checkpoints / "previous.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt is damaged .*previous.ckpt is damaged .*--overwrite"):
        find_last(checkpoints.parent)


def test_a_changed_byte_never_passes(checkpoints):
    """It is noticed, or (padding, fields that nobody reads) the same values are read."""
    path = checkpoints / "last.ckpt"
    whole = path.read_bytes()
    expected = torch.load(path, weights_only=True)
    noticed = 0
    for place in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        if find_fault(path) is None:
            found = torch.load(path, weights_only=True)
            assert found["loops"] == expected["loops"]
            for name, value in expected["state_dict"].items():
                assert torch.equal(found["state_dict"][name], value), (place, name)
        else:
            noticed += 1
    assert noticed > 30


def test_a_resumed_run_starts_from_the_one_before(run, checkpoints):
    cut(checkpoints / "last.ckpt")
    with pytest.warns(UserWarning, match="is damaged"):
        last = find_last(checkpoints.parent)
    model = fit(PixelPrior(32), matching(), checkpoints.parent, 4, DistillationData(subset=TWO), last)
    unbroken = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(model.codes.latents, unbroken["codes.latents"])


class FullDisk(L.Callback):
    """From a step on, files beyond some size cannot be written."""

    def __init__(self, step, size):
        self.step, self.size = step, size

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def test_a_full_disk_leaves_the_last_good_files(tmp_path):
    data = DistillationData(subset=TWO)
    fit(PixelPrior(32), matching(), tmp_path, 4, data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    try:
        with pytest.raises(UserError, match=r"cannot write .*last.ckpt: .*free some space|File too large"):
            fit(PixelPrior(32), matching(), tmp_path, 8, data, find_last(tmp_path), (FullDisk(5, 4000),))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    resumed = fit(PixelPrior(32), matching(), tmp_path, 8, data, find_last(tmp_path))
    whole = fit(PixelPrior(32), matching(), tmp_path / "whole", 8, data)
    assert torch.equal(resumed.codes.latents, whole.codes.latents)
    assert DistilledSet.load(tmp_path).manifest["step"] == 8
