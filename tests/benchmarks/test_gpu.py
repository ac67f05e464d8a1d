"""`benchmarks.gpu` on a CPU with small networks: every part is run, and what fails does not hide the rest."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import PARTS, Notes, Sizes
from ldd.runtime.precision import multiplying

STEP = ("step_seconds", "two_pass_seconds", "floor_seconds", "step_over_floor", "step_peak_mib")
FIGURES = {
    "step": {
        f"{way}_{figure}"
        for way in ("float32", "prior_bfloat16", "tf32", "bf16_mixed", "channels_last")
        for figure in STEP
    },
    "compile": {f"{way}_seconds" for way in ("plain", "compiled", "reduce_overhead")},
    "memory": {
        f"{setting}_{figure}"
        for setting in ("steps_2", "steps_4", "ipc_2", "ipc_4", "large_images")
        for figure in ("seconds", "peak_mib")
    },
    "objectives": {f"{name}_seconds" for name in ("dm", "dc", "dc_trained", "mtt", "d3")},
    "evaluator": {"side_by_side_seconds", "one_by_one_seconds", "published_seconds"},
    "scoring": {"mobilenet_v2_images_per_second", "mobilenet_v2_scoring_speedup", "many_images_per_second"},
    "prior_training": {"float32_latents_per_second", "bf16_mixed_latents_per_second"},
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_measure_what_they_name(part, tmp_path):
    notes = Notes(tmp_path / "notes.json")
    with multiplying("highest", torch.device("cpu")):  # and as before afterwards
        PARTS[part](notes, Sizes.of("cpu", tiny=True))
    assert not notes.failed
    assert all(notes.figures[name] > 0 for name in FIGURES[part])
    assert json.loads((tmp_path / "notes.json").read_text())["figures"] == notes.figures


def test_time_budgets_fit_into_eight_minutes():
    assert sum(gpu.SECONDS.values()) <= 480
    assert gpu.SECONDS.keys() == PARTS.keys()


def test_what_fails_is_noted_and_the_rest_goes_on(tmp_path):
    notes = Notes(tmp_path / "notes.json")
    notes.attempt("one", lambda: {"figure": 1 / 0})
    notes.attempt("two", lambda: {"figure": 2})
    assert notes.failed == {"one": "ZeroDivisionError: division by zero"}
    assert notes.figures == {"two_figure": 2}


def test_a_report_goes_past_a_part_that_fails_and_one_without_time(tmp_path):
    """The whole command: the limit ends the first part and leaves the next one nothing; one cannot find its device."""
    options = ("--json", tmp_path / "report.json", "--device", "cpu", "--tiny", "--parts", "scoring,step")
    gpu.main([*map(str, options), "--limit", "0.2"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: part["state"] for name, part in report["parts"].items()} == {
        "scoring": "out of time",
        "step": "out of time",
    }
    assert report["machine"]["torch"]
    outcome = gpu.run_part("step", 120, "no such device", tiny=True)
    assert outcome.state == "failed"
    assert "no such device" in outcome.error
