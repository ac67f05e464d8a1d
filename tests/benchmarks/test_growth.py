"""`benchmarks.growth` at small sizes: figures of both schemes, and one picture of them."""

import torch

from benchmarks import growth


def test_growth_is_measured_and_drawn(tmp_path, monkeypatch):
    grown = {"steps": (1, 2), "ipc": (1, 9)}
    for name, value in {"steps": 1, "classes": 2}.items():
        monkeypatch.setitem(growth.PLAIN, name, value)
    figures = growth.measure_all(grown, 1, torch.device("cpu"), 8)
    names = {"ours_seconds", "two_pass_seconds", "ours_peak_mib", "two_pass_peak_mib"}
    assert figures.keys() == {
        f"{at}_{name}" for at in ("steps_1", "steps_2", "ipc_1", "ipc_9") for name in names
    }
    # The plain setting is in both columns, and measured once.
    assert figures["steps_1_ours_seconds"] == figures["ipc_1_ours_seconds"]
    assert all(value > 0 for value in figures.values())
    growth.draw(figures, grown, str(tmp_path / "growth.svg"))
    drawn = (tmp_path / "growth.svg").read_text()
    assert all(f">{word}<" in drawn for word in ("two passes", "ldd", "images per class", "peak MiB"))
