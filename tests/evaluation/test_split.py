"""Testing on the selection split, by which settings are chosen, instead of the test split."""

from dataclasses import replace

import pytest
import torch
from small_world import NARROW, SPEC, SmallData, protocol_file, small_set

from ldd.cli import main
from ldd.errors import UserError
from ldd.evaluation import Protocol, RandomReal, evaluate
from ldd.evaluation.comparison import report_in
from ldd.evaluation.courses import courses
from ldd.evaluation.request import Request
from ldd.report import write_report
from ldd.report.runs import check_comparable, read_runs
from ldd.report.tables import judged


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
    # Without an evaluation, of which there is nothing to mix.
    small_set(2, test_split_fingerprint=SPEC.fingerprint).save(tmp_path / "none" / "distilled")
    one, two, none = read_runs([str(tmp_path / name) for name in ("one", "two", "none")])
    with pytest.raises(
        UserError, match="one was tested on the test split, and two on the selection split; make"
    ):
        check_comparable([one, none, two])
    for tested, split in ((one, "test"), (two, "selection")):
        write_report([tested, none], tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        (found,) = judged([tested, none])
        assert found.tables[0].note.startswith(f"{split.capitalize()} split, mean")
        assert all(f", {split} split, protocol small" in table.title for table in found.tables[1:])
        assert f"images of the {split} split" in page
        assert "selection split" in page or split == "test"
        assert ("Test split" in page, "test split)" in page) == (split == "test",) * 2


def test_every_plot_and_table_of_an_evaluation_says_so(tmp_path):
    for split in ("test", "selection"):
        found = run(tmp_path, split=split)
        assert found.plot().axes[0].get_ylabel() == f"top-1 accuracy in % ({split} split)"
        shown = [f"{table.title} {table.note}" for table in found.tables()]
        assert len(shown) > 2
        assert all(f"{split} split" in text for text in shown), shown


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
