"""Every verb that writes: killed before one of its files has its name, started again, the same bytes and no litter."""

import pytest
from kills import VERBS, made, spelt
from processes import Renames, killed, latentdd
from small_runs import ROOT

from ldd import cli

LONG = {"fit", "prior train", "prior compare", "sweep"}
"""Killed later than at their first file: here, in `test_survival.py` and in the tests of their verbs."""


@pytest.mark.parametrize(
    ("verb", "share"),
    [
        *((verb, 0.0) for verb in VERBS if verb not in LONG),
        *(
            ("evaluate", 0.6),
            ("prior compare", 0.6),
            ("federate", 0.7),
            ("label", 0.6),
            ("label-crops", 0.5),
            ("prune", 0.6),
        ),
    ],
)
def test_a_verb_that_was_killed_gives_the_same_files(verb, share, world, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
    with Renames() as renames:
        assert cli.main(spelt(VERBS[verb], world, unbroken)) == 0
    moment = max(1, round(share * renames.count))
    assert killed(latentdd, spelt(VERBS[verb], world, broken), tmp_path / "log", before=moment)
    assert cli.main(spelt(VERBS[verb], world, broken)) == 0
    expected = made(unbroken)
    assert expected
    assert made(broken) == expected
