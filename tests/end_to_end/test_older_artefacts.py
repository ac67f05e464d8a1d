"""What commit 1369bc3 wrote (`tests/data/1369bc3`) loads, continues and evaluates as it did then."""

import json
import shutil
from pathlib import Path

import pytest
import reference
import torch

from ldd import DistilledSet, TablePruner, cli
from ldd.artefact.manifest import FORMAT_VERSION
from ldd.evaluation import Report
from ldd.experts.trajectories import INDEX, Trajectories

OLD = Path(__file__).parents[1] / "data" / "1369bc3"
RECORDED = json.loads(Path(reference.__file__).with_name("reference.json").read_text())


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy to work in."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    reference.prepare(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["latentdd"])
    return folder


@pytest.mark.parametrize("name", ["dm", "dm/initial", "d3", "federated", "federated/subtasks/0"])
def test_sets_load(old, name):
    distilled = DistilledSet.load(old / name)
    assert distilled.classes[0].wnid == "digit-0"
    assert distilled.images.dtype == torch.uint8
    assert distilled.as_dataset()[0][0].shape == (3, 32, 32)


def test_a_set_saved_anew_keeps_its_facts(old):
    """Every file but the manifest byte for byte, and of the manifest all that the old one said."""
    DistilledSet.load(old / "dm").save(old / "again")
    for name in ("images.safetensors", "codes.safetensors", "preview.png"):
        assert (old / "again" / name).read_bytes() == (old / "dm" / "distilled" / name).read_bytes()
    before, after = (
        json.loads((old / folder / "manifest.json").read_text()) for folder in ("dm/distilled", "again")
    )
    assert after["format_version"] == FORMAT_VERSION
    for key in set(before) - {"format_version", "version"}:
        assert after[key] == before[key], key


def test_experts_and_scores_load(old):
    for folder, count in (("recording", 2), ("d3_experts", 2)):
        (recording,) = (Trajectories.open(path.parent) for path in Path(folder).glob(f"*/{INDEX}"))
        assert recording.num_experts >= count
        assert recording.read(0, [0]).shape[0] == 1
    assert TablePruner("scores.parquet", keep=0.3)


@pytest.mark.parametrize("runs", [["dm", "d3"], ["federated"]])
def test_reports_are_read_and_shown(old, runs):
    report = Report.read("dm")
    assert report is not None
    assert {row.set for row in report.rows} == {"distilled", "initial", "random_real", "full_real"}
    assert cli.main(["report", *runs, "--out", "page.html"]) == 0
    assert "distilled" in (old / "page.html").read_text()


def test_a_run_continues_to_the_same_bits(old):
    """From the checkpoint in its middle to the codes that it ended with."""
    then = DistilledSet.load(old / "dm").codes
    shutil.rmtree(old / "dm" / "distilled")
    (old / "dm" / "checkpoints" / "last.ckpt").unlink()
    arguments = ["fit", "--config", "dm/config.yaml", "--ckpt_path", "dm/checkpoints/previous.ckpt"]
    assert cli.main([*arguments, "--trainer.enable_progress_bar", "false"]) == 0
    now = DistilledSet.load(old / "dm").codes
    for name, value in then.items():
        torch.testing.assert_close(now[name], value, rtol=0, atol=1e-5 if value.is_floating_point() else 0)


def test_d3_is_evaluated_again(old):
    arguments = [*reference.RUNS["evaluate"][2:-2], "--out", "judged"]
    assert cli.main([str(word) for word in ("evaluate", "d3", *arguments, "--baselines", "random_real")]) == 0
    rows = [row for row in Report.read("judged").rows if row.set == "random_real"]
    assert rows


def test_a_finished_federation_is_gone_on_with(old, capsys):
    """All sub-tasks are there; the same command evaluates what is missing and runs none of them again."""
    times = {
        path: path.stat().st_mtime_ns for path in (old / "federated" / "subtasks").rglob("*.safetensors")
    }
    code = cli.main([str(word) for word in reference.RUNS["federation"]])
    assert code == 0, capsys.readouterr().err
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_an_option_that_the_run_did_not_have_is_its_default(old, capsys):
    """Another value than the default would make another set."""
    arguments = ["fit", "--config", "dm/config.yaml", "--ckpt_path", "dm/checkpoints/previous.ckpt"]
    assert cli.main([*arguments, "--model.prior_precision", "bfloat16"]) == 2
    assert (
        "started with other settings (model.prior_precision: 'float32' -> 'bfloat16')"
        in capsys.readouterr().err
    )
