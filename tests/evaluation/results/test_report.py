"""Rows, means by hand, files, merging."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from ldd.errors import UserError
from ldd.evaluation import Report, Row, Score
from ldd.evaluation.results.rows import COLUMNS
from ldd.evaluation.results.tables import accuracy_table
from ldd.report.tables import compared


def row(of, network, repeat, accuracy, *, step=100, unseen=True, protocol="quick", seconds=1.5):
    return Row(step, of, network, unseen, repeat, 7, accuracy, seconds, protocol)


ROWS = (
    row("distilled", "seen", 0, 0.9, unseen=False),
    row("distilled", "seen", 1, 0.7, unseen=False),
    row("distilled", "a", 0, 0.5),
    row("distilled", "a", 1, 0.6),
    row("distilled", "b", 0, 0.3),
    row("distilled", "b", 1, 0.2),
    row("random_real", "seen", 0, 0.4, unseen=False),
    row("random_real", "seen", 1, 0.4, unseen=False),
    row("random_real", "a", 0, 0.25),
    row("random_real", "a", 1, 0.35),
    row("random_real", "b", 0, 0.1),
    row("random_real", "b", 1, 0.2),
    row("full_real", "a", 0, 0.95),
)


def report(rows=ROWS):
    return Report(rows, {"quick": "0123456789abcdef"}, {"seed": 7})


def test_scores():
    scores = report().scores()
    assert scores["distilled"]["a"].mean == pytest.approx(0.55)
    assert scores["distilled"]["a"].std == pytest.approx(0.05)  # ddof 0; with ddof 1 it were 0.0707
    assert scores["distilled"]["a"].n == 2
    assert scores["full_real"] == {"a": Score(0.95, 0.0, 1)}


def test_mean_unseen_is_over_unseen_networks_per_repeat():
    means = report().mean_unseen()
    assert means["distilled"].mean == pytest.approx((0.5 + 0.6 + 0.3 + 0.2) / 4)
    assert means["distilled"].std == pytest.approx(0.0, abs=1e-12)  # (0.5 + 0.3) / 2 and (0.6 + 0.2) / 2
    assert means["random_real"].std == pytest.approx(
        math.sqrt(((0.175 - 0.225) ** 2 + (0.275 - 0.225) ** 2) / 2)
    )


def test_networks_with_different_numbers_of_repeats_count_alike():
    """The deviation is over the repeats that all have: 0.6 and 0.4 here, around 0.55."""
    more = (
        *ROWS[:4],
        row("distilled", "a", 2, 1.0),
        row("distilled", "b", 0, 0.7),
        row("distilled", "b", 1, 0.2),
    )
    means = report(more).mean_unseen()
    assert means["distilled"].mean == pytest.approx(((0.5 + 0.6 + 1.0) / 3 + (0.7 + 0.2) / 2) / 2)
    assert (means["distilled"].std, means["distilled"].n) == (pytest.approx(0.1), 2)
    alone = report(more).mean_unseen(["a"])["distilled"]
    assert alone == report(more).scores()["distilled"]["a"]
    assert report(more).metrics()["val/accuracy/mean_unseen"] == means["distilled"].mean
    none = report(
        (row("distilled", "a", 1, 0.5), row("distilled", "b", 0, 0.3))
    )  # as no evaluation leaves them
    assert none.mean_unseen()["distilled"] == Score(pytest.approx(0.4), 0.0, 0)


def test_a_report_reads_as_a_table():
    text = str(report())
    (line,) = [line for line in text.splitlines() if line.startswith("│ a ")]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "a",
        "55.0 ± 5.0",
        "30.0 ± 5.0",
        "95.0",
        "+25.0",
    ]
    assert "protocol quick, step 100" in " ".join(text.split())
    assert "\x1b" not in text


def test_gains():
    gains = report().gains()
    assert gains == pytest.approx({"seen": 0.4, "a": 0.25, "b": 0.1, "mean_unseen": 0.4 - 0.225})
    assert report(ROWS[:6]).gains() == {}


def test_sets_that_met_different_networks(tmp_path):
    """Gain and recovery are over the networks that both sets met; a mean over others is no part of them."""
    both = report((*ROWS[:10], *ROWS[12:]))  # random real images met `a` alone, and so did all real ones
    assert both.gains() == pytest.approx({"seen": 0.4, "a": 0.25, "mean_unseen": 0.25})
    assert both.mean_unseen()["distilled"].mean == pytest.approx(0.4)
    assert both.common_unseen("distilled", "random_real") == both.common_unseen() == ["a"]
    shares = both.recovery()["distilled"]
    assert shares == pytest.approx({"a": 0.55 / 0.95, "mean_unseen": 0.55 / 0.95})
    assert "means over different unseen networks" in " ".join(str(both).split())
    assert "means over different" not in str(report(ROWS[:12]))
    assert compared(both)["distilled"].mean == pytest.approx(0.55)

    none = report(
        (*ROWS[:8], row("full_real", "seen", 0, 0.9, unseen=False))
    )  # without an unseen one in common
    assert none.gains() == pytest.approx({"seen": 0.4})
    assert none.recovery()["distilled"] == pytest.approx({"seen": 0.8 / 0.9})
    none.write(tmp_path)
    assert len(none.tables()) == 2
    assert list(compared(none)) == ["distilled"]


def test_metrics():
    assert report().metrics() == pytest.approx(
        {
            "val/accuracy/seen": 0.8,
            "val/accuracy/a": 0.55,
            "val/accuracy/b": 0.25,
            "val/accuracy/mean_unseen": 0.4,
        }
    )
    assert "val/accuracy/mean_unseen" not in report(ROWS[:2]).metrics()


def test_csv(tmp_path):
    report().write(tmp_path)
    lines = (tmp_path / "evaluation.csv").read_text().splitlines()
    assert lines[0] == "step,set,network,unseen,repeat,seed,accuracy,seconds,protocol"
    assert lines[1] == "100,distilled,seen,false,0,7,0.9,1.5,quick"
    assert lines[3] == "100,distilled,a,true,0,7,0.5,1.5,quick"
    assert len(lines) == 1 + len(ROWS)
    assert Report.read(tmp_path).rows == ROWS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation.csv", "evaluation.json"]


def test_names_with_commas_survive(tmp_path):
    odd = (row('a "set", of sorts', "net,\nwork", 0, 1 / 3),)
    report(odd).write(tmp_path)
    assert Report.read(tmp_path).rows == odd
    with (tmp_path / "evaluation.csv").open(newline="") as file:
        assert list(csv.reader(file))[1][1] == 'a "set", of sorts'


def test_json(tmp_path):
    report().write(tmp_path)
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert summary["protocol"] == {"id": "quick", "hash": "0123456789abcdef"}
    assert summary["accuracy"]["distilled"]["a"] == pytest.approx({"mean": 0.55, "std": 0.05, "n": 2})
    assert summary["mean_unseen"]["distilled"]["mean"] == pytest.approx(0.4)
    assert summary["gain_over_random_real"]["mean_unseen"] == pytest.approx(0.175)
    assert summary["unseen"] == {"seen": False, "a": True, "b": True}
    assert (summary["step"], summary["seed"]) == (100, 7)
    assert "ddof 0" in summary["std"]


def test_merging_replaces_and_keeps(tmp_path):
    report().write(tmp_path)
    later = (
        row("distilled", "a", 0, 0.8, step=200),
        row("random_real", "a", 0, 0.3, step=200),
        row("random_real", "a", 1, 0.3, step=200),
    )
    other = row("distilled", "a", 0, 0.1, step=200, protocol="ld3m")
    merged = Report((*later, other), {"ld3m": "f" * 16}).after(Report.read(tmp_path))
    # All steps of the distilled set stay; random real images do not depend on the step, so the new rows replace them.
    assert [r for r in merged.rows if r.set == "distilled" and r.step == 100] == list(ROWS[:6])
    assert [r for r in merged.rows if (r.set, r.network) == ("random_real", "a")] == list(later[1:])
    assert [r for r in merged.rows if (r.set, r.network) == ("random_real", "b")] == list(ROWS[10:12])
    assert merged.protocols == {"quick": "0123456789abcdef", "ld3m": "f" * 16}
    assert merged.latest() == (other,)  # one protocol in a table

    again = Report(ROWS[2:3], {"quick": "0123456789abcdef"}).after(Report.read(tmp_path))
    assert [r for r in again.rows if (r.set, r.network) == ("distilled", "a")] == [
        ROWS[2]
    ]  # no mix of two runs


def test_history(tmp_path):
    later = tuple(row("distilled", n, 0, 0.5, step=200) for n in ("a", "b"))
    merged = Report(later, {"quick": "0123456789abcdef"}).after(report())
    assert merged.summary()["history"] == [
        {"protocol": "quick", "step": 100, **report().metrics()},
        {
            "protocol": "quick",
            "step": 200,
            "val/accuracy/a": 0.5,
            "val/accuracy/b": 0.5,
            "val/accuracy/mean_unseen": 0.5,
        },
    ]


def test_protocol_of_the_same_id_with_other_contents():
    report().check_protocol("quick", "0123456789abcdef")
    report().check_protocol("other", "x")
    with pytest.raises(
        UserError, match=r"protocol quick has changed .* \(hash 0123456789abcdef, now x\); give"
    ):
        report().check_protocol("quick", "x")


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\n", ",".join(COLUMNS) + "\n1,a,b,maybe,0,0,0.5,1,p\n", ",".join(COLUMNS) + "\n1,a\n", "\0\1"],
)
def test_a_file_that_is_no_evaluation(tmp_path, text):
    (tmp_path / "evaluation.csv").write_text(text)
    with pytest.raises(
        UserError, match=r"evaluation.csv is not an evaluation of this program .*; move it away"
    ):
        Report.read(tmp_path)


def test_no_report_yet(tmp_path):
    assert Report.read(tmp_path) is None
    assert Report.read(tmp_path / "missing") is None


def test_table_of_a_set_alone():
    alone = report(tuple(r for r in ROWS if r.set == "distilled"))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(accuracy_table(alone))
    text = console.export_text()
    assert "mean of unseen" in text
    assert "gain" not in text


def test_table():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(accuracy_table(report((*ROWS, row("distilled", "[b]", 0, 0.5)))))
    text = console.export_text()
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 2}
    assert "55.0 ± 5.0" in lines["a"]
    assert "30.0 ± 5.0" in lines["a"]
    assert "95.0 " in lines["a"]
    assert "+25.0" in lines["a"]
    assert "80.0 ± 10.0" in lines["seen (seen)"]
    assert "[b]" in lines
    assert "mean of unseen" in lines
    assert "protocol quick, step 100" in " ".join(text.split())  # the title wraps to the table
