"""A verb run in this process, in a folder and with a home of its own."""

import sys

import pytest
from small_runs import ROOT, small_arguments

from ldd import cli


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder; the current folder is another."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a verb in this process: (exit code, what it said)."""

    def run_here(*arguments):
        monkeypatch.setattr(sys, "argv", ["latentdd"])
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run_here


@pytest.fixture(scope="module")
def small(tiny_prior_path):
    recipe = str(ROOT / "configs" / "ld3m_digits.yaml")
    given = [
        recipe if word == "configs/ld3m_digits.yaml" else word for word in small_arguments(tiny_prior_path)
    ]
    return [*given, "--trainer.enable_progress_bar", "false"]
