"""Runs beside Lightning's own callbacks and switches, and what is refused before anything is decoded."""

from pathlib import Path

import pytest
import torch
import yaml
from small_runs import ROOT

from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData

PIXELS = [
    *("--config", ROOT / "configs" / "quickstart.yaml", "--model.prior", ROOT / "configs" / "prior" / "pixel.yaml"),
    *("--model.objective.lr_latents", 2, "--model.objective.real_batch", 2, "--model.objective.network.width", 8),
    *("--trainer.max_steps", 1, "--trainer.enable_progress_bar", "false"),
]  # fmt: skip


@pytest.mark.parametrize("below", [None, "mine"])
def test_lightnings_own_checkpoints_are_written_beside_ours(home, small, call, below):
    where = () if below is None else ("--trainer.callbacks.dirpath=~/mine",)
    often = ("--trainer.callbacks.every_n_train_steps", 1, "--trainer.callbacks.save_top_k", -1)
    code, said = call(
        *("fit", *small, "--trainer.default_root_dir=~/run", "--trainer.max_steps", 2),
        *("--trainer.callbacks", "ModelCheckpoint", *often, *where),
    )
    assert code == 0, said
    folder = home / "run" / "logs" / "version_0" / "checkpoints" if below is None else home / below
    theirs = torch.load(folder / "epoch=0-step=2.ckpt", weights_only=True)
    ours = torch.load(home / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.equal(theirs["state_dict"]["codes.latents"], ours["state_dict"]["codes.latents"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("GradientAccumulationScheduler", {"scheduling": {0: 2}}),
        ("BatchSizeFinder", {}),
        ("LearningRateFinder", {}),
        ("ModelPruning", {"pruning_fn": "l1_unstructured"}),
        ("BackboneFinetuning", {}),
        ("SpikeDetection", {}),
        ("WeightAveraging", {}),
    ],
)
def test_callbacks_that_need_lightnings_own_steps_are_refused_by_name(home, small, call, name, arguments):
    callback = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}
    (home / "recipe.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    code, said = call("fit", *small, "--config=~/recipe.yaml", "--trainer.default_root_dir=~/run")
    assert code == 2, said
    assert f"trainer.callbacks ({name}) changes how Lightning optimises" in said
    assert not (home / "run").exists()


@pytest.mark.parametrize(
    ("size", "evaluation", "text"),
    [
        (100, {"protocol": "ld3m"}, "network ViT: patch_size 12 does not divide image_size 100"),
        (36, {"protocol": "quick"}, "network "),
        (32, {"networks": {"V": {"class_path": "ldd.networks.ViT", "init_args": {"patch_size": 7}}}}, "network V: "),
        (32, {"networks": {"D": {"class_path": "ldd.networks.ConvNet", "init_args": {"depth": 9}}}}, "network D: "),
        (32, {"networks": {}}, "evaluation.networks ({}) is empty; name at least one"),
        (32, {"protocol": {"ldd.networks.ConvNett": {}}}, "ConvNett"),
        (32, {"protocol": {"ldd.networks.ConvNet": {"widht": 8}}}, "widht"),
    ],
)  # fmt: skip
def test_networks_are_built_before_anything_is_decoded(home, call, monkeypatch, size, evaluation, text):
    if isinstance(evaluation.get("protocol"), dict):
        ((path, arguments),) = evaluation["protocol"].items()
        quick = yaml.safe_load((ROOT / "ldd/students/protocols/quick.yaml").read_text())
        networks = {"A": {"class_path": path, "init_args": arguments}}
        (home / "protocol.yaml").write_text(yaml.safe_dump({**quick, "id": "mine", "networks": networks}))
        evaluation = {"protocol": "~/protocol.yaml"}
    (home / "evaluation.yaml").write_text(yaml.safe_dump({"evaluation": evaluation}))

    def no_data(self, stage=None):
        raise AssertionError("decoded")

    monkeypatch.setattr(DistillationData, "setup", no_data)
    sizes = ("--data.image_size", size, "--model.prior.image_size", size)
    code, said = call(
        "fit", *PIXELS, *sizes, "--config=~/evaluation.yaml", "--trainer.default_root_dir=~/run"
    )
    assert code == 2, said
    assert text in said
    assert not (home / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--model.objective.lr_latents", 1e39), "objective.lr_latents (1e+39) must be a number of 0"),
        (("--model.images_per_class", 10**9), "images_per_class (1000000000): the codes alone would not fit"),
    ],
)  # fmt: skip
def test_numbers_that_no_machine_holds(home, call, arguments, text):
    code, said = call("fit", *PIXELS, "--trainer.default_root_dir=~/run", *arguments)
    assert code == 2, said
    assert text in said


def test_a_try_of_lightnings_leaves_nothing(home, call):
    code, said = call("fit", *PIXELS, "--trainer.default_root_dir=~/run", "--trainer.fast_dev_run", "true")
    assert code == 0, said
    assert not list(home.iterdir())
    assert not list(Path.cwd().iterdir())


def test_an_evaluation_that_is_off_stays_off(home, call):
    off = ("--trainer.limit_val_batches", 0, "--trainer.overfit_batches", 1)
    code, said = call("fit", *PIXELS, "--trainer.default_root_dir=~/run", *off)
    assert code == 0, said
    assert DistilledSet.load(home / "run").manifest["step"] == 1
    assert not (home / "run" / "evaluation.csv").exists()


def test_codes_that_become_infinite_are_in_no_checkpoint(home, call):
    often = ("--checkpoint.every_n_steps", 1, "--trainer.max_steps", 5, "--trainer.limit_val_batches", 0)
    arguments = (
        "fit",
        *PIXELS,
        *often,
        "--trainer.default_root_dir=~/run",
        "--model.objective.lr_latents",
        1e38,
    )
    for resumed in ((), ("--ckpt_path", "last")):
        code, said = call(*arguments, *resumed)
        assert code == 2, said
        assert "after 2 steps the codes are infinite or NaN" in said
        saved = torch.load(home / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["global_step"] == 1
        assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert not list(home.rglob("*.tmp"))
