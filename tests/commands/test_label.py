"""Soft labels through the command line: in a run, on a set that is there, and in an evaluation."""

import json
import sys
from pathlib import Path

import pytest
import torch
from small_world import protocol_file

from ldd import cli
from ldd.artefact.set import DistilledSet

ROOT = Path(__file__).parents[2]
NETWORK = ["network.init_args.depth", "2", "network.init_args.width", "4"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of one step in pixels with labels of a tiny expert at epoch 2: its folder, and how to label."""
    folder = tmp_path_factory.mktemp("labels")
    data = ["--data.subset", '["digit-1", "digit-4"]', "--data.image_size", "32"]
    experts, protocol = str(folder / "experts"), protocol_file(folder, epochs=2)
    recorded = ["--config", "configs/experts/digits.yaml", "--num_experts", "1", "--out", experts, *data]
    labels = ["configs/labels/expert.yaml", "trajectories", experts, "epoch", "2", *NETWORK]

    def options(section):
        """`--labels FILE --labels.init_args.epoch 2 ...` under the name of an option."""
        file, *words = labels
        pairs = zip(words[::2], words[1::2], strict=True)
        return [
            section,
            file,
            *(part for name, value in pairs for part in (f"{section}.init_args.{name}", value)),
        ]

    fit = ["fit", "--config", "configs/ld3m_digits.yaml", "--model.prior", "configs/prior/pixel.yaml", *data]
    fit += [
        "--trainer.max_steps",
        "1",
        "--trainer.default_root_dir",
        str(folder / "run"),
        *options("--model.labels"),
    ]
    fit += ["--evaluation.protocol", protocol, "--evaluation.repeats", "1", "--evaluation.num_workers", "1"]
    fit += ["--evaluation.baselines", "null"]
    fit += [
        "--model.objective.init_args.real_batch",
        "4",
        "--model.objective.init_args.network.init_args.width",
        "8",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["latentdd"])
        narrow = [f"--{part}" if "." in part else part for part in NETWORK]
        assert cli.main(["experts", *recorded, *narrow]) == 0
        assert cli.main(fit) == 0
    return folder, data, protocol, options


@pytest.fixture(autouse=True)
def _at_home(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["latentdd"])


def test_a_run_with_labels(world):
    folder, *_ = world
    distilled = DistilledSet.load(folder / "run")
    assert distilled.soft_labels.shape == (2, 2)
    assert distilled.soft_labels.dtype == torch.float16
    assert distilled.manifest["labels"]["epoch"] == 2
    summary = json.loads((folder / "run" / "evaluation.json").read_text())
    kinds, endings = ("random", "nearest", "easy"), ("", "_soft", "_bytes", "_bytes_steps", "_bytes_soft")
    real = {f"{kind}_real{ending}" for kind in kinds for ending in endings}
    own = {"distilled", "distilled_hard", "initial"}
    assert set(summary["accuracy"]) == own | real | {"full_real", "full_real_steps"}
    assert summary["left_out"].keys() == {f"prior_samples{ending}" for ending in endings}
    cost = summary["cost"]
    assert cost["distilled"]["storage"]["bytes"] == 2 * (3072 + 8 + 4)
    assert cost["random_real_bytes_soft"]["storage"]["bytes"] == cost["distilled"]["storage"]["bytes"]
    assert summary["labels"]["expert"] == 0
    assert summary["unseen"] == {"narrow": False}, "the labels come from a network of this class"
    assert DistilledSet.load(folder / "run" / "initial").soft_labels is not None


def test_label_a_set_anew(world, tmp_path, capsys):
    folder, data, _, options = world
    out = tmp_path / "labelled"
    top = ["--labels.init_args.top_k", "1"]
    command = [
        "label",
        str(folder / "run"),
        "--data",
        "configs/data/digits.yaml",
        *data,
        *options("--labels"),
        *top,
    ]
    assert cli.main([*command, "--out", str(out)]) == 0
    assert "labelled by expert 0 at epoch 2" in capsys.readouterr().out
    labelled, before = DistilledSet.load(out), DistilledSet.load(folder / "run")
    assert labelled.label_top_k == 1
    assert torch.equal(labelled.images, before.images)
    assert torch.equal(labelled.soft_labels.argmax(1), before.soft_labels.argmax(1))
    assert labelled.bytes["labels"] == 2 * (8 + 2 + 2)


def test_evaluate_with_the_same_labels_or_not(world, tmp_path, capsys):
    folder, data, protocol, options = world
    command = [
        "evaluate",
        str(folder / "run"),
        "--data",
        "configs/data/digits.yaml",
        *data,
        *options("--labels"),
    ]
    command += [
        "--protocol",
        protocol,
        "--repeats",
        "1",
        "--num_workers",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main([*command, "--baselines", "random_real_bytes_soft"]) == 0
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "random_real_bytes_soft" in summary["accuracy"]
    assert cli.main([*command, "--labels.init_args.epoch", "1"]) == 2
    assert "other labels than the set has (epoch: 2, --labels: 1)" in capsys.readouterr().err


def test_labels_of_crops_serve_without_the_teacher(world, tmp_path, capsys):
    """Stored once, then an evaluation and a training read the file; another recipe is refused."""
    folder, data, _, options = world
    run, crops = str(folder / "run"), str(tmp_path / "crops.safetensors")
    recipe = {"labels": "teacher", "temperature": 4, "views": {"crop_scale": [0.5, 1.0]}, "augmentations": []}
    protocol = protocol_file(tmp_path, epochs=3, **recipe)
    digits = ["--data", "configs/data/digits.yaml", *data]
    form = ["--labels.init_args.top_k", "1", "--labels.init_args.precision", "int8"]
    command = ["label-crops", run, *digits, *options("--labels"), *form, "--protocol", protocol]
    assert cli.main([*command, "--out", crops]) == 0
    assert "labels of 3 x 2 crops, 18 bytes" in capsys.readouterr().out
    evaluate = ["evaluate", run, *digits, "--crop_labels", crops, "--repeats", "1", "--num_workers", "1"]
    out = str(tmp_path / "out")
    alone = [*evaluate, "--protocol", protocol, "--out", out]
    assert cli.main([*alone, "--baselines", "random_real"]) == 2
    assert "Labels of crops in store serve their own set alone" in capsys.readouterr().err
    assert cli.main(alone) == 0
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(summary["accuracy"]) == ["distilled"]
    assert summary["cost"]["distilled"]["storage"]["parts"]["labels"] == {"floats": 6, "bytes": 2 * 8 + 18}
    assert (summary["teacher"]["epoch"], summary["teacher"]["temperature"]) == (2, 4)
    assert summary["teacher"]["labelling"]["seconds"] > 0
    other = ["--labels.init_args.epoch", "1"]  # the run's own labels, of epoch 2, take no part
    asked = ["evaluate", run, *digits, *options("--labels"), *other, "--repeats", "1", "--num_workers", "1"]
    asked += ["--protocol", protocol, "--baselines", "", "--out", str(tmp_path / "asked")]
    assert cli.main(asked) == 0
    assert cli.main([*asked[:-1], out]) == 2  # beside the students of another teacher
    refusal = capsys.readouterr().err
    assert "with other soft labels (teacher: epoch then 2, now 1" in refusal
    assert "top_k then 1, now None; precision then 'int8', now 'float16')" in refusal
    train = ["train", run, "--network", "ldd.networks.ConvNet", "--crop_labels", crops]
    train += [
        *(f"--{part}" if "." in part else part for part in NETWORK),
        "--out",
        str(tmp_path / "n.safetensors"),
    ]
    assert cli.main([*train, "--protocol", protocol]) == 0
    protocol_file(tmp_path, epochs=2, **recipe)
    assert cli.main([*train, "--protocol", protocol]) == 2
    assert "small as it was before it was edited" in capsys.readouterr().err
