"""What a report reads of run folders, and which of them it refuses to put side by side."""

from dataclasses import replace

import pytest
from small_world import CLASSES, SPEC, small_set
from tiny_set import tiny_set

from ldd.errors import UserError
from ldd.evaluation import Report, Row
from ldd.report import check_comparable, read_runs, write_report
from ldd.report.charts import line_chart, styles
from ldd.report.tables import byte_table, cost_table, judged


def rows(protocol="small", *, step=4, gain=0.1):
    """Two sets, two networks (one seen), two repeats."""
    return tuple(
        Row(step, name, network, network == "other", repeat, 7, accuracy + 0.02 * repeat, 1.5, protocol)
        for name, accuracy in (("distilled", 0.5 + gain), ("random_real", 0.5))
        for network in ("narrow", "other")
        for repeat in range(2)
    )


def make_run(folder, *, protocols=("small",), hashes=None, facts=None, seed=3, **of_set):
    stages = {
        "prune": {"seconds": 3.0, "peak_memory_mib": 50.0},
        "distil": {"seconds": 60.0, "peak_memory_mib": 100.0, "steps": 4, "decodes": 12},
        "evaluate": {"seconds": 1.0, "peak_memory_mib": 400.0, "steps": 1, "decodes": 0},
    }
    given = {"stages": stages, "test_split_fingerprint": SPEC.fingerprint} | of_set
    small_set(seed=seed, **given).save(folder / "distilled")
    (folder / "logs" / "version_0").mkdir(parents=True)
    (folder / "logs" / "version_0" / "metrics.csv").write_text(
        "epoch,step,train/loss,val/x\n0,0,5.0,\n0,1,4.0,\n0,1,,0.5\n0,2,9.0,\n0,3"
    )
    (folder / "logs" / "version_1").mkdir()
    (folder / "logs" / "version_1" / "metrics.csv").write_text("epoch,step,train/loss\n0,2,3.0\n0,3,2.5\n")
    found = tuple(row for protocol in protocols for row in rows(protocol))
    if found:
        training = {"epochs": 4, "images_per_epoch": 3, "steps": 4, "decodes": 0, "images": 12}
        storage = {"bytes": 9240, "ipc_equivalents": 1.0, "ipc_equivalents_without_labels": 0.99}
        cost = {name: {"storage": storage, "training": training} for name in ("distilled", "random_real")}
        facts = {"test_split_fingerprint": SPEC.fingerprint, "test_images": 30, "cost": cost} | (facts or {})
        Report(found, hashes or dict.fromkeys(protocols, "h" * 16), facts).write(folder)
    return folder


class TestRun:
    def test_reads(self, tmp_path):
        (run,) = read_runs([str(make_run(tmp_path / "a"))])
        assert run.name == "a"
        assert run.losses == [(0, 5.0), (1, 4.0), (2, 3.0), (3, 2.5)]  # what was resumed replaces
        assert run.fingerprint == SPEC.fingerprint
        assert run.initial is None
        assert run.objective == "unknown"
        assert list(run.evaluations) == ["small"]

    def test_names_are_as_long_as_they_must_be(self, tmp_path):
        paths = [str(make_run(tmp_path / method / "seed-0")) for method in ("DC", "DM")]
        assert [run.name for run in read_runs(paths)] == ["DC/seed-0", "DM/seed-0"]
        assert [run.name for run in read_runs(paths[:1])] == ["seed-0"]

    def test_a_set_alone(self, tmp_path):
        path = tiny_set().save(tmp_path / "mine")
        (run,) = read_runs([str(path)])
        assert (run.name, run.evaluations, run.losses, run.fingerprint) == ("mine", {}, [], None)
        write_report([run], tmp_path / "page.html")
        assert "unknown" in (tmp_path / "page.html").read_text()

    def test_refuses_one_twice(self, tmp_path):
        run = make_run(tmp_path / "a")
        with pytest.raises(UserError, match="named twice"):
            read_runs([str(run), str(run / "distilled")])


class TestComparable:
    def compare(self, *folders):
        check_comparable(read_runs([str(folder) for folder in folders]))

    def test_same(self, tmp_path):
        self.compare(make_run(tmp_path / "a"), make_run(tmp_path / "b"))

    def test_other_test_images(self, tmp_path):
        other = make_run(tmp_path / "b", facts={"test_split_fingerprint": "e" * 32})
        text = (
            rf"a and b are of different data: .* is {'f' * 32} for .*a and {'e' * 32} for .*b; make a report"
        )
        with pytest.raises(UserError, match=text):
            self.compare(make_run(tmp_path / "a"), other)

    def test_unknown_test_images(self, tmp_path):
        alone = make_run(tmp_path / "b", protocols=(), test_split_fingerprint=None)
        with pytest.raises(UserError, match=rf"is {'f' * 32} for .* and unknown for"):
            self.compare(make_run(tmp_path / "a"), alone)

    def test_other_classes(self, tmp_path):
        other = tmp_path / "b"
        tiny_set(test_split_fingerprint=SPEC.fingerprint).save(other)
        with pytest.raises(UserError, match=r"different classes: n0, n1, n2, and n03, n01, n02; make"):
            self.compare(make_run(tmp_path / "a"), other)

    def test_a_protocol_that_was_edited(self, tmp_path):
        other = make_run(tmp_path / "b", hashes={"small": "g" * 16})
        text = rf"different protocols of one id, small: hash {'h' * 16} and {'g' * 16}; their numbers"
        with pytest.raises(UserError, match=text):
            self.compare(make_run(tmp_path / "a"), other)


class TestTables:
    def test_protocols_never_share_a_table(self, tmp_path):
        paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", protocols=("small", "large"))]
        small, large = (found.tables[0] for found in judged(read_runs([str(path) for path in paths])))
        assert small.title == "Top-1 accuracy in %, protocol small"
        assert [row[:2] for row in small.rows] == [
            (run, name) for run in "ab" for name in ("distilled", "random_real")
        ]
        assert [row[0] for row in large.rows] == ["b", "b"]

    def test_numbers(self, tmp_path):
        table = judged(read_runs([str(make_run(tmp_path / "a"))]))[0].tables[0]
        assert table.head == ("run", "set", "step", "narrow (seen)", "other", "mean of unseen", "gain")
        # Repeats 0.60 and 0.62: mean 61.0, population standard deviation 1.0.
        assert table.rows[0] == ("a", "distilled", "4", "61.0 ± 1.0", "61.0 ± 1.0", "61.0 ± 1.0", "+10.0")
        assert table.rows[1] == ("a", "random_real", "4", "51.0 ± 1.0", "51.0 ± 1.0", "51.0 ± 1.0", "")

    def test_all_dimensions_and_what_was_left_out(self, tmp_path):
        """Beside accuracies: what each evaluated set stores and costs, recovery, robust scores, looks, reasons."""
        run = make_run(tmp_path / "a", facts={"left_out": {"easy_real": "too few"}})
        report = Report.read(run)
        sets = ("full_real", "distilled_plain", "random_real_plain")
        more = (replace(row, set=name) for row in report.rows[:4] for name in sets)
        looked = tuple(replace(row, selected=0.5, best_on_test=0.7) for row in (*report.rows, *more))
        cost = {**report.facts["cost"], "full_real": report.facts["cost"]["distilled"]}
        Report(looked, report.protocols, {**report.facts, "cost": cost}).write(run)
        other = make_run(tmp_path / "b")
        (found,) = judged(read_runs([str(run), str(other)]))
        _, dimensions, robust, looks = found.tables
        assert dimensions.head[:3] == ("run", "set", "bytes")
        # Bytes, IPC, epochs, images, steps, decodes, seconds, accuracy, of full data.
        expected = ("9,240", "1.00", "0.99", "4", "12", "4", "0", "1.5", "51.0", "83.6 %")
        assert dimensions.rows[1] == ("a", "random_real", *expected)
        assert dimensions.rows[-1] == ("b", "random_real", *expected[:-1], "")
        assert [row[:2] for row in robust.rows] == [("a", "narrow"), ("a", "other")]
        assert robust.rows[0][2] == "0.000 ± 0.010"
        assert "chosen on the test images" in looks.title
        assert looks.rows[0] == ("a", "distilled", "narrow", "61.0 ± 1.0", "50.0 ± 0.0", "70.0 ± 0.0")
        assert found.left_out == {"a": {"easy_real": "too few"}}
        write_report(read_runs([str(run), str(other)]), tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "a, protocol small: 1 baseline left out" in page
        for text in ("83.6 %", "LRS", "best on test", "too few"):
            assert text in page

    def test_bytes(self, tmp_path):
        table = byte_table(read_runs([str(make_run(tmp_path / "a"))]))
        pixels = 3 * 3 * SPEC.image_size**2
        each = ("1", f"{SPEC.image_size**2:,}", f"{pixels // 3 + 8:,}")
        assert table.rows == (("a", *each, f"{pixels:,}", "0", "24", "0", f"{pixels + 24:,}", "1.00"),)

    def test_costs_are_added_up(self, tmp_path):
        paths = [str(make_run(tmp_path / name)) for name in "ab"]
        found = {row[:2]: row[2:] for row in cost_table(read_runs(paths)).rows}
        # 2 sets x 2 networks x 2 repeats of 1.5 s and 4 steps, whatever the manifest knew.
        assert found["a", "evaluate"] == ("12.0 s", "400 MiB", "32", "0")
        assert found["a", "in all"] == ("1 min 15 s", "400 MiB", "36", "12")
        assert found["all runs", "prune"] == ("6.0 s", "50 MiB", "", "")
        assert found["all runs", "in all"] == ("2 min 30 s", "400 MiB", "72", "24")

    def test_unknown_stays_unknown(self, tmp_path):
        run = make_run(
            tmp_path / "a", protocols=(), stages={"distil": {"seconds": None}, "label": {"seconds": 1.0}}
        )
        found = {row[:2]: row[2:] for row in cost_table(read_runs([str(run)])).rows}
        assert found["a", "in all"][0] == "unknown"


def test_charts_are_repeatable_and_their_parts_unique():
    curves = {"a": [(i, 1.0) for i in range(1000)], "b": [(0.0, 2.0), (5.0, 1.0)]}
    one, again, other = (line_chart(key, curves, styles("ab"), "loss") for key in ("x", "x", "y"))
    assert one == again
    assert 'id="x-' in one
    assert 'id="y-' in other
    assert "currentColor" in one
    assert "http://www.w3.org/2000/svg" in one
    assert len(styles([str(i) for i in range(50)])) == 50
    assert len(CLASSES) == 3
