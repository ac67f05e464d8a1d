"""Paths have one spelling in every verb, and what Lightning or a class refuses is one line with its option."""

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

from ldd.artefact.set import DistilledSet
from ldd.errors import UserError
from ldd.runs.options import spell_paths


def test_the_home_folder_is_written_out_in_whatever_holds_a_path(home):
    options = Namespace(
        out="~/out",
        data=Namespace(root="~/data", subset=["~apple", "~/list.txt"], source={"more": Path("~/x")}),
        trainer=Namespace(callbacks=[Namespace(class_path="C", init_args=Namespace(dirpath="~/c"))], plugins=("~/p",)),
        relative="runs/x",
        number=3,
        name="a~/b",
    )  # fmt: skip
    spell_paths(options)
    assert options.out == f"{home}/out"
    assert options.data.root == f"{home}/data"
    assert options.data.subset == ["~apple", f"{home}/list.txt"]
    assert options.data.source == {"more": home / "x"}
    assert options.trainer.callbacks[0].init_args.dirpath == f"{home}/c"
    assert options.trainer.plugins == (f"{home}/p",)
    assert (options.relative, options.number, options.name) == ("runs/x", 3, "a~/b")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"data": {"root": "~nobody-of-that-name/x"}}, r"data.root \(~nobody-of-that-name/x\): there is no such user"),
        ({"data": {"root": "s3://bucket/x"}}, r"data.root \(s3://bucket/x\) must lie on this machine or be mounted"),
        ({"data": {"cache_dir": "s3://b/x"}}, r"data.cache_dir \(s3://b/x\) must lie on this machine or be mounted"),
        ({"trainer": {"default_root_dir": "s3://bucket"}}, r"default_root_dir \(s3://bucket\) must name a folder in a"),
    ],
)  # fmt: skip
def test_places_that_cannot_be_meant_are_refused(options, text):
    with pytest.raises(UserError, match=text):
        spell_paths(
            Namespace(**{k: Namespace(**v) if isinstance(v, dict) else v for k, v in options.items()})
        )


def test_a_folder_above_a_link_is_where_the_system_finds_it(tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep")
    options = Namespace(out=f"{tmp_path}/link/../run", other=Namespace(out="a/../b"))
    spell_paths(options)
    assert options.out == str(tmp_path / "disk" / "run")  # for Lightning it would be tmp_path/run
    assert options.other.out == "a/../b"


def test_a_run_below_the_home_folder_is_guarded_and_continued(home, small, call, tmp_path):
    recipe = tmp_path / "tilde.yaml"
    recipe.write_text("trainer:\n  default_root_dir: ~/runs/one\n")
    run = home / "runs" / "one"
    code, said = call("fit", *small, "--config", recipe, "--trainer.max_steps", 2)
    assert code == 0, said
    first = (run / "checkpoints" / "last.ckpt").read_bytes()
    there = "--trainer.default_root_dir=~/runs/one"
    code, said = call("fit", *small, there, "--trainer.max_steps", 2, "--seed_everything", 5)
    assert code == 2
    assert f"({run}) already holds a run" in said
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == first
    for word, steps in (("auto", 4), ("last", 6)):
        code, said = call("fit", *small, there, "--trainer.max_steps", steps, "--ckpt_path", word)
        assert code == 0, said
        previous = torch.load(run / "checkpoints" / "previous.ckpt", weights_only=True)
        assert previous["global_step"] == steps - 2  # so that it did not begin anew
    assert not list(Path.cwd().iterdir())


def test_every_verb_takes_the_home_folder(home, small, call):
    code, said = call("fit", *small, "--trainer.default_root_dir=~/run", "--trainer.max_steps", 0)
    assert code == 0, said
    moved = home / "set"
    DistilledSet.load(home / "run").save(moved)
    for arguments, made in (
        (("inspect", "~/set"), moved),
        (("export", "~/set", "--format", "pt", "--out=~/made/set.pt"), "made/set.pt"),
        (("import", "~/made/set.pt", "--out=~/imported"), "imported/manifest.json"),
        (("report", "~/run", "--out=~/made/r.html"), "made/r.html"),
        (("configs", "--copy=~/configs"), "configs/quickstart.yaml"),
        (("prior", "sample", "embedded:digits", "--out=~/g.png", "--per-class", 1, "--num-steps", 2), "g.png"),
        (("prune", "--data=~/configs/data/digits.yaml", "--pruner=~/configs/pruner/random.yaml",
          "--out=~/scores.parquet", "--lists=~/lists"), "scores.png"),
        (("sweep", "--config=~/configs/ablations/skip.yaml", "--out=~/sweep", "--dry_run", "true"), "set"),
    ):  # fmt: skip
        code, said = call(*arguments)
        assert code == 0, said
        assert (home / made).exists(), arguments
    assert f"--trainer.default_root_dir {home}/sweep" in said
    assert not list(Path.cwd().iterdir())


BAR = "lightning.pytorch.callbacks.RichProgressBar"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--trainer.accelerator", "nonsense"], "trainer.accelerator (nonsense): You selected an invalid accelerator"),
        (["--trainer.accelerator", "tpu"], "trainer.accelerator (tpu): "),
        (["--trainer.devices", 0], "trainer.devices (0): "),
        (["--trainer.strategy", "dpp"], "trainer.strategy (dpp): "),
        (["--trainer.strategy", "fsdp"], "trainer.strategy (fsdp): "),
        (["--trainer.precision", "transformer-engine"], "trainer.precision (transformer-engine): "),
        (["--trainer.profiler", "nonsense"], "trainer.profiler (nonsense): "),
        (["--trainer.barebones", "true"], "trainer.barebones (True): "),
        (["--trainer.enable_checkpointing", "false"], "trainer.enable_checkpointing (False): "),
        (["--trainer.max_steps", -5], "trainer.max_steps (-5): "),
        (["--trainer.max_time", "1:2"], "trainer.max_time (1:2): "),
        (["--trainer.limit_train_batches", 2.5], "trainer.limit_train_batches (2.5): "),
        (["--trainer.num_nodes", 0], "trainer.num_nodes (0): "),
        (["--trainer.callbacks", BAR], "trainer.enable_progress_bar (False): "),
        (["--trainer.logger", "WandbLogger"], "trainer.logger (lightning.pytorch.loggers.WandbLogger): Requirement"),
        (["--trainer.default_root_dir", "null"], "trainer.default_root_dir (null) must be a folder"),
        (["--trainer.gradient_clip_val", 1], "gradient_clip_val"),
        (["--seed_everything", -1], "seed_everything (-1) must be a number from 0 to 4294967295"),
        (["--seed_everything", 2**32], "seed_everything (4294967296) must be"),
    ],
)  # fmt: skip
def test_what_lightning_refuses_is_a_line_and_leaves_no_folder(home, small, call, arguments, text):
    code, said = call("fit", *small, "--trainer.default_root_dir", home / "run", *arguments)
    assert code == 2, said
    assert f"latentdd fit: error: {text}" in said or f"latentdd fit: error: trainer: {text}" in said.replace(
        "Automatic gradient clipping is not supported for manual optimization. Remove `Trainer(", ""
    )
    assert "Traceback" not in said
    assert not list(home.iterdir())


def test_lightnings_own_timer_is_written_into_the_recipe(home, small, call):
    code, said = call(
        *("fit", *small, "--trainer.default_root_dir=~/run", "--trainer.max_steps", 1),
        "--trainer.callbacks+=lightning.pytorch.callbacks.Timer",
    )
    assert code == 0, said
    (timer,) = yaml.safe_load((home / "run" / "config.yaml").read_text())["trainer"]["callbacks"]
    assert timer["init_args"]["interval"] == "step"


def test_a_defect_keeps_its_traceback_and_asks_for_a_report(call, monkeypatch):
    monkeypatch.setattr("ldd.commands.configs.configs_folder", lambda: {}["no such key"])
    code, said = call("configs")
    assert code == 1
    assert "KeyError: 'no such key'" in said
    assert "latentdd configs: a defect of the program; please report it" in said
