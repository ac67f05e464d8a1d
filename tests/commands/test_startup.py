"""A verb imports what it needs: help is stored, a wrong path is answered at once, no trainer without a model."""

import os
import subprocess
import sys

import pytest
from help_texts import COMMANDS
from small_runs import ROOT
from tiny_set import tiny_set

from ldd import cli

TRAINERS = ["lightning", "torchvision", "diffusers", "sklearn", "transformers"]
PROBE = """
import sys
from ldd import cli
try:
    code = cli.main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(code, *sorted({"torch", *%r} & sys.modules.keys()))
"""


def code_and_imports(*arguments):
    result = subprocess.run(
        [sys.executable, "-c", PROBE % TRAINERS, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    code, *imported = result.stdout.splitlines()[-1].split()
    return int(code), imported, result.stderr


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "set"
    tiny_set().save(folder)
    return folder


def test_verbs_without_a_model_import_no_trainer(distilled, tmp_path):
    there = tmp_path / "folder"
    commands = (
        ("inspect", distilled),
        ("export", distilled, "--format", "imagefolder", "--out", there),
        ("import", there, "--out", tmp_path / "imported"),
        ("report", distilled, "--out", tmp_path / "report.html"),
    )
    for command in commands:
        assert code_and_imports(*command)[:2] == (0, ["torch"]), command


@pytest.mark.parametrize("command", [("configs",), *((*words, "--help") for words in COMMANDS)], ids=" ".join)
def test_help_and_configs_do_not_even_import_torch(command):
    assert code_and_imports(*command)[:2] == (0, [])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("inspect", "nothing"), "nothing does not exist; name a distilled set"),
        (("evaluate", "--data=configs/data/digits.yaml", "nothing"), "nothing does not exist"),
        (("fit", "--config", "quickstrat.yml"), "--config (quickstrat.yml) does not exist"),
        (("prune", "--pruner=no.yaml", "--out", "x.parquet"), "--pruner (no.yaml) does not exist"),
        (("prior", "train", "--config", "no.yaml"), "--config (no.yaml) does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistyped_path_is_answered_before_any_import(command, said):
    code, imported, errors = code_and_imports(*command)
    assert (code, imported) == (2, [])
    assert said in errors


def test_stored_help_is_what_the_parsers_print(tmp_path):
    """After a change of options or docstrings: `python tests/helpers/help_texts.py`."""
    if cli.stored_help(["fit", "--help"]) is None:
        pytest.skip(f"stored with other versions than {cli.help_versions()}: help comes from the parsers")
    script = [sys.executable, ROOT / "tests" / "helpers" / "help_texts.py", tmp_path]
    subprocess.run(script, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    for stored in (cli.HELP, tmp_path):
        assert len(list(stored.iterdir())) == len(COMMANDS) + 1
    for file in tmp_path.iterdir():
        assert file.read_text() == (cli.HELP / file.name).read_text(), file.name


def test_help_by_other_versions_comes_from_the_parser(monkeypatch):
    monkeypatch.setattr(cli, "help_versions", dict)
    assert cli.stored_help(["fit", "--help"]) is None
