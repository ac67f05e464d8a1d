"""`benchmarks.gpu` on a CPU with small networks: every part is run, and what fails does not hide the rest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ldd
from benchmarks import gpu
from benchmarks.gpu_parts import Notes, Sizes

ROOT = Path(ldd.__file__).parent.parent
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


@pytest.mark.parametrize("part", gpu.PARTS)
def test_parts_measure_what_they_name(part, tmp_path):
    notes = Notes(tmp_path / "notes.json")
    gpu.PARTS[part].measure(notes, Sizes.of("cpu", tiny=True))
    assert not notes.failed
    assert all(notes.figures[name] > 0 for name in FIGURES[part])
    assert json.loads((tmp_path / "notes.json").read_text())["figures"] == notes.figures


def test_time_budgets_fit_into_eight_minutes():
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 480


def test_what_fails_is_noted_and_the_rest_goes_on(tmp_path):
    notes = Notes(tmp_path / "notes.json")
    notes.attempt("one", lambda: {"figure": 1 / 0})
    notes.attempt("two", lambda: {"figure": 2})
    assert notes.failed == {"one": "ZeroDivisionError: division by zero"}
    assert notes.figures == {"two_figure": 2}


def test_a_report_goes_past_a_part_that_fails_and_one_without_time(tmp_path):
    """The whole command: one part cannot find its device, the limit leaves the next one nothing."""
    options = ("--json", tmp_path / "report.json", "--device", "cpu", "--tiny", "--parts", "scoring,step")
    words = [sys.executable, "-m", "benchmarks.gpu", *map(str, options), "--limit", "1"]
    subprocess.run(words, cwd=ROOT, check=True, timeout=120, capture_output=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: part["state"] for name, part in report["parts"].items()} == {
        "scoring": "out of time",
        "step": "out of time",
    }
    assert report["machine"]["torch"]
    outcome = gpu.run_part("step", 120, "no such device", tiny=True)
    assert outcome.state == "failed"
    assert "no such device" in outcome.error
