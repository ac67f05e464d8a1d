"""Results of a sweep: one table and one plot, never of two protocols."""

import csv
import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ldd.errors import UserError
from ldd.sweeps.results import Results


def written_cell(folder, distilled, random, protocol_hash="f" * 16, **facts):
    """The evaluation.json of one cell, with one unseen network."""
    folder.mkdir(parents=True)
    scores = {"distilled": distilled, "random_real": random}
    accuracy = {name: {"mean": value, "std": 0.25, "n": 2} for name, value in scores.items()}
    content = {
        "protocol": {"id": "tiny", "hash": protocol_hash},
        "accuracy": {name: {"ViT": score} for name, score in accuracy.items()},
        "mean_unseen": accuracy,
        **facts,
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


def test_cells_of_an_edited_protocol_are_not_mixed(tmp_path):
    cells = [((name,), 0, written_cell(tmp_path / name, 0.5, 0.25, name * 16)) for name in ("a", "b")]
    with pytest.raises(UserError, match="protocol tiny was edited between cells"):
        Results.collect(("k",), cells)


def test_the_two_splits_are_not_mixed_and_each_is_named(tmp_path):
    """An evaluation of the test split says nothing of it."""
    facts = {"a": {"split": "selection"}, "b": {"split": "selection"}, "c": {}}
    cells = [((name,), 0, written_cell(tmp_path / name, 0.5, 0.25, **of)) for name, of in facts.items()]
    with pytest.raises(UserError, match=r"a was tested on the selection split, and .*c on the test split"):
        Results.collect(("k",), cells)
    for alike, split in ((cells[:2], "selection"), (cells[2:], "test")):
        found = Results.collect(("k",), alike)
        assert found.table().title == f"Top-1 accuracy in % of distilled sets ({split} split, protocol tiny)"
        assert f"({split} split)" in found.plot().axes[0].get_ylabel()
        found.write(tmp_path)
        with (tmp_path / "sweep.csv").open(newline="") as file:
            assert {row["split"] for row in csv.DictReader(file)} == {split}


def test_panels_keep_the_split(tmp_path):
    cells = [
        ((one, two), 0, written_cell(tmp_path / one / two, 0.5, 0.25, split="selection"))
        for one in ("1", "10")
        for two in ("x", "y")
    ]
    figure = Results.collect(("budget", "start"), cells, panels="budget").plot()
    assert all("(selection split)" in plane.get_ylabel() for plane in figure.axes)


def test_the_plot_has_a_line_an_order_and_a_level_a_reference(tmp_path):
    """Accuracies are made up so that every mean and deviation over two seeds is known."""
    cells = []
    for seed, away in ((0, -0.0625), (1, 0.0625)):
        for keep in ("0.1", "0.5"):
            for order, height in (("easy", 0.25), ("random", 0.5)):
                folder = tmp_path / f"{keep}_{order}" / str(seed)
                mean = height + float(keep) + away
                cells.append(((keep, order), seed, written_cell(folder, mean, 0.125 + away)))
        folder = tmp_path / "whole" / str(seed)
        cells.append((("whole", ""), seed, written_cell(folder, 0.75 + 2 * away, 0.125 + away)))
    results = Results.collect(("keep", "order"), cells, ("whole",))
    plane = results.plot().axes[0]
    found = {container.get_label(): container for container in plane.containers}
    assert list(found) == ["easy", "random"]
    for order, height in (("easy", 0.25), ("random", 0.5)):
        line, _, (bars,) = found[order]
        assert line.get_xdata().tolist() == [0.1, 0.5]
        assert line.get_ydata() == pytest.approx([100 * (height + 0.1), 100 * (height + 0.5)], abs=1e-9)
        for (_, low), (_, high) in bars.get_segments():
            assert high - low == pytest.approx(12.5, abs=1e-9)
    levels = {line.get_label(): line.get_ydata() for line in plane.lines if list(line.get_xdata()) == [0, 1]}
    assert levels == {"whole": [75, 75], "random_real": [12.5, 12.5]}
    bands = [(patch.get_y(), patch.get_height()) for patch in plane.patches]
    assert bands == [(62.5, 25), (6.25, 12.5)]
    results.write(tmp_path)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (whole, *_) = [row for row in rows if row["keep"] == "whole"]
    assert (whole["order"], whole["seed"], whole["set"], whole["mean"]) == ("", "0", "distilled", "0.625")
    shown = results.table()
    assert [row[0] for row in shown.rows] == ["0.1", "0.1", "0.5", "0.5", "whole"]


def test_an_axis_of_panels(tmp_path):
    """Each budget has its own points, and its own random real images."""
    cells = []
    for seed in (0, 1):
        for budget, height in (("1", 0.25), ("10", 0.5)):
            for start, more in (("real", 0.0), ("modes", 0.125)):
                for optimised, most in (("none", 0.0), ("DM", 0.0625)):
                    folder = tmp_path / f"{budget}_{start}_{optimised}" / str(seed)
                    written_cell(folder, height + more + most, height - 0.125)
                    cells.append(((budget, start, optimised), seed, folder))
    results = Results.collect(("budget", "start", "optimised"), cells, panels="budget")
    figure = results.plot()
    planes, (legend,) = figure.axes, figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["DM", "none", "random_real"], "once"
    assert [plane.get_title().partition(";")[0] for plane in planes] == ["budget 1", "budget 10"]
    for plane, height in zip(planes, (25, 50), strict=True):
        found = {container.get_label(): container[0] for container in plane.containers}
        assert list(found) == ["none", "DM"]
        for name, most in (("none", 0), ("DM", 6.25)):
            assert found[name].get_ydata().tolist() == [height + most, height + 12.5 + most]
        assert (found["DM"].get_xdata() - found["none"].get_xdata()).min() > 0.1  # beside each other
        (level,) = [line for line in plane.lines if list(line.get_xdata()) == [0, 1]]
        assert level.get_ydata() == [height - 12.5] * 2
        assert [text.get_text() for text in plane.get_xticklabels()] == ["real", "modes"]
    assert len(results.table().rows) == 8


@pytest.mark.parametrize("length", [1, 12, 40, 60])
def test_the_legend_is_on_the_page(tmp_path, length):
    """However many settings there are, and however they are called."""
    cells = []
    for number in range(9):
        for keep in ("a", "b"):
            names = (keep, f"{number}" * length)
            cells.append((names, 0, written_cell(tmp_path / "_".join(names), 0.5, 0.25)))
    figure = Results.collect(("keep", "order"), cells).plot()
    FigureCanvasAgg(figure).draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert 0 <= box.y0 < box.y1 <= figure.axes[0].get_window_extent().y0
