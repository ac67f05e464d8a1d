"""`latentdd doctor` and `latentdd completion`: what they find, and what a shell makes of it."""

import json
import subprocess
import sys

import pytest

from ldd import cli
from ldd.commands import doctor as verb


def run(capsys, *words):
    try:
        code = cli.main([*words])
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().out


@pytest.fixture(autouse=True)
def _words(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["latentdd"])


def test_what_is_there(capsys, tmp_path, monkeypatch):
    (tmp_path / "latentdd").mkdir()
    (tmp_path / "latentdd" / "scores").write_bytes(bytes(3 * 2**20))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verb, "requires", lambda _: ["torch>=2", "ray>=2; extra == 'ray'"])
    code, shown = run(capsys, "doctor", "--json")
    facts = json.loads(shown)
    assert (code, facts["packages"]) == (0, "all that are needed")
    assert facts["cache, scores and plans"] == f"{tmp_path / 'latentdd'}: 3.0 MiB"
    assert facts["for latentdd federate --workers"] in (
        "there",
        "missing: ray>=2; pip install 'latentdd[ray]'",
    )
    assert facts["for --trainer.logger WandbLogger"] == "there"


def test_what_is_missing(capsys, monkeypatch):
    wanted = ["torch>=99", "no-such-package>=1", "nothing-at-all>=3; extra == 'wandb'"]
    monkeypatch.setattr(verb, "requires", lambda _: wanted)
    code, shown = run(capsys, "doctor")
    assert code == 1
    assert "missing: torch>=99 (there is " in shown
    assert "no-such-package>=1; pip install them" in shown
    assert "missing: nothing-at-all>=3; pip install 'latentdd[wandb]'" in shown


@pytest.mark.parametrize(
    ("typed", "proposed"),
    [
        (["ev"], ["evaluate"]),
        (["pr"], ["prepare", "prior", "prune"]),
        (["fit", "--config", "quick"], ["quickstart"]),
        (["fit", "--model.chunk"], ["--model.chunk_size"]),
        (["prior", "train", "--model.autoencoder_st"], ["--model.autoencoder_steps"]),
        (["export", "x", "--form"], ["--format"]),
    ],
    ids=" ".join,
)
def test_bash_completes(capsys, tmp_path, typed, proposed):
    code, script = run(capsys, "completion")
    assert code == 0
    (tmp_path / "completion.sh").write_text(script)
    words = " ".join(["latentdd", *typed])
    ask = f'. ./completion.sh; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _latentdd; echo "${{COMPREPLY[@]}}"'
    shown = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(shown.stdout.split()) == proposed
