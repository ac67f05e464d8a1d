"""Shipped files by name, from any folder, in every option and inside recipes; near names for what is mistyped."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from small_runs import ROOT

from ldd import cli
from ldd.disk.shipped import (
    near_files,
    shipped_file,
    shipped_names,
    with_shipped_files,
    with_shipped_settings,
)
from ldd.runs.history import public_command
from ldd.runs.verb import guard_yaml
from ldd.sweeps.file import Sweep

CONFIGS = ROOT / "configs"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def latentdd(capsys, *arguments):
    """(Exit code, stdout, last line of stderr)."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err.strip().splitlines()[-1:]


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("--config", "quickstart", "quickstart"),
        ("-c", "quickstart.yml", "quickstart"),
        ("--config", "configs/quickstart.yaml", "quickstart"),
        ("--config", "ablations/steps", "ablations/steps"),
        ("--config", "configs/prior_training/digits", "prior_training/digits"),
        ("--data", "data/digits", "data/digits"),
        ("--data", "digits", "data/digits"),
        ("--model.prior", "pixel", "prior/pixel"),
        ("--model.init_args.objective", "configs/objective/gradient.yaml", "objective/gradient"),
        ("--data.pruner", "el2n.yaml", "pruner/el2n"),
        ("--data", "folder", "data/folder"),  # not the recipe of that name
        ("--model.prior", "folder.yaml", "prior/folder"),
        ("--config", "folder", "folder"),
        ("--anything", "labels/expert.yaml", "labels/expert"),
        ("--anything", "labels/expert", None),  # may be any text
        ("--network", "quickstart", None),
        ("--config", "digits", None),
        ("--config", "../configs/quickstart.yaml", None),
        ("--config", "/configs/quickstart.yaml", None),
        ("--config", "./quickstart.yaml", None),
        ("--model.prior", "embedded:digits", None),
        ("--data", "", None),
    ],
)
def test_names(option, value, found):
    assert shipped_file(value, option) == (None if found is None else CONFIGS / f"{found}.yaml")


def test_every_shipped_file_is_found_by_its_name():
    for name in shipped_names():
        assert shipped_file(name, "--config") == CONFIGS / f"{name}.yaml"
    assert len(shipped_names()) == len([*CONFIGS.rglob("*.yaml")])


def test_a_file_that_is_here_comes_first(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("seed_everything: 3")
    assert shipped_file("quickstart.yaml", "--config") is None
    assert shipped_file("quickstart", "--config") == CONFIGS / "quickstart.yaml"


def test_words_of_a_command():
    words = [
        "x",
        "--config=quickstart",
        "--data",
        "digits",
        "--seed",
        "1",
        "--out",
        "quickstart.yaml",
        "--json",
    ]
    quick, digits = (str(CONFIGS / name) for name in ("quickstart.yaml", "data/digits.yaml"))
    expected = [
        "x",
        f"--config={quick}",
        "--data",
        digits,
        "--seed",
        "1",
        "--out",
        "quickstart.yaml",
        "--json",
    ]
    assert with_shipped_files(words) == expected


def test_settings_of_a_recipe():
    inside = {
        "model": {"prior": "pixel", "codes": {"class_path": "ldd.PointCodes"}},
        "data": "data/digits.yaml",
    }
    found = with_shipped_settings(inside)
    assert found["model"] == {
        "prior": str(CONFIGS / "prior/pixel.yaml"),
        "codes": {"class_path": "ldd.PointCodes"},
    }
    assert found["data"] == str(CONFIGS / "data/digits.yaml")


def test_a_recipe_of_names_in_an_empty_folder(tmp_path, capsys):
    """A recipe that names components beside the recipes of the package, and an option that goes over it."""
    recipe = {"data": "digits", "model": {"prior": "prior/pixel.yaml", "objective": "objective/gradient"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    words = [
        "--config",
        "quickstart",
        "--config",
        "mine.yaml",
        "--model.initializer",
        "prior_samples",
        "--print_config",
    ]
    shown = subprocess.run(
        [sys.executable, "-m", "ldd", "fit", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    model = yaml.safe_load(shown.stdout)["model"]
    assert model["prior"]["class_path"] == "ldd.priors.PixelPrior"
    assert model["objective"]["class_path"] == "ldd.objectives.GradientMatching"
    assert model["initializer"]["class_path"] == "ldd.initializers.PriorSamples"


def test_sweeps_find_their_base(tmp_path):
    guard_yaml()
    (tmp_path / "sweep.yaml").write_text(
        json.dumps({"base": "quickstart", "axes": {"a": {"b": {}}}, "seeds": [1]})
    )
    assert Sweep.load(tmp_path / "sweep.yaml").bases == (str(CONFIGS / "quickstart.yaml"),)


def test_recorded_commands_keep_the_name():
    words = ["prior", "train", *with_shipped_files(["--config", "prior_training/digits", "--data=digits"])]
    recorded = public_command(words)
    assert recorded == "latentdd prior train --config prior_training/digits.yaml --data=data/digits.yaml"
    assert with_shipped_files(recorded.split()[3:]) == words[2:]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fti"], "unknown command 'fti'; did you mean fit?"),
        (["fit"], "name a recipe, for instance latentdd fit --config quickstart"),
        (["plan"], "name a recipe, for instance latentdd plan --config quickstart"),
        (["fit", "--config", "quickstrat"], "--config (quickstrat) does not exist; did you mean quickstart?"),
        (["fit", "--config=configs/quickstrat.yaml"], "did you mean quickstart.yaml?"),
        (["sweep", "--config", "ablations/step"], "did you mean ablations/steps"),
        (["prune", "--pruner", "pruner/el2m.yaml"], "did you mean pruner/el2n.yaml?"),
        (["fit", "--config", "quickstart", "--model.chunk_sise", 3], "did you mean --model.chunk_size?"),
        (
            ["fit", "--config", "quickstart", "--evaluation.repaets", 3],
            "did you mean --evaluation.repeats?",
        ),
        (["fit", "--trainer.max_steps", 3], "name a recipe, for instance --config quickstart"),
        (["fit", "--config", "quickstart", "--model.objective.real_bach", 3], "did you mean real_batch?"),
        (
            ["fit", "--config", "quickstart", "--model.prior", "ldd.priors.PixelPriors"],
            "did you mean PixelPrior?",
        ),
        (["export", "/", "--out", "x", "--fromat", "pt"], "did you mean --format?"),
        (["export", "/", "--out", "x", "--format", "parket"], "did you mean parquet?"),
        (["prior", "trian"], "did you mean train?"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_was_meant_is_the_last_line(capsys, words, said):
    code, _, (last,) = latentdd(capsys, *words)
    assert code == 2
    assert said in last


def test_files_beside_are_proposed_too(tmp_path):
    (tmp_path / "experiment.yaml").touch()
    assert near_files("experimnet.yaml") == "; did you mean experiment.yaml?"
    assert near_files("nothing/like/it.yaml") == ""


def test_the_list_says_what_each_file_is(capsys):
    code, shown, _ = latentdd(capsys, "configs")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if line[:1].islower() and "  " in line)
    assert {*lines} == {*shipped_names()}
    assert lines["quickstart"].startswith("LD3M with distribution matching on handwritten digits")
    assert lines["ablations/steps"].startswith("Number of steps S of the reverse process")
    assert not any(text.startswith(("latentdd", "-")) for text in lines.values())


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -m ldd configs | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    shown = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_help_of_a_run_begins_with_what_is_ours(capsys):
    _, shown, _ = latentdd(capsys, "fit", "--help")
    sections = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert sections[-1] == "Lightning's trainer:"
    assert sections[1].startswith("Optimises codes")
    assert shown.startswith(
        "usage: latentdd fit --config RECIPE [options]\n\nDistil a data set, for instance: "
    )
    assert "--print_config shows" in " ".join(shown.split())
