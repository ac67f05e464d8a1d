"""Storage, cost and recovery beside the accuracies, in the files and in the table."""

import json
from dataclasses import asdict, replace

import pytest
from rich.console import Console
from small_world import SIZE, SmallData, protocol_file, small_set

from ldd.artefact.size import Units
from ldd.evaluation import FullReal, RandomReal, Report, evaluate
from ldd.evaluation.results.tables import accuracy_table, dimensions_table, equal_table
from ldd.students.training_set import TrainingCost

PIXELS = 3 * SIZE * SIZE


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    protocol = protocol_file(tmp_path_factory.mktemp("protocol"), batch_size=2, full_data_batch_size=5)
    return evaluate(
        small_set(),
        None,
        SmallData(),
        protocol,
        repeats=2,
        seed=1,
        baselines=[RandomReal(), FullReal()],
        num_workers=1,
        device="auto",
        progress=False,
    )


def test_steps_count_the_last_small_batch():
    assert TrainingCost.of(4, 3, 2).to_dict() == {
        "epochs": 4,
        "images_per_epoch": 3,
        "steps": 8,
        "decodes": 0,
        "images": 12,
    }


def test_each_set_has_its_cost(report):
    """One image for each of 3 classes at 4 epochs; all 24 at 2 epochs of batches of 5."""
    cost = report.cost()
    assert cost.keys() == {"distilled", "random_real", "full_real"}
    for name in ("distilled", "random_real"):
        assert cost[name]["storage"]["floats"] == 3 * PIXELS
        assert cost[name]["storage"]["bytes"] == 3 * PIXELS + 3 * 8
        assert cost[name]["storage"]["ipc_equivalents"] == 1.0
        assert (cost[name]["training"]["steps"], cost[name]["training"]["images"]) == (8, 12)
    assert cost["full_real"]["storage"]["ipc_equivalents"] == 8.0
    assert (cost["full_real"]["training"]["steps"], cost["full_real"]["training"]["images"]) == (10, 48)
    seconds = [row.seconds for row in report.rows if row.set == "distilled"]
    assert cost["distilled"]["training"]["seconds"] == pytest.approx(sum(seconds) / 2, abs=1e-12)


def test_recovery_is_a_share_of_full_data(report):
    scores = report.scores()
    for name in scores:
        expected = scores[name]["narrow"].mean / scores["full_real"]["narrow"].mean
        assert report.recovery()[name]["narrow"] == pytest.approx(expected, abs=1e-12)
    assert report.recovery()["full_real"]["narrow"] == 1.0
    alone = replace(report, rows=tuple(row for row in report.rows if row.set != "full_real"))
    assert alone.recovery() == {}


def test_file_and_table(report, tmp_path):
    report.write(tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["recovery"] == report.recovery()
    assert written["cost"]["distilled"]["storage"]["form"] == "images"
    assert written["cost"]["distilled"]["training"]["seconds"] > 0
    console = Console(width=200, record=True)
    console.print(dimensions_table(report))
    text = console.export_text()
    for part in ("of full data", "distilled", "random_real", "full_real", "100.0 %"):
        assert part in text
    for width in (60, 200):  # also without full data
        Console(width=width).print(dimensions_table(replace(report, rows=report.rows[:1])))


def test_beside_keeps_what_is_known_of_both(report):
    later = Report(
        tuple(replace(row, step=7) for row in report.rows if row.set == "distilled"),
        report.protocols,
        {"cost": {"distilled": {**report.facts["cost"]["distilled"]}}, "images_per_set": {"distilled": 3}},
    )
    others = replace(report, rows=tuple(row for row in report.rows if row.set != "distilled"))
    joined = later.beside(others)
    assert {row.step for row in joined.rows} == {7}
    assert joined.scores() == report.scores()
    assert joined.cost() == report.cost()
    assert joined.facts["images_per_set"] == report.facts["images_per_set"]


def test_units_of_each_class(report):
    """One image of each of 3 classes, 8 of them in the full data; labels are 8 bytes."""
    units = report.units()
    assert units["distilled"] == units["random_real"] == Units(1, SIZE * SIZE, PIXELS + 8)
    assert units["full_real"] == Units(8, 8 * SIZE * SIZE, 8 * (PIXELS + 8))
    head, *lines = [accuracy_table(report).head, *accuracy_table(report).rows]
    assert head[1:4] == ("distilled", "random_real", "full_real")
    assert lines[0][:4] == ("images a class", "1", "1", "8")
    assert lines[1][:4] == ("pixels a class", f"{SIZE * SIZE:,}", f"{SIZE * SIZE:,}", f"{8 * SIZE * SIZE:,}")
    assert lines[2][0] == "bytes a class"


def told(report, **units):
    """The report as if its sets had these units, the distilled one's twice the accuracy of the others."""
    cost = {name: {**report.facts["cost"]["random_real"], "units": asdict(of)} for name, of in units.items()}
    rows = [
        replace(report.rows[0], set=name, repeat=0, unseen=True, accuracy=0.6 if name == "distilled" else 0.3)
        for name in units
    ]
    return replace(report, rows=tuple(rows), facts={"cost": cost})


def test_equal_images_and_equal_bytes_are_never_mixed(report):
    """A grid of four small images has the bytes of one image and the images of four; a draw is as many as wished."""
    table = equal_table(
        told(
            report,
            distilled=Units(4, 1024, 3080),
            same_bytes=Units(1, 1024, 3080),
            nearly=Units(1, 900, 2800),
            same_images=Units(4, 4096, 12320),
            neither=Units(2, 2048, 6160),
            drawn=Units(None, 1024, 3300),
        )
    )
    cells = {row[0]: row[-2:] for row in table.rows}
    assert cells == {
        "distilled": ("", ""),
        "same_bytes": ("", "+30.0"),
        "nearly": ("", "+30.0"),
        "same_images": ("+30.0", ""),
        "neither": ("", ""),
        "drawn": ("", "+30.0"),
    }
    assert next(row for row in table.rows if row[0] == "drawn")[1] == "drawn"
    assert equal_table(replace(report, facts={})) is None
