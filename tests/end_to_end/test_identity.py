"""A run is its data: other images or weights under the old names are refused by whatever goes on with them."""

import json
import os
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from small_runs import ROOT
from small_world import protocol_file

from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.data.fingerprints import differences
from ldd.data.folders import FolderSource
from ldd.experts.trajectories import INDEX

FIT = [
    *("fit", "--config", "configs/quickstart.yaml", "--model.prior", "configs/prior/pixel.yaml"),
    *("--model.objective.lr_latents", "2", "--model.objective.real_batch", "2"),
    *("--model.objective.network.width", "4", "--trainer.enable_progress_bar", "false"),
    *("--data", "configs/data/folder.yaml", "--data.image_size", "32", "--checkpoint.every_n_steps", "1"),
]
STUDENT = '{"n": {"class_path": "ldd.networks.ConvNet", "init_args": {"width": 4, "depth": 2}}}'
OTHER = STUDENT.replace('"n"', '"m"')


def picture(path, seed):
    """BMP files of one size are of equally many bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two classes of six training and four test images."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["latentdd"])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root = tmp_path / "images"
    for number, name in enumerate(("a", "b")):
        for i in range(6):
            picture(root / "train" / name / f"{i}.bmp", 100 * number + i)
        for i in range(4):
            picture(root / "val" / name / f"{i}.bmp", 100 * number + 50 + i)
    return root


def command(*words):
    return cli.main([str(word) for word in words])


def fit(root, run, steps, *more):
    own = ("--data.root", root, "--trainer.default_root_dir", run, "--trainer.max_steps", steps)
    return command(*FIT, "--trainer.limit_val_batches", 0, *own, *more)


def replaced(root):
    for path in root.rglob("train/*/*.bmp"):
        picture(path, 900 + hash(path.name) % 7)


def other_tests(root):
    for path in root.rglob("val/*/*.bmp"):
        picture(path, 700 + hash(path.name) % 7)


def one_pixel(root):
    path, status = root / "train" / "b" / "5.bmp", (root / "train" / "b" / "5.bmp").stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert path.stat().st_size == status.st_size


def swapped(root):
    one, other = root / "train" / "a" / "0.bmp", root / "train" / "b" / "0.bmp"
    one.rename(root / "x")
    other.rename(one)
    (root / "x").rename(other)


EDITS = [
    replaced,
    one_pixel,
    swapped,
    other_tests,
    lambda root: picture(root / "train" / "a" / "new.bmp", 1),
    lambda root: (root / "train" / "a" / "0.bmp").unlink(),
]


@pytest.mark.parametrize("edit", EDITS)
def test_a_run_goes_on_with_its_own_images_alone(root, tmp_path, edit, capsys):
    run = tmp_path / "run"
    assert fit(root, run, 1) == 0
    checkpoint = (run / "checkpoints" / "last.ckpt").read_bytes()
    kept = tmp_path / "kept"
    shutil.copytree(root, kept)
    edit(root)
    capsys.readouterr()
    assert fit(root, run, 2, "--ckpt_path", "last") == 2
    said = capsys.readouterr().err
    assert "the run was started with other images in root=" in said
    assert "fingerprint then " in said
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == checkpoint
    assert DistilledSet.load(run).manifest.step == 1
    # The same images elsewhere, written at another time, are the same.
    for path in kept.rglob("*.bmp"):
        os.utime(path)
    assert fit(kept, run, 2, "--ckpt_path", "auto") == 0
    assert DistilledSet.load(run).manifest.step == 2


def test_settings_of_a_resumed_run_are_what_they_are_now(root, tmp_path):
    run = tmp_path / "run"
    assert fit(root, run, 1) == 0
    assert DistilledSet.load(run).manifest.resumed is None
    assert fit(root, run, 3, "--ckpt_path", "last", "--trainer.precision", "bf16-mixed") == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["trainer"]["max_steps"], config["trainer"]["precision"]) == (3, "bf16-mixed")
    assert config["ckpt_path"] is None
    manifest = DistilledSet.load(run).manifest
    assert manifest.config["trainer"]["precision"] == "bf16-mixed"
    assert manifest["resumed"] == [
        {"step": 1, "changes": ["trainer.max_steps: 1 -> 3", "trainer.precision: None -> 'bf16-mixed'"]}
    ]
    commands = json.loads((run / "commands.json").read_text())
    assert len(commands) == 2
    assert "bf16-mixed" in commands[1]["command"]
    # Nothing changed: nothing is noted.
    assert fit(root, run, 3, "--ckpt_path", "last", "--trainer.precision", "bf16-mixed") == 0
    assert len(json.loads((run / "resumed.json").read_text())) == 1
    assert fit(root, run, 1, "--overwrite", "true") == 0
    assert DistilledSet.load(run).manifest.resumed is None


def test_other_weights_of_the_prior_are_refused(tiny_prior_folder, tmp_path, root, capsys):
    prior, run = tiny_prior_folder(tmp_path / "prior"), tmp_path / "run"
    how = ("--model.prior", "configs/prior/digits.yaml", "--model.prior.path_or_hub_id", prior)
    words = [*FIT[:3], *how, "--model.prior.num_steps", 1, *FIT[7:13]]
    words += ["--trainer.limit_val_batches", 0, "--trainer.default_root_dir", run, "--data.subset", "[0, 1]"]
    assert command(*words, "--trainer.max_steps", 1) == 0
    shutil.rmtree(prior)
    tiny_prior_folder(prior, seed=1)
    capsys.readouterr()
    assert command(*words, "--trainer.max_steps", 2, "--ckpt_path", "last") == 2
    assert "the run was started with other weights of the prior (sha256 then " in capsys.readouterr().err


def test_an_evaluation_is_added_to_on_its_own_images_alone(root, tmp_path, capsys):
    run, out, protocol = tmp_path / "run", tmp_path / "judged", protocol_file(tmp_path)
    assert fit(root, run, 1) == 0
    words = [
        "evaluate",
        run,
        "--data",
        "configs/data/folder.yaml",
        "--data.root",
        root,
        "--data.image_size",
        32,
    ]
    words += [
        "--protocol",
        protocol,
        "--repeats",
        1,
        "--num_workers",
        1,
        "--baselines",
        "random_real",
        "--out",
        out,
    ]
    assert command(*words, "--networks", STUDENT) == 0
    written = [(out / name).read_bytes() for name in ("evaluation.csv", "evaluation.json")]
    other_tests(root)
    capsys.readouterr()
    assert command(*words, "--networks", OTHER) == 2
    assert "the set was made with the test split" in capsys.readouterr().err
    assert command(*words, "--networks", OTHER, "--other_data", "true") == 2
    assert (
        "evaluation.csv holds results of protocol small on other images (the test split: "
        in capsys.readouterr().err
    )
    assert [(out / name).read_bytes() for name in ("evaluation.csv", "evaluation.json")] == written
    assert command(*words[:-1], tmp_path / "new", "--networks", OTHER, "--other_data", "true") == 0


def test_an_old_evaluation_is_compared_by_names_and_sizes(root, tmp_path, capsys):
    run, out, protocol = tmp_path / "run", tmp_path / "judged", protocol_file(tmp_path)
    assert fit(root, run, 1) == 0
    words = [
        "evaluate",
        run,
        "--data",
        "configs/data/folder.yaml",
        "--data.root",
        root,
        "--data.image_size",
        32,
    ]
    words += [
        "--protocol",
        protocol,
        "--repeats",
        1,
        "--num_workers",
        1,
        "--baselines",
        "random_real",
        "--out",
        out,
    ]
    words += ["--other_data", "true"]
    assert command(*words, "--networks", STUDENT) == 0
    facts = json.loads((out / "evaluation.json").read_text())
    del facts["data_fingerprints"], facts["evaluations"]["small"]["data_fingerprints"]
    (out / "evaluation.json").write_text(json.dumps(facts))
    assert command(*words, "--networks", STUDENT) == 0, "the new fingerprint is not missed"
    (out / "evaluation.json").write_text(json.dumps(facts))
    picture(root / "val" / "a" / "more.bmp", 1)
    capsys.readouterr()
    assert command(*words, "--networks", STUDENT) == 2
    assert f"fingerprint then {facts['test_split_fingerprint']}, now " in capsys.readouterr().err


def test_experts_are_known_by_the_contents_of_their_images(root, tmp_path, capsys):
    out = tmp_path / "experts"
    words = [
        "experts",
        "--data.source",
        "ldd.data.FolderSource",
        "--data.root",
        root,
        "--data.image_size",
        32,
    ]
    words += [
        "--network",
        "ldd.networks.ConvNet",
        "--network.width",
        4,
        "--network.depth",
        2,
        "--num_experts",
        1,
    ]
    words += ["--epochs", 2, "--batch_size", 4, "--progress", "false", "--out", out]
    assert command(*words) == 0
    (first,) = out.iterdir()
    index = json.loads((first / INDEX).read_text())
    assert index["setting"]["contents"]
    assert command(*words) == 0
    assert "1 of 1 experts are there" in capsys.readouterr().out
    replaced(root)
    assert command(*words) == 0
    assert "0 of 1 experts are there" in capsys.readouterr().out
    assert len(list(out.iterdir())) == 2
    match = [
        "--model.objective",
        "configs/objective/trajectory.yaml",
        "--model.objective.trajectories",
        first,
    ]
    match += ["--model.objective.network.width", 4, "--model.objective.network.depth", 2]
    match += ["--model.objective.max_start_epoch", 1, "--model.objective.expert_epochs", 1]
    words = [*FIT[:5], *match, *FIT[11:], "--data.root", root, "--trainer.limit_val_batches", 0]
    assert command(*words, "--trainer.default_root_dir", tmp_path / "run", "--trainer.max_steps", 1) == 2
    assert "images of other contents (fingerprint " in capsys.readouterr().err
    # One from before contents were kept is known by names alone, and goes on.
    del index["setting"]["contents"]
    (first / INDEX).write_text(json.dumps(index))
    shutil.rmtree(next(path for path in out.iterdir() if path != first))
    assert (
        command(
            *words,
            "--trainer.default_root_dir",
            tmp_path / "run",
            "--trainer.max_steps",
            1,
            "--overwrite",
            "true",
        )
        == 0
    )


def test_files_are_read_once(root, monkeypatch, tmp_path):
    data = DistillationData(FolderSource, root=str(root), image_size=32)
    read = []
    original = FolderSource.sha256
    monkeypatch.setattr(
        FolderSource, "sha256", lambda self, item: read.append(item.key) or original(self, item)
    )
    first = data.fingerprints
    assert len(read) == 20
    assert set(first) == {"format", "train", "selection", "test"}
    again = DistillationData(FolderSource, root=str(root), image_size=64)
    assert again.fingerprints == first
    assert len(read) == 20
    shutil.rmtree(tmp_path / "home" / ".cache")
    assert DistillationData(FolderSource, root=str(root)).fingerprints == first
    assert len(read) == 40
    again.setup()
    assert set(again.fingerprints) - set(first) == {"core_set"}


def test_a_home_that_cannot_be_written_is_no_obstacle(root, tmp_path):
    (tmp_path / "home").touch()
    assert DistillationData(FolderSource, root=str(root)).fingerprints["test"]


def test_only_what_both_know_is_compared():
    now = {"format": "2", "train": "a", "test": "b"}
    assert differences(None, now) == differences({"format": "1", "test": "x"}, now) == []
    assert differences({"format": "2", "test": "b", "core_set": "z"}, now) == []
    assert differences({"format": "2", "train": "q"}, now) == [
        "the training images: fingerprint then q, now a"
    ]


def test_a_federation_goes_on_with_its_own_images_alone(root, tmp_path, capsys):
    out = tmp_path / "federation"
    words = ["federate", *FIT[1:], "--data.root", root, "--trainer.limit_val_batches", 0]
    words += ["--trainer.max_steps", 1, "--subtasks", 2, "--out", out]
    assert command(*words) == 0
    merged = (out / "distilled" / "manifest.json").read_bytes()
    capsys.readouterr()
    one_pixel(root)  # of the second class
    assert command(*words) == 2
    assert "sub-task 1 was distilled from other images" in capsys.readouterr().err
    assert (out / "distilled" / "manifest.json").read_bytes() == merged
    assert command(*words, "--overwrite", "true") == 0
