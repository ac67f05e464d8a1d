"""The ledger: sums and peaks, what is unknown stays unknown, and a real run's stages against what it did."""

import json

import pytest
import torch
from tiny_set import full_set, tiny_set

from ldd.artefact import manifest
from ldd.errors import UserError
from ldd.runtime.ledger import Ledger, measured, total, whole


def test_total_over_runs():
    one = {"distil": {"seconds": 2.0, "peak_memory_mib": 7.0, "steps": 3}, "prune": {"seconds": 1.0}}
    two = {"distil": {"seconds": 4.0, "peak_memory_mib": 5.0}}
    assert total([one, two]) == {
        "distil": {"seconds": 6.0, "peak_memory_mib": 7.0, "steps": None},  # the second run's are not known
        "prune": {"seconds": 1.0},  # the second run has no such stage
    }
    assert total([]) == {}


def test_whole_over_stages():
    stages = [{"seconds": 2.0, "peak_memory_mib": 7.0}, {"seconds": 1.0, "steps": 4}, {"decodes": None}]
    assert whole(stages) == {"seconds": 3.0, "peak_memory_mib": 7.0, "steps": 4, "decodes": None}


def test_charge(monkeypatch):
    clock = iter([10.0, 13.5, 20.0, 20.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    ledger = Ledger()
    with ledger.charge("label", torch.device("cpu"), steps=3):
        pass
    with ledger.charge("label", torch.device("cpu"), steps=4):
        pass
    figures = ledger.stages["label"]
    assert (figures["seconds"], figures["steps"]) == (4.0, 7)
    assert figures["peak_memory_mib"] == measured(0)["peak_memory_mib"] > 0 or torch.cuda.is_available()


def test_charged_to_a_saved_set(tmp_path):
    path = full_set().save(tmp_path / "set")
    before = json.loads((path / manifest.NAME).read_text())
    manifest.charge(path, "evaluate", {"seconds": 9.5, "steps": None})
    manifest.charge(path, "evaluate", {"seconds": 12.5, "steps": None})
    after = json.loads((path / manifest.NAME).read_text())
    assert after["ledger"]["stages"].pop("evaluate") == {"seconds": 12.5, "steps": None}
    assert after == before
    with pytest.raises(UserError, match=r"ledger\.stages\['evaluate'\]\['seconds'\] must be a number"):
        manifest.charge(path, "evaluate", {"seconds": "long"})
    (tiny_set().save(tmp_path / "other") / manifest.NAME).write_text("{")
    with pytest.raises(UserError, match=manifest.NAME):
        manifest.charge(tmp_path / "other", "evaluate", {"seconds": 1.0})
