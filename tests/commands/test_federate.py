"""`latentdd federate`: in this process, on Ray with a worker killed, as SLURM files; failures and refusals."""

import csv
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from PIL import Image
from small_world import protocol_file

from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.commands.federate import split
from ldd.disk.files import sha256
from ldd.distiller.synthesis import StoredSampler
from ldd.federation import ray_engine
from ldd.federation.folder import Federation
from ldd.runs.history import recorded_commands
from ldd.runtime.seeding import generator
from ldd.students import training_set

ROOT = Path(__file__).parents[2]
DIGITS = '["digit-0", "digit-1", "digit-4", "digit-7"]'
SMALL = [
    *("--config", "configs/quickstart.yaml", "--model.prior", "configs/prior/pixel.yaml"),
    *("--data.subset", DIGITS, "--trainer.enable_progress_bar", "false", "--checkpoint.every_n_steps", "1"),
    *(
        "--model.objective.init_args.real_batch",
        "4",
        "--model.objective.init_args.network.init_args.width",
        "8",
    ),
]


@pytest.fixture(autouse=True)
def _at_home(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["latentdd"])


def federate(out, *arguments, steps=2):
    return cli.main(["federate", *SMALL, "--trainer.max_steps", str(steps), "--out", str(out), *arguments])


def same(one, other):
    """Images, labels and codes, byte for byte."""
    return all(
        sha256(one / name) == sha256(other / name) for name in ("images.safetensors", "codes.safetensors")
    )


def test_options_of_the_recipe_are_told_apart():
    words = [
        "--out",
        "d",
        "--data.root",
        "r",
        "--workers",
        "2",
        "--data.subset",
        "[a, b]",
        "--only=3",
        "--",
        "--x=5",
    ]
    own, others = split(words, {"--out", "--workers", "--only"})
    assert own == ["--out", "d", "--workers", "2", "--only=3"]
    assert others == ["--data.root", "r", "--data.subset", "[a, b]", "--x=5"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two sub-tasks of two digits in this process, evaluated."""
    out = tmp_path_factory.mktemp("federated") / "out"
    evaluation = ["--evaluation.protocol", protocol_file(out.parent, epochs=2), "--evaluation.repeats", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["latentdd"])
        assert federate(out, "--subtasks", "2", *evaluation, "--evaluation.num_workers", "1") == 0
    return out, evaluation


def test_a_run_folder_over_all_classes(done):
    out, _ = done
    merged = DistilledSet.load(out)
    assert [info.wnid for info in merged.classes] == ["digit-0", "digit-1", "digit-4", "digit-7"]
    assert merged.labels.tolist() == [0, 1, 2, 3]
    for number in (0, 1):
        part = DistilledSet.load(out / "subtasks" / str(number))
        assert torch.equal(merged.images[2 * number : 2 * number + 2], part.images)
        assert torch.equal(merged.codes["latents"][2 * number : 2 * number + 2], part.codes["latents"])
        assert part.manifest["seed"] == number
    summary = json.loads((out / "evaluation.json").read_text())
    assert set(summary["accuracy"]) == {"distilled", "random_real", "full_real"}
    assert summary["subtasks"] == 2
    assert summary["test_split_fingerprint"] == merged.manifest["test_split_fingerprint"]
    assert (out / "config.yaml").is_file()
    first = recorded_commands(out)[0].command
    assert first.startswith("latentdd federate --config configs/quickstart.yaml ")
    assert "--out out --subtasks 2 --evaluation.protocol " in first
    assert str(out.parent) not in first
    partition = json.loads((out / "partition.json").read_text())
    assert partition == {"rule": "contiguous", "blocks": [["digit-0", "digit-1"], ["digit-4", "digit-7"]]}


def d3_recipe(folder):
    """That of the digits with tiny networks and decoder, two Gaussians a class, and two experts of two epochs."""
    recipe = yaml.safe_load((ROOT / "configs" / "d3_digits.yaml").read_text())
    tiny = {"class_path": "ldd.networks.ConvNet", "init_args": {"width": 4, "depth": 2}}
    read = {"network": tiny, "trajectories": str(folder / "experts")}
    model = recipe["model"]
    model["prior"]["init_args"] |= {"width": 8, "latent_width": 4}
    model |= {"images_per_class": 2, "labels": {**model["labels"], "init_args": {**read, "epoch": 2}}}
    for section in ("codes", "initializer"):
        model[section] = str(ROOT / "configs" / model[section])
    matching, mmd = (objective["init_args"] for objective in model["objective"]["init_args"]["objectives"])
    matching |= {**read, "expert_epochs": 1, "max_start_epoch": 2, "syn_steps": 2, "batch_syn": 4}
    mmd |= {**read, "samples": 4}
    recipe["trainer"] |= {"max_steps": 2, "enable_progress_bar": False}
    recipe["data"] = {"source": "ldd.data.DigitsSource", "image_size": 32, "subset": json.loads(DIGITS)}
    recipe["experts"] = {"num_experts": 2, "epochs": 2}
    recipe["evaluation"] = {
        "protocol": protocol_file(folder, epochs=2),
        "repeats": 1,
        "num_workers": 1,
        "budgets": [1],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_d3_in_two_subtasks(tmp_path):
    """Experts of each sub-task, a decoder of each, one expert of the whole task, whose labels cover all classes."""
    out = tmp_path / "out"
    assert (
        cli.main(["federate", "--config", str(d3_recipe(tmp_path)), "--subtasks", "2", "--out", str(out)])
        == 0
    )
    merged, parts = DistilledSet.load(out), [DistilledSet.load(out / "subtasks" / k) for k in "01"]
    assert merged.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for number, part in enumerate(parts):
        assert part.soft_labels is None, "distilled with hard ones"
        for name, tensor in part.decoder.items():
            assert torch.equal(merged.decoder[f"{number}.{name}"], tensor)
    assert merged.soft_labels.shape == (8, 4)
    assert (merged.soft_labels > 0).all()
    assert torch.equal(StoredSampler(merged)(None), merged.images)
    assert (StoredSampler(merged)(generator(0)) != merged.images).any(), "codes have a spread"
    recordings = [json.loads(path.read_text()) for path in (tmp_path / "experts").glob("*/index.json")]
    experts = sorted((len(found["setting"]["classes"]), found["num_experts"]) for found in recordings)
    assert experts == [(2, 2), (2, 2), (4, 1)], "labels need one expert of the whole task"
    summary = json.loads((out / "evaluation.json").read_text())
    kinds, endings = ("random", "nearest", "easy"), ("", "_soft", "_bytes", "_bytes_steps", "_bytes_soft")
    real = {f"{kind}_real{ending}" for kind in kinds for ending in endings}
    nested = {"distilled_ipc1", "random_real_ipc1"}
    own, full = {"distilled", "distilled_hard"}, {"full_real", "full_real_steps"}
    assert set(summary["accuracy"]) == own | nested | real | full
    assert "DeconvolutionPrior has no diffusion model" in summary["left_out"]["prior_samples"]
    costs, of_parts = ([found.manifest["ledger"]["stages"] for found in sets] for sets in ([merged], parts))
    assert costs[0].keys() == {"experts", "distil", "label", "evaluate"}
    assert all(figure is not None for figures in costs[0].values() for figure in figures.values())
    for figure in ("seconds", "steps"):
        assert costs[0]["distil"][figure] == pytest.approx(sum(found["distil"][figure] for found in of_parts))
        beside = costs[0]["experts"][figure] - sum(found["experts"][figure] for found in of_parts)
        assert beside > 0, "the expert of the whole task"
    assert costs[0]["evaluate"]["students"] == len(rows(out))


def test_again_does_nothing(done, capsys):
    out, evaluation = done
    before = {path: path.stat().st_mtime_ns for path in (out / "subtasks").rglob("*") if path.is_file()}
    assert federate(out, "--subtasks", "2", *evaluation, "--evaluation.num_workers", "1") == 0
    assert "evaluated already" in capsys.readouterr().out
    assert before == {
        path: path.stat().st_mtime_ns for path in (out / "subtasks").rglob("*") if path.is_file()
    }
    assert cli.main(["federate", "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model.images_per_class", "2"], "model.images_per_class: 1 -> 2"),
        (["--trainer.max_steps", "500"], "trainer.max_steps: 2 -> 500"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision: None -> 'bf16-mixed'"),
        (["--experts.num_experts", "50"], "experts.num_experts: 0 -> 50"),
        (["--data.subset", '["digit-0", "digit-1"]'], "data.subset: ['digit-0', "),
        (["--seed_everything", "3"], "seed_everything: 0 -> 3"),
        (["--subtasks", "4"], "holds a federation of 2 sub-tasks, contiguous"),
    ],
)
def test_other_subtasks_are_refused(done, capsys, change, message):
    out, evaluation = done
    before = (out / "config.yaml").read_bytes()
    assert federate(out, "--subtasks", "2", *evaluation, *change) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "choose another folder, or replace it with --overwrite" in error
    assert (out / "config.yaml").read_bytes() == before


@pytest.fixture
def copy(done, tmp_path):
    """A folder of its own with the federation that is done, and the options of its evaluation."""
    out, evaluation = done
    shutil.copytree(out, tmp_path / "copy")
    return tmp_path / "copy", [*evaluation, "--evaluation.num_workers", "1"]


def rows(out):
    return list(csv.DictReader((out / "evaluation.csv").open(newline="")))


def test_another_protocol_is_evaluated_beside_the_first(copy, capsys):
    """Sub-tasks keep their results, and the merged set's cost is that of both evaluations."""
    out, evaluation = copy
    sets = {path: path.read_bytes() for path in (out / "subtasks").rglob("distilled/*")}
    first = rows(out)
    other = protocol_file(out.parent, epochs=3, id="other")
    assert federate(out, "--subtasks", "2", *evaluation, "--evaluation.protocol", other) == 0
    printed = capsys.readouterr().out
    assert f"-> '{other}'" in printed
    assert "evaluated already" not in printed
    assert {row["protocol"] for row in rows(out)} == {"small", "other"}
    assert [row for row in rows(out) if row["protocol"] == "small"] == first
    assert sets == {path: path.read_bytes() for path in (out / "subtasks").rglob("distilled/*")}
    assert yaml.safe_load((out / "config.yaml").read_text())["evaluation"]["protocol"] == other
    spent = DistilledSet.load(out).manifest["ledger"]["stages"]["evaluate"]
    assert spent["students"] == len(rows(out))
    assert spent["seconds"] == pytest.approx(sum(float(row["seconds"]) for row in rows(out)))
    assert cli.main(["federate", "--out", str(out)]) == 0
    assert "evaluated already" in capsys.readouterr().out
    assert DistilledSet.load(out).manifest["ledger"]["stages"]["evaluate"] == spent


def test_more_repeats_are_trained(copy, capsys):
    out, evaluation = copy
    assert federate(out, "--subtasks", "2", *evaluation, "--evaluation.repeats", "2") == 0
    assert "settings from now on: evaluation.repeats: 1 -> 2" in capsys.readouterr().out
    assert sum(row["set"] == "distilled" for row in rows(out)) == 2


def test_an_evaluation_that_can_only_fail_is_not_adopted(copy, capsys):
    out, evaluation = copy
    before = (out / "config.yaml").read_bytes()
    assert federate(out, "--subtasks", "2", *evaluation, "--evaluation.protocol", "rded-soft") == 2
    assert "has the labels of a teacher" in capsys.readouterr().err
    assert (out / "config.yaml").read_bytes() == before


def test_a_cache_of_the_data_is_used(copy, tmp_path, capsys):
    """No result depends on it, so that nothing is evaluated again; what is still to do reads it."""
    out, evaluation = copy
    cache = tmp_path / "cache"
    assert federate(out, "--subtasks", "2", *evaluation, "--data.cache_dir", str(cache)) == 0
    assert "evaluated already" in capsys.readouterr().out
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["cache_dir"] == str(cache)
    assert cli.main(["federate", "--out", str(out), "--evaluation.repeats", "2"]) == 2
    assert "give --config" in capsys.readouterr().err


def test_data_that_lie_elsewhere(tmp_path, capsys):
    """Another data.root is taken where it has the classes of the sub-tasks."""
    roots = [tmp_path / name for name in ("here", "there", "others")]
    for root in roots:
        names = "cd" if root.name == "others" else "ab"
        for part, name in itertools.product(("train", "val"), names):
            (root / part / name).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (32, 32), (30 * number, 80, 10)).save(root / part / name / f"{number}.png")
    out = tmp_path / "out"
    options = ["--subtasks", "2", "--data.source", "ldd.data.FolderSource", "--data.subset", "null"]
    options += ["--trainer.limit_val_batches", "0"]
    for root, code in zip(roots, (0, 0, 2), strict=True):
        assert federate(out, *options, "--engine", "slurm", "--data.root", str(root)) == code
    assert f"data.root ({roots[2]}) has other classes than its sub-tasks" in capsys.readouterr().err
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["root"] == str(roots[1])
    shutil.rmtree(roots[0])
    assert cli.main(["federate", "--out", str(out)]) == 0
    assert DistilledSet.load(out).num_classes == 2


def test_settings_change_where_paths_mean_the_same(copy, monkeypatch, capsys):
    out, evaluation = copy
    monkeypatch.chdir(out.parent)
    shutil.copytree(ROOT / "configs", out.parent / "configs")
    assert federate(out, "--subtasks", "2", *evaluation, "--evaluation.repeats", "2") == 2
    assert f"was planned in {ROOT}" in capsys.readouterr().err


def test_joint_steps_go_on_from_the_merged_codes(copy, tmp_path, capsys):
    """Added to a federation that is done, they are a run over all classes from the merged set; killed, they go on."""
    out, evaluation = copy
    parts = {path: sha256(path) for path in (out / "subtasks").rglob("distilled/*.safetensors")}
    shutil.copytree(out / "distilled", tmp_path / "merged")
    command = ["--subtasks", "2", *evaluation, "--joint_steps", "2"]
    assert federate(out, *command) == 0
    printed = capsys.readouterr().out
    assert "settings from now on: joint_steps: 0 -> 2" in printed
    assert "4 images of 4 classes, 2 steps together" in printed
    assert parts == {path: sha256(path) for path in parts}
    start = {"class_path": "ldd.initializers.StoredCodes", "init_args": {"path": str(tmp_path / "merged")}}
    plain = ["--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path / "plain")]
    plain += ["--trainer.limit_val_batches", "0", "--model.initializer", json.dumps(start)]
    assert cli.main(["fit", *SMALL, *plain]) == 0
    assert same(out / "distilled", tmp_path / "plain" / "distilled")
    assert not same(out / "distilled", tmp_path / "merged")
    manifest, [row] = (
        DistilledSet.load(out).manifest,
        [row for row in rows(out) if row["set"] == "distilled"][:1],
    )
    assert (manifest.step, manifest.joint_steps, row["step"]) == (4, 2, "4")
    assert [part.classes for part in manifest.subtasks] == [("digit-0", "digit-1"), ("digit-4", "digit-7")]
    assert manifest.ledger.stages["distil"]["steps"] == 6, "of two sub-tasks and of all together"
    assert manifest.config["model"]["initializer"] is None, "the recipe's"
    assert cli.main(["status", str(out), "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(Path(job["folder"]).name, job["state"], job["step"]) for job in jobs][2:] == [
        ("joint", "finished", 2),
        (out.name, "finished", 3),
    ]
    joint = out / "subtasks" / "joint"
    (joint / "finished").unlink()
    (joint / "checkpoints" / "last.ckpt").unlink()
    shutil.rmtree(joint / "distilled")
    shutil.rmtree(out / "distilled")
    assert cli.main(["federate", "--out", str(out)]) == 0
    assert same(out / "distilled", tmp_path / "plain" / "distilled")
    assert federate(out, "--subtasks", "2", *evaluation, "--joint_steps", "3") == 2
    assert "holds a federation of 2 sub-tasks, contiguous, 2 joint steps; choose" in capsys.readouterr().err


def test_each_subtask_learns_other_classes_too(tmp_path, capsys):
    """They take part in its run, and what it has made of them is left out; the manifest says so."""
    out, quiet = tmp_path / "out", ["--subtasks", "2", "--trainer.limit_val_batches", "0"]
    assert federate(out, *quiet, "--overlap", "1") == 0
    merged, parts = DistilledSet.load(out), [DistilledSet.load(out / "subtasks" / k) for k in "01"]
    [first], [second] = json.loads((out / "partition.json").read_text())["others"]
    assert [[info.wnid for info in part.classes] for part in parts] == [
        ["digit-0", "digit-1", first],
        ["digit-4", "digit-7", second],
    ]
    for name in ("latents", "conditioning"):
        tensors = [part.codes[name][:2] for part in parts if name in part.codes]
        assert not tensors or torch.equal(merged.codes[name], torch.cat(tensors))
    assert torch.equal(merged.images, torch.cat([part.images[:2] for part in parts]))
    assert [part.others for part in merged.manifest.subtasks] == [(first,), (second,)]
    assert federate(out, *quiet) == 2
    assert (
        "holds a federation of 2 sub-tasks, contiguous, 1 classes of others each" in capsys.readouterr().err
    )
    plain = ["--data.subset", json.dumps(["digit-0", "digit-1", first]), "--trainer.limit_val_batches", "0"]
    plain += ["--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path / "plain")]
    assert cli.main(["fit", *SMALL, *plain]) == 0
    assert same(out / "subtasks" / "0" / "distilled", tmp_path / "plain" / "distilled")


def test_one_decoder_for_all_subtasks(tmp_path):
    """From a short run over all classes, kept where the objective does not move it, and stored once."""
    recipe = d3_recipe(tmp_path)
    quiet = ["--model.labels", "null", "--trainer.limit_val_batches", "0"]
    first, out = tmp_path / "first", tmp_path / "out"
    assert cli.main(["fit", "--config", str(recipe), *quiet, "--trainer.default_root_dir", str(first)]) == 0
    content = yaml.safe_load(recipe.read_text())
    for objective in content["model"]["objective"]["init_args"]["objectives"]:
        objective["init_args"]["lr_decoder"] = 0.0
    stored = {"class_path": "ldd.initializers.StoredCodes", "init_args": {"path": str(first)}}
    content["model"]["initializer"] = stored
    recipe.write_text(yaml.safe_dump(content))
    command = ["federate", "--config", str(recipe), "--subtasks", "2", "--out", str(out), *quiet]
    assert cli.main([*command, "--joint_steps", "1"]) == 0
    decoder, begun = DistilledSet.load(first).decoder, DistilledSet.load(first).codes["latents"]
    for place in (out, out / "subtasks" / "0", out / "subtasks" / "joint" / "start"):
        own = DistilledSet.load(place).decoder
        assert own.keys() == decoder.keys()
        assert all(torch.equal(own[name], decoder[name]) for name in decoder)
    merged, start = DistilledSet.load(out), DistilledSet.load(out / "subtasks" / "joint" / "start")
    assert torch.equal(StoredSampler(merged)(None), merged.images)
    assert torch.equal(StoredSampler(start)(None), start.images)
    for one, other in ((begun, start.codes["latents"]), (start.codes["latents"], merged.codes["latents"])):
        assert (one != other).flatten(1).any(1).all(), "every Gaussian is learned"


def test_joint_steps_that_cannot_be_had(tmp_path, capsys):
    command = [
        "federate",
        "--config",
        str(d3_recipe(tmp_path)),
        "--joint_steps",
        "1",
        "--out",
        str(tmp_path / "d3"),
    ]
    assert cli.main([*command, "--subtasks", "2"]) == 2
    assert (
        "--joint_steps (1) need one decoder, and each sub-task would train its own" in capsys.readouterr().err
    )
    assert not (tmp_path / "d3").exists()


def test_one_subtask_is_a_plain_run(tmp_path):
    quiet = ["--trainer.limit_val_batches", "0"]
    assert federate(tmp_path / "one", "--subtasks", "1", *quiet) == 0
    plain = ["--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path / "plain"), *quiet]
    assert cli.main(["fit", *SMALL, *plain]) == 0
    assert same(tmp_path / "one" / "distilled", tmp_path / "plain" / "distilled")
    assert not (tmp_path / "one" / "evaluation.json").exists(), "switched off by the recipe"


def test_a_failed_subtask_is_reported_and_runs_again_alone(tmp_path, capsys):
    out, quiet = tmp_path / "out", ["--trainer.limit_val_batches", "0", "--subtasks", "2"]
    obstacle = out / "subtasks" / "1"
    assert federate(out, *quiet, "--engine", "slurm") == 0, "plans without running"
    obstacle.parent.mkdir()
    obstacle.write_text("in the way")
    assert federate(out, *quiet) == 2
    message = capsys.readouterr().err
    assert "1 of 2 jobs failed: 1 (exit code 1" in message
    assert "--only 1" in message
    assert (out / "subtasks" / "0" / "distilled").is_dir(), "the other one ran"
    assert not (out / "distilled").exists()
    obstacle.unlink()
    assert cli.main(["federate", "--out", str(out), "--only", "1"]) == 0
    assert cli.main(["federate", "--out", str(out)]) == 0
    assert DistilledSet.load(out).num_classes == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subtasks", "5"], r"--subtasks (5) must lie in 1..4"),
        (["--subtasks", "0"], "--subtasks (0) must be at least 1"),
        ([], "--config and --subtasks belong together"),
        (["--subtasks", "2", "--workers", "-1"], "--workers (-1) must be at least 0"),
        (["--subtasks", "2", "--address", "auto"], "needs --workers"),
        (["--subtasks", "2", "--cpus_per_job", "0"], "--cpus_per_job (0)"),
        (["--subtasks", "2", "--only", "0"], "leave --config and other options out"),
        (["--subtasks", "2", "--overlap", "3"], "--overlap (3) must lie in 0..2"),
        (["--subtasks", "2", "--overlap", "-1"], "overlap (-1) must be at least 0"),
        (["--subtasks", "2", "--joint_steps", "-1"], "joint_steps (-1) must be at least 0"),
        (["--subtasks", "1", "--joint_steps", "5"], "raise trainer.max_steps instead"),
        (
            ["--subtasks", "2", "--joint_steps", "5", "--model.codes", "ldd.codes.PackedCodes"],
            "codes, which packed sets do not keep",
        ),
    ],
)
def test_refusals(tmp_path, capsys, arguments, message):
    assert federate(tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--evaluation.protocol", "rded-soft"],
            "has the labels of a teacher for every crop, and there is none",
        ),
        (["--evaluation.baselines", "[{class_path: ldd.evaluation.PriorSamples}]"], "cannot sample"),
        (
            [
                "--evaluation.baselines",
                "[{class_path: ldd.evaluation.RandomReal, init_args: {images_per_class: 999}}]",
            ],
            "random_real_ipc999: images per class (999) is more than the",
        ),
        (
            ["--evaluation.baselines", "[{class_path: ldd.evaluation.EqualBytes, init_args: {soft: true}}]"],
            "random_real_bytes_soft needs what labelled the distilled set",
        ),
        (
            ["--model.labels", "configs/labels/expert.yaml", "--model.labels.trajectories", "nowhere"],
            "nowhere",
        ),
        (["--evaluation.budgets", "[2]"], "budget 2: the set's classes have 1 images or more"),
    ],
)
def test_an_evaluation_that_can_only_fail_is_refused_first(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(training_set, "free_bytes", lambda device: 2**20)
    assert federate(tmp_path / "out", "--subtasks", "2", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing was planned, nothing run"


def test_what_can_be_had_is_planned(tmp_path):
    """Soft labels of an expert that is not there yet, bytes of two decoders; SLURM evaluates elsewhere."""
    out, recipe = tmp_path / "out", d3_recipe(tmp_path)
    content = yaml.safe_load(recipe.read_text())
    soft = {"class_path": "ldd.evaluation.EqualBytes", "init_args": {"soft": True}}
    content["evaluation"]["baselines"] = [{"class_path": "ldd.evaluation.RandomReal"}, soft]
    recipe.write_text(yaml.safe_dump(content))
    command = ["federate", "--config", str(recipe), "--subtasks", "2", "--out", str(out)]
    assert cli.main([*command, "--engine", "slurm"]) == 0
    job = Federation.load(out).job("experts")
    assert job.results == (out / "subtasks" / "experts", tmp_path / "experts"), "what another disk sends back"
    content["evaluation"]["budgets"] = [3]
    recipe.write_text(yaml.safe_dump(content))
    assert cli.main(command) == 2, "refused now that the plan has jobs left"
    assert yaml.safe_load((out / "config.yaml").read_text())["evaluation"]["budgets"] == [1]


def test_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear")
    for extra in ([], ["--overwrite"]):
        assert federate(tmp_path, "--subtasks", "2", *extra) == 2
        assert "holds files that are no federation" in capsys.readouterr().err
    assert (tmp_path / "letter.txt").exists()
    assert cli.main(["federate", "--out", str(tmp_path)]) == 2
    assert "holds no federation" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\ntouch x #", "a\rb", "a\x1bb", "a\x7f"])
def test_slurm_refuses_a_folder_that_would_end_its_comments(tmp_path, name, capsys):
    assert federate(tmp_path / name, "--subtasks", "2", "--engine", "slurm") == 2
    assert "has control characters in its path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_slurm_files(tmp_path, done):
    """The array's script, run by bash as SLURM would run its task; of finished sub-tasks it holds the first only."""
    out, _ = done
    copy = tmp_path / "a copy, 100%"
    shutil.copytree(out, copy)
    needs = ["--cpus_per_job", "3", "--memory_per_job", "1.5"]
    plan = json.loads((copy / "federation.json").read_text())
    (copy / "federation.json").write_text(json.dumps({**plan, "joint_steps": 1}))
    assert cli.main(["federate", "--out", str(copy), "--engine", "slurm", *needs]) == 0
    script = (copy / "slurm" / "jobs.sbatch").read_text()
    for line in (
        "#SBATCH --array=0-0",
        "#SBATCH --cpus-per-task=3",
        "#SBATCH --mem=1536M",
        "#SBATCH --requeue",
        "OMP_NUM_THREADS",
    ):
        assert line in script
    assert "#SBATCH --mem=1536M\n" in script
    assert "--gres" not in script, "the recipe runs on the CPU"
    words = [shlex.split(line) for line in script.splitlines() if line.startswith("#SBATCH")]
    assert ["#SBATCH", "--job-name=latentdd-a copy, 100%"] in words
    assert ["#SBATCH", f"--output={tmp_path}/a copy, 100%%/slurm/%a.log"] in words
    assert f"--out '{copy}' --only 0" in script
    assert "joint" not in script, "the joint steps are the last job's, after all others"
    last = (copy / "slurm" / "last.sbatch").read_text()
    assert f"federate --out '{copy}'\n" in last
    assert os.access(copy / "slurm" / "submit.sh", os.X_OK)
    for name in ("jobs.sbatch", "last.sbatch", "submit.sh"):
        assert subprocess.run(["bash", "-n", copy / "slurm" / name], check=False).returncode == 0
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "0", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        ["bash", copy / "slurm" / "jobs.sbatch"], env=environment, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_cluster_of_its_own_beside_others(monkeypatch):
    """Neither RAY_ADDRESS nor a cluster that `ray start` has left running is connected to without --address."""
    ray = pytest.importorskip("ray")
    asked = []
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "init", lambda **options: asked.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for address in (None, "auto"):
        with ray_engine._cluster(ray, address, 3):
            pass
    assert (asked[0]["address"], asked[0]["num_cpus"]) == ("local", 3)
    assert asked[1]["address"] == "auto"
    assert "num_cpus" not in asked[1], "those of the cluster"


def job_of(out, name):
    """The process of one job, or None."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(out) in words and "--only" in words and words[words.index("--only") + 1] == name:
            return process
    return None


def test_ray_with_a_killed_worker(tmp_path):
    """Two workers; that of sub-task 0 is killed in the middle: the result is that of an undisturbed run."""
    pytest.importorskip("ray")
    quiet, steps = ["--trainer.limit_val_batches", "0", "--subtasks", "2", "--joint_steps", "2"], 100
    out = tmp_path / "ray"
    command = [
        "federate",
        *SMALL,
        *quiet,
        "--trainer.max_steps",
        str(steps),
        "--workers",
        "2",
        "--out",
        str(out),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    driver = subprocess.Popen([sys.executable, "-m", "ldd", *command], env=environment, **pipes)
    checkpoint = out / "subtasks" / "0" / "checkpoints" / "previous.ckpt"
    while not checkpoint.is_file() and driver.poll() is None:
        time.sleep(0.02)
    job = job_of(out, "0")
    assert job is not None, driver.communicate()[0]
    worker = job.parent()
    assert "ray" in " ".join(worker.cmdline())
    worker.send_signal(signal.SIGKILL)
    text, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, text
    assert not job.is_running(), "a job does not outlive its worker"
    assert (out / "subtasks" / "joint" / "output.log").is_file(), "the joint steps are a job of Ray's, too"
    log = (out / "subtasks" / "0" / "output.log").read_text()
    assert "Restor" in log or "resum" in log.lower(), log
    assert federate(tmp_path / "here", *quiet, steps=steps) == 0
    assert same(out / "distilled", tmp_path / "here" / "distilled")
