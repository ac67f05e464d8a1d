"""Where runs stand, told from real folders: running, killed, failed, finished, in a sweep and in a federation."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from small_runs import ROOT, small_arguments

from ldd import cli
from ldd.disk.locks import writing_in
from ldd.errors import UserError
from ldd.report.status import parts_of

PIXELS = [
    *("--config", "configs/quickstart.yaml", "--model.prior", "configs/prior/pixel.yaml"),
    *(
        "--data.subset",
        '["digit-0", "digit-1", "digit-4", "digit-7"]',
        "--trainer.enable_progress_bar",
        "false",
    ),
    *(
        "--model.objective.init_args.real_batch",
        "4",
        "--model.objective.init_args.network.init_args.width",
        "8",
    ),
    *("--trainer.max_steps", "2"),
]


@pytest.fixture(scope="module")
def finished(tiny_prior_path, tmp_path_factory):
    """A run of two steps without an evaluation."""
    run = tmp_path_factory.mktemp("status") / "run"
    words = ["fit", *small_arguments(tiny_prior_path), "--trainer.max_steps", 2, "--preview.every_n_steps", 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert cli.main([*map(str, words), "--trainer.default_root_dir", str(run)]) == 0
    return run


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "a run"))


def one(folder):
    (part,) = parts_of(folder)
    return part


def test_a_run_that_is_finished(run):
    part = one(run)
    assert (part.kind, part.state, part.step, part.steps) == ("run", "finished", 2, 2)
    assert part.next == ("report", str(run), "--out", str(run / "report.html"))


def test_a_run_that_was_stopped_goes_on_with_what_is_to_be_typed(run, monkeypatch):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 2", "max_steps: 4"))
    part = one(run)
    assert (part.state, part.step, part.steps) == ("stopped", 2, 4)
    monkeypatch.chdir(ROOT)
    assert cli.main(list(part.next)) == 0
    assert (one(run).state, one(run).step) == ("finished", 4)


def test_a_run_that_is_going_on_is_left_alone(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with writing_in(run):
        part = one(run)
    assert part.state == "running"
    assert "process" in part.note
    assert part.next == ()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path != run} == {
        path: time for path, time in before.items() if path != run
    }


def test_a_run_whose_log_ends_with_an_error_has_failed(run):
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "distilled")
    (run / "output.log").write_text("step 1\nlatentdd fit: error: data.root (/x) does not exist\n\n")
    part = one(run)
    assert (part.state, part.step, part.note) == (
        "failed",
        None,
        "latentdd fit: error: data.root (/x) does not exist",
    )


@pytest.mark.parametrize("damage", ["checkpoints/last.ckpt", "config.yaml", "distilled/manifest.json"])
def test_a_damaged_run_is_shown_all_the_same(run, damage):
    (run / damage).write_bytes(b"\xff{ not what it was")
    if damage.startswith("checkpoints"):
        (run / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    part = one(run)
    assert part.state in ("stopped", "finished")
    assert (part.step, part.steps) in ((2, 2), (2, None))


def test_a_federation_and_its_jobs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "federation"
    command = ["federate", *PIXELS, "--out", str(out), "--subtasks", "2", "--trainer.limit_val_batches", "0"]
    assert cli.main([*command, "--engine", "slurm"]) == 0
    states = [(part.kind, part.state, part.step) for part in parts_of(out)]
    assert states == [("job", "waiting", None), ("job", "waiting", None), ("federation", "stopped", 0)]
    assert cli.main(["federate", "--out", str(out), "--only", "1"]) == 0
    *jobs, whole = parts_of(out)
    assert [(job.state, job.step, job.steps) for job in jobs] == [("waiting", None, None), ("finished", 2, 2)]
    assert (whole.state, whole.step, whole.steps) == ("stopped", 1, 2)
    assert cli.main(list(whole.next)) == 0
    capsys.readouterr()
    assert cli.main(["status", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [part["state"] for part in found] == ["finished"] * 3
    assert shlex.split(found[-1]["next"]) == [
        "latentdd",
        "report",
        str(out),
        "--out",
        str(out / "report.html"),
    ]
    (out / "federation.json").write_text("{}")
    assert cli.main(["status", str(out)]) == 2


def test_a_sweep_and_its_cells(run, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    for name in ("a", "b"):
        shutil.copytree(run, sweep / name / "seed-0")
        (sweep / name / "seed-0" / "cell.json").write_text("{}")
    shutil.rmtree(sweep / "b" / "seed-0" / "checkpoints")
    shutil.rmtree(sweep / "b" / "seed-0" / "distilled")
    commands = [
        {
            "verb": "sweep",
            "command": "latentdd sweep --config 'my sweep.yaml' --out sweep",
            "package_version": "0",
        }
    ]
    (sweep / "commands.json").write_text(json.dumps(commands))
    (tmp_path / "a run" / "distilled").rename(tmp_path / "moved")
    link = tmp_path / "link"
    link.symlink_to(sweep)
    parts = {str(part.folder.relative_to(tmp_path)): part for part in parts_of(tmp_path)}
    assert {name: (part.kind, part.state) for name, part in parts.items()} == {
        "a run": ("run", "stopped"),
        "sweep/a/seed-0": ("cell", "finished"),
        "sweep/b/seed-0": ("cell", "stopped"),
        "sweep": ("sweep", "stopped"),
    }
    assert (parts["sweep"].step, parts["sweep"].steps) == (1, 2)
    assert parts["sweep"].next == ("sweep", "--config", "my sweep.yaml", "--out", "sweep")
    assert parts["sweep/b/seed-0"].next == ()
    assert cli.main(["status", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert ": latentdd sweep --config 'my sweep.yaml' --out sweep" in said


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list(parts_of(tmp_path / "none"))
    with pytest.raises(UserError, match="holds no run, sweep or federation"):
        list(parts_of(tmp_path))


def test_the_last_lines_of_all_logs_are_shown_with_who_said_them(run, capsys):
    (run / "output.log").write_text("one\ntwo \x1b[31mred\n\nthree [b]\n")
    assert cli.main(["status", str(run), "--lines", "2"]) == 0
    said = capsys.readouterr().out
    assert f"{run}/output.log\ntwo \N{REPLACEMENT CHARACTER}[31mred\nthree [b]\n" in said
    assert f"{run}/ranks/rank-0000.log\n" in said
    assert "rank 0 of 1" in said
    assert "INFO: has ended\n" in said
    assert cli.main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["logs"] == [
        f"{run}/output.log",
        f"{run}/ranks/rank-0000.log",
    ]
    assert cli.main(["status", str(run), "--lines", "-1"]) == 2
    assert "lines (-1) must be at least 0" in capsys.readouterr().err
