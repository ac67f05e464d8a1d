"""The command line as users meet it: in a subprocess, by its messages and exit codes."""

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import ROOT, small_arguments

import ldd
from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.runs.history import recorded_commands


def latentdd(*arguments, cwd=ROOT, module=False):
    command = [sys.executable, "-m", "ldd"] if module else [str(Path(sys.executable).parent / "latentdd")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def small(tiny_prior_path):
    return small_arguments(tiny_prior_path)


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    result = latentdd("fit", *small, "--trainer.max_steps", 4, "--trainer.default_root_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_help_and_version_in_both_forms():
    for module in (False, True):
        shown = latentdd("--help", module=module)
        assert shown.returncode == 0
        for verb in ["fit", "validate", "prior", "evaluate", "train", "export", "inspect", "configs"]:
            assert f"\n  {verb} " in shown.stdout
        assert latentdd("--version", module=module).stdout == f"latentdd {ldd.__version__}\n"


def test_unknown_command():
    result = latentdd("distil")
    assert result.returncode == 2
    assert "unknown command 'distil'; choose from fit, init, validate" in result.stderr


def test_a_run_leaves_what_the_readme_says(run):
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 4
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert (run / "previews" / "step-000000.png").is_file()
    assert (run / "logs" / "version_0" / "metrics.csv").read_text().count("\n") == 5
    distilled = DistilledSet.load(run)
    assert distilled.images_per_class == 1
    assert distilled.manifest["config"]["model"]["prior"]["init_args"]["num_steps"] == 2
    assert distilled.manifest["ledger"]["stages"]["distil"]["seconds"] > 0


@pytest.fixture
def here(monkeypatch, capsys):
    """Run a verb in this process: (exit code, what it said)."""

    def run_here(*arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["latentdd"])
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return run_here


def test_a_folder_with_a_run_is_refused_continued_or_replaced(run, small, tmp_path, here):
    there = ["--trainer.default_root_dir", run]
    code, errors = here("fit", *small, "--trainer.max_steps", 4, *there)
    assert code == 2
    assert (
        f"trainer.default_root_dir ({run}) already holds a run; continue it with --ckpt_path last" in errors
    )
    whole, _ = here("fit", *small, "--trainer.max_steps", 6, "--trainer.default_root_dir", tmp_path / "whole")
    more, errors = here("fit", *small, "--trainer.max_steps", 6, *there, "--ckpt_path", "last")
    assert (whole, more) == (0, 0), errors
    resumed, unbroken = DistilledSet.load(run), DistilledSet.load(tmp_path / "whole")
    for name, value in unbroken.codes.items():
        assert torch.equal(value, resumed.codes[name]), name
    begun, continued = (shlex.split(one.command) for one in recorded_commands(run))
    assert begun[-2:] == ["--trainer.default_root_dir", "small"]
    assert continued[-2:] == ["--ckpt_path", "last"]


def test_resume_with_other_settings_is_refused(run, small, here):
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    arguments = [
        "--trainer.default_root_dir",
        run,
        "--ckpt_path",
        "last",
        "--model.objective.lr_latents",
        5.0,
    ]
    code, errors = here("fit", *small, "--trainer.max_steps", 8, *arguments)
    assert code == 2
    assert "started with other settings (model.objective.init_args.lr_latents: 1.0 -> 5.0)" in errors
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_users_callbacks_are_kept(small, tmp_path, here):
    callback = ["--trainer.callbacks", "small_runs.StopAtThree", "--trainer.default_root_dir", tmp_path]
    code, errors = here("fit", *small, "--trainer.max_steps", 50, *callback)
    assert code == 0, errors
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_overwrite_replaces_a_run(small, tmp_path, here):
    arguments = ["fit", *small, "--trainer.default_root_dir", tmp_path, "--trainer.max_steps"]
    assert here(*arguments, 2)[0] == 0
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert here(*arguments, 0, "--overwrite")[0] == 0
    assert not (tmp_path / "checkpoints").exists()
    assert not list((tmp_path / "logs").glob("*/metrics.csv"))  # no step, nothing to log
    assert DistilledSet.load(tmp_path).images_per_class == 1


def test_last_without_a_checkpoint(small, tmp_path, here):
    code, errors = here("fit", *small, "--trainer.default_root_dir", tmp_path, "--ckpt_path", "last")
    assert code == 2
    assert "ckpt_path (last): no checkpoint in" in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model.chunk_sise", 3], "chunk_sise"),
        (["--model.objective.widht", 3], "widht"),
        (["--model.objective", "ldd.objectives.DistributionMatchin"], "DistributionMatchin"),
        (["--model.prior.path_or_hub_id", "/nowhere/prior"], "/nowhere/prior"),
        (["--model.images_per_class", 300], "images_per_class (300) is more than the"),
        (["--data.image_size", 64], "data.image_size (64) differs from the prior's image_size (32)"),
        (["--model.prior.image_size", 30, "--data.image_size", 30], "30"),
        (["--trainer.default_root_dir", "/proc/nowhere"], "/proc/nowhere"),
        (["--seed_everything", "true"], "seed_everything (True) must be a number"),
        (["--trainer.gradient_clip_val", 1.0], "trainer: "),
        (["--model.objective.real_batch", 256], "real"),
        (["--evaluation.protocol", "quickest"], "quickest"),
    ],
)
def test_mistakes_exit_with_2_and_leave_nothing(small, tmp_path, arguments, text, here):
    folder = tmp_path / "run"
    code, errors = here(
        "fit", *small, "--trainer.default_root_dir", folder, "--trainer.max_steps", 1, *arguments
    )
    assert code == 2, errors
    assert text in errors
    assert not (folder / "distilled").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def start(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "ldd", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_the_codes(small, tmp_path, number, code):
    folder = tmp_path / "run"
    process = start("fit", *small, "--trainer.default_root_dir", folder, "--trainer.max_steps", 100000)
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    distilled = DistilledSet.load(folder)
    assert torch.equal(saved["state_dict"]["codes.latents"], distilled.codes["latents"])
    assert not list(folder.rglob("*.tmp"))


def test_a_verb_keeps_freed_blocks_unless_the_user_has_settings(here, monkeypatch):
    """For the processes that it starts, too; `test_allocation` counts what that saves."""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    for name in (*names, "GLIBC_TUNABLES"):
        monkeypatch.setenv(name, "")  # so that it is again as it was when the test is over
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    assert here("configs")[0] == 0
    assert not any(name in os.environ for name in names)
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    assert here("configs")[0] == 0
    assert all(name in os.environ for name in names) == (platform.libc_ver()[0] == "glibc")


def test_inspect_export_and_configs(run, tmp_path, here, capsys):
    shown = latentdd("inspect", run, "--json")
    found = json.loads(shown.stdout)
    assert found["num_classes"] == 10
    assert found["images_per_class"] == 1
    assert here("export", run, "--format", "imagefolder", "--out", tmp_path / "folder")[0] == 0
    assert len(list((tmp_path / "folder").rglob("*.png"))) == 10
    code, errors = here("inspect", tmp_path / "nothing")
    assert code == 2
    assert str(tmp_path / "nothing") in errors
    assert here("configs", "--copy", tmp_path / "configs")[0] == 0
    assert (tmp_path / "configs" / "quickstart.yaml").read_text() == (
        ROOT / "configs" / "quickstart.yaml"
    ).read_text()
    assert here("configs", "--copy", tmp_path / "configs")[0] == 2
    (tmp_path / "file").touch()
    code, errors = here("configs", "--copy", tmp_path / "file" / "configs")
    assert code == 2
    assert "cannot write" in errors


def test_a_copy_of_the_configs_that_breaks_off_leaves_nothing(tmp_path, here, monkeypatch):
    def broken(root, target, **options):
        (target / "quickstart.yaml").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", broken)
    code, errors = here("configs", "--copy", tmp_path / "configs")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "No space left on device; free some space" in errors


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["--json"], ["--json", "true"]),
        (["run", "--json", "--overwrite"], ["run", "--json", "true", "--overwrite", "true"]),
        (["--overwrite", "false", "x"], ["--overwrite", "false", "x"]),
        (["--json", "run"], ["--json", "true", "run"]),
    ],
)
def test_flags_may_stand_alone(given, expected):
    assert cli._with_values(given) == expected
