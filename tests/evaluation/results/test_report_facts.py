"""What evaluations say of their sets stays beside later ones, and each protocol's apart."""

import json

import pytest

from ldd.errors import UserError
from ldd.evaluation import Report
from tests.evaluation.results.test_report import row


def cost(steps):
    return {"storage": {"bytes": 10}, "training": {"steps": steps, "decodes": 0}}


def evaluation(*sets, protocol="quick", step=100, steps=100, repeats=1, **facts):
    """A network on each of these sets."""
    rows = tuple(
        row(name, "a", n, 0.5, protocol=protocol, step=step) for name in sets for n in range(repeats)
    )
    costs = {name: cost(steps) for name in sets}
    return Report(rows, {protocol: "h" * 16}, {"cost": costs, "sets": {str(step): "x"}, **facts})


def written(folder, *reports):
    """What a folder holds after these evaluations, each after the one before."""
    for report in reports:
        earlier = Report.read(folder)
        (report if earlier is None else report.after(earlier)).write(folder)
    return Report.read(folder), json.loads((folder / "evaluation.json").read_text())


def test_a_later_evaluation_leaves_the_facts_of_other_sets(tmp_path):
    first = evaluation(
        "distilled", "random_real", left_out={"easy_real": "few", "prior_samples": "none"}, seed=1
    )
    first = Report(first.rows, first.protocols, {**first.facts, "subtasks": 2})
    report, summary = written(tmp_path, first, evaluation("distilled", "prior_samples", seed=2))
    assert summary["cost"].keys() == {"distilled", "random_real", "prior_samples"}
    assert summary["left_out"] == {"easy_real": "few"}, "the other is there by now"
    assert (summary["subtasks"], summary["seed"]) == (2, 2)
    assert summary["evaluations"].keys() == {"quick"}
    assert report.spent() == {"seconds": 4.5, "students": 3, "steps": 300, "decodes": 0}
    report.write(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == summary


def test_each_protocol_has_its_own(tmp_path):
    reports = [
        evaluation("distilled", left_out={"easy_real": "few"}),
        evaluation("distilled", protocol="idc", steps=200),
    ]
    report, summary = written(tmp_path, *reports)
    assert report.spent()["steps"] == 300
    assert summary["cost"]["distilled"]["training"]["steps"] == 200
    assert "left_out" not in summary
    assert summary["evaluations"]["quick"]["left_out"] == {"easy_real": "few"}
    assert report.of_protocol("quick").facts["cost"]["distilled"]["training"]["steps"] == 100
    report, summary = written(tmp_path, evaluation("random_real", steps=50))
    assert summary["protocol"]["id"] == "quick"
    assert (summary["left_out"], report.spent()["steps"]) == ({"easy_real": "few"}, 350)


def test_a_file_from_before(tmp_path):
    """Cost and what was left out stood at the top alone, and were of the latest evaluation."""
    written(tmp_path, evaluation("distilled", protocol="idc"), evaluation("distilled", left_out={"a": "why"}))
    path = tmp_path / "evaluation.json"
    old = {name: value for name, value in json.loads(path.read_text()).items() if name != "evaluations"}
    path.write_text(json.dumps(old))
    report = Report.read(tmp_path)
    assert report.facts_by_protocol().keys() == {"quick"}
    assert report.spent()["steps"] is None, "that of the other protocol is not known"
    assert report.of_protocol("quick").spent()["steps"] == 100
    _, summary = written(tmp_path, evaluation("random_real"))
    assert summary["cost"].keys() == {"distilled", "random_real"}
    assert summary["left_out"] == {"a": "why"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("before", [[], [evaluation("distilled", split="selection")]])
def test_both_files_or_neither(tmp_path, before):
    """Facts that cannot be written, or a folder in the place of a file: what was there is there, and nothing else."""
    if before:
        written(tmp_path, *before)
    there = contents(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        evaluation("random_real", protocol="idc", odd={1, 2}).write(tmp_path)
    assert contents(tmp_path) == there
    assert len([*tmp_path.iterdir()]) == len(there)
    for name in ("evaluation.json", "evaluation.csv"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=name):
            evaluation("random_real", protocol="idc").write(tmp_path)
        assert contents(tmp_path) == {other: there[other] for other in there if other != name}
        (tmp_path / name).rmdir()
        for other in there:
            (tmp_path / other).write_bytes(there[other])


def test_killed_between_the_two(tmp_path):
    """The facts are the later evaluation's, which hold for earlier rows as well; the same call completes it."""
    first, second = evaluation("distilled", split="selection"), evaluation("random_real", protocol="idc")
    written(tmp_path, first)
    rows = (tmp_path / "evaluation.csv").read_bytes()
    second = Report(second.rows, second.protocols, {**second.facts, "split": "selection"})
    whole, summary = written(tmp_path, second)
    (tmp_path / "evaluation.csv").write_bytes(rows)
    left = Report.read(tmp_path)
    assert (left.rows, left.split) == (first.rows, "selection")
    assert left.summary()["protocol"] == {"id": "quick", "hash": "h" * 16}
    with pytest.raises(UserError, match="protocol idc has changed"):
        left.check_protocol("idc", "other")
    again, also = written(tmp_path, second)
    assert (again.rows, also) == (whole.rows, summary)


@pytest.mark.parametrize(
    "facts", [{"evaluations": 3}, {"evaluations": {"quick": {"cost": 3}}}, {"protocol": "x"}]
)
def test_damaged_facts(tmp_path, facts):
    written(tmp_path, evaluation("distilled"))
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    with pytest.raises(UserError, match="is not an evaluation of this program"):
        Report.read(tmp_path)
