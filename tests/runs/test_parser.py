"""What the parser of every verb says of words that it cannot use."""

import pytest
from small_runs import ROOT

OLD = ROOT / "tests" / "data" / "1369bc3" / "dm"


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (("import", "x.pt", "--mean", "0.5", "--std", "0.5"), "a list is written in brackets: [0.5]"),
        (("import", "x.pt", "--mean", "0.5,0.4,0.3"), "a list is written in brackets: [0.5,0.4,0.3]"),
        (("evaluate", OLD, "--budgets", "1,5"), "a list is written in brackets: [1,5]"),
        (("fit", "--config", "quickstart", "--data.std", "1"), "a list is written in brackets: [1]"),
    ],
)
def test_lists_without_brackets(home, call, words, cure):
    code, said = call(*words)
    assert code == 2
    assert said.rstrip().endswith(cure)


@pytest.mark.parametrize(
    ("there", "cure"),
    [
        (True, "the mine_7 in this folder is found where PYTHONPATH=. stands before the command"),
        (False, "a module of your own is found where PYTHONPATH names its folder"),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--config", "quickstart", "--model.objective.network", "mine_7.Net"),
        ("train", OLD, "--network", "mine_7.Net", "--out", "x.safetensors"),
        ("evaluate", OLD, "--networks", "{a: mine_7.Net}", "--out", "x"),
        ("fit", "--config", "quickstart", "--trainer.callbacks", "mine_7.Callback"),
    ],
)
def test_a_module_that_is_not_found(home, call, words, there, cure, tmp_path):
    if there:
        (tmp_path / "here" / "mine_7.py").touch()
    code, said = call(*words)
    assert code == 2
    assert cure in said
