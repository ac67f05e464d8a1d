"""Testing on the selection split, by which settings are chosen, instead of the test split."""

from dataclasses import replace

import pytest
import torch
from small_world import NARROW, SmallData, protocol_file, small_set

from ldd.cli import main
from ldd.errors import UserError
from ldd.evaluation import Protocol, RandomReal, evaluate
from ldd.evaluation.comparison import report_in
from ldd.evaluation.courses import courses
from ldd.evaluation.request import Request
from ldd.report.runs import check_comparable, read_runs


def run(tmp_path, data=None, *, protocol=None, **settings):
    protocol = protocol or Protocol.load(protocol_file(tmp_path))
    settings = {"repeats": 2, "num_workers": 1, "progress": False, "baselines": [RandomReal()]} | settings
    return evaluate(small_set(2), {"narrow": NARROW}, data or SmallData(), protocol, **settings)


def accuracies(report):
    return [row.accuracy for row in report.rows]


def test_it_is_as_if_those_were_the_test_images(tmp_path):
    data, swapped = SmallData(), SmallData()
    # So that two classes of three are wrong.
    data.selection_images.labels = data.selection_images.labels.flip(0)
    swapped.test_images = data.selection_images
    every_other = Protocol.load(protocol_file(tmp_path, test_every=2))
    found = run(tmp_path, data, split="selection", protocol=every_other)  # which is small: all of it is taken
    assert accuracies(found) == accuracies(run(tmp_path, swapped))
    assert found.facts["test_images"] == len(swapped.test_images)
    assert accuracies(found) != accuracies(run(tmp_path, data))


def test_the_test_images_are_not_looked_at(tmp_path):
    data = SmallData()
    del data.test_images
    looking = Protocol.load(protocol_file(tmp_path, looks=2))
    rows = run(tmp_path, data, split="selection", protocol=looking).rows
    assert {row.selected for row in rows} == {None}  # an epoch chosen by what it is tested on says nothing


def test_tables_and_files_say_so(tmp_path):
    found, tested = run(tmp_path, split="selection"), run(tmp_path)
    assert "(selection split, last epoch" in found.tables()[0].title
    assert "(test split, last epoch" in tested.tables()[0].title
    found.write(tmp_path / "found")
    tested.write(tmp_path / "tested")
    protocol = Protocol.load(protocol_file(tmp_path))
    assert report_in(tmp_path / "found", protocol, SmallData(), "selection").split == "selection"
    for folder, split in (("found", "test"), ("tested", "selection")):
        with pytest.raises(
            UserError, match=rf"split \({split}\) asks for another; evaluate into another folder"
        ):
            report_in(tmp_path / folder, protocol, SmallData(), split)


def test_reports_do_not_put_the_two_side_by_side(tmp_path):
    for name, split in (("one", "test"), ("two", "selection")):
        small_set(2).save(tmp_path / name / "distilled")
        run(tmp_path, split=split).write(tmp_path / name)
    with pytest.raises(UserError, match="tested on the selection split"):
        check_comparable(read_runs([str(tmp_path / "one"), str(tmp_path / "two")]))


def test_without_a_selection_split(tmp_path):
    data = SmallData()
    data.setup()
    data.selection_images = data.selection_images.select(torch.arange(0))
    request = Request(data, Protocol.load(protocol_file(tmp_path)), baselines=())
    courses(small_set(), request)
    with pytest.raises(
        UserError, match=r"split \(selection\) tests on .* is empty: .* or test on the test split"
    ):
        replace(request, split="selection").test_split()
    looking = replace(request, protocol=Protocol.load(protocol_file(tmp_path, looks=2)))
    with pytest.raises(UserError, match=r"protocol small looks at the selection split .* which is empty"):
        courses(small_set(), looking)


@pytest.mark.slow
def test_on_the_command_line(tmp_path, capsys):
    words = ["evaluate", "embedded:digits-1", "--data", "configs/data/digits.yaml", "--protocol", "quick"]
    words += ["--repeats", "1", "--baselines", "none", "--num_workers", "1", "--split", "selection"]
    words += [
        "--networks",
        '{"ConvNet":{"class_path":"ldd.networks.ConvNet","init_args":{"width":8,"depth":2}}}',
    ]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "(selection split, last" in " ".join(capsys.readouterr().out.split())
    assert '"test_images": 179' in (tmp_path / "out" / "evaluation.json").read_text()
    assert main([*words[:-4], *words[-2:], "--out", str(tmp_path / "out")]) == 2
    assert "accuracies on the selection split, and split (test) asks for another" in capsys.readouterr().err
