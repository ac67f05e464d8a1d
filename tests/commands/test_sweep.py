"""`latentdd sweep`: a small one on the digits, its continuation, cells that fail, and signals."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

import ldd
from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.commands import sweep as verb
from ldd.errors import UserError
from ldd.runs.history import recorded_commands
from ldd.runtime.devices import available_cores
from ldd.sweeps import running as sweep_running
from ldd.sweeps.file import Sweep
from ldd.sweeps.running import LOG_NAME, Runs, sweep
from tests.sweeps.test_file import write

ROOT = Path(ldd.__file__).parent.parent


@pytest.fixture
def small(tmp_path, tiny_prior_path):
    """Two cells of two steps: LD3M on the digits with tiny parts, one network trained for two epochs."""
    (tmp_path / "protocol.yaml").write_text(
        yaml.safe_dump(
            {
                "id": "tiny",
                "source": "test",
                "epochs": 2,
                "full_data_epochs": 2,
                "batch_size": 256,
                "lr": 0.01,
                "momentum": 0.9,
                "weight_decay": 0.0,
                "augmentations": [],
                "networks": {"ViT": {"class_path": "ldd.networks.ViT", "init_args": {"depth": 1, "dim": 32}}},
            }
        )
    )
    prior = {"model.prior.init_args.path_or_hub_id": str(tiny_prior_path)}
    config = write(
        tmp_path,
        base=str(ROOT / "configs" / "ld3m_digits.yaml"),
        axes={
            "steps": {n: {**prior, "model.prior.init_args.num_steps": n} for n in (1, 2)},
        },
        seeds=[5],
    )
    extra = [
        "--trainer.max_steps",
        "2",
        "--evaluation.repeats",
        "2",
        "--evaluation.baselines",
        "[ldd.evaluation.RandomReal]",
    ]
    extra += ["--evaluation.protocol", str(tmp_path / "protocol.yaml"), "--evaluation.num_workers", "1"]
    extra += ["--model.objective.init_args.real_batch", "4", "--evaluation.initial", "false"]
    extra += [
        "--model.objective.init_args.network.init_args.width",
        "8",
        "--trainer.enable_progress_bar",
        "false",
    ]
    return config, extra


@pytest.fixture
def here(monkeypatch):
    """Cells run in this process; the list of what was run."""
    done = []

    class Here(Runs):
        def __call__(self, commands):
            for name, arguments, _ in commands:
                done.append(arguments)
                yield name, cli.main(arguments)

    monkeypatch.setattr(sys, "argv", ["latentdd"])
    monkeypatch.setattr(sweep_running, "Runs", Here)
    return done


def test_two_cells_make_a_table_and_a_plot_and_are_not_run_again(small, here, tmp_path, capsys):
    config, extra = small
    out = tmp_path / "out"
    command = ["--config", str(config), "--out", str(out), "--", *extra]
    verb.main("sweep", command)
    assert [arguments[-2:] for arguments in here] == [["--overwrite", "true"]] * 2
    of_sweep = recorded_commands(out)[0].command
    assert of_sweep.startswith("latentdd sweep --config sweep.yaml --out out -- ")
    (of_cell,) = recorded_commands(out / "1" / "seed-5")
    assert of_cell.command.startswith("latentdd fit --config ld3m_digits.yaml --trainer.max_steps 2 ")
    with (out / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*("steps", "seed", "protocol", "split", "set", "network", "mean", "std", "n")]
    for name in ("1", "2"):
        found = json.loads((out / name / "seed-5" / "evaluation.json").read_text())
        mine = {(row["set"], row["network"]): row for row in rows if row["steps"] == name}
        assert float(mine["distilled", "ViT"]["mean"]) == found["accuracy"]["distilled"]["ViT"]["mean"]
        assert float(mine["random_real", "mean_unseen"]["std"]) == found["mean_unseen"]["random_real"]["std"]
        assert mine["distilled", "ViT"]["n"] == "2"
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "mean_unseen" in capsys.readouterr().out
    verb.main("sweep", command)
    assert len(here) == 2
    # A cell that was stopped goes on from its checkpoint; the finished one stays.
    record = out / "2" / "seed-5" / "cell.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": False}))
    verb.main("sweep", ["--dry_run", "true", *command])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("latentdd fit")]
    assert line.endswith("seed-5 --ckpt_path last")
    verb.main("sweep", command)
    assert len(here) == 3
    assert json.loads(record.read_text())["finished"]
    # The same settings in another order, and with the protocol in another file.
    copied = Path(shutil.copy(tmp_path / "protocol.yaml", tmp_path / "copied.yaml"))
    pairs = [*zip(extra[::2], extra[1::2], strict=True)][::-1]
    turned = [word for pair in pairs for word in pair]
    turned[turned.index(str(tmp_path / "protocol.yaml"))] = str(copied)
    command = [*command[: command.index("--")], "--", *turned]
    verb.main("sweep", command)
    assert len(here) == 3
    copied.write_text(copied.read_text().replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(UserError, match=r"other settings \(evaluation.protocol: .*; choose another --out"):
        verb.main("sweep", command)
    with pytest.raises(UserError, match=r"was run with other settings .* choose another --out"):
        verb.main("sweep", [*command, "--trainer.max_steps", "3"])


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_cell_does_not_stop_the_others(jobs, tmp_path, monkeypatch, capfd):
    """Real processes, which fail since data and prior do not go together; what they say is shown either way."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    base, options = str(ROOT / "configs" / "quickstart.yaml"), {"data.image_size": 100}
    config = write(tmp_path, base=base, options=options, axes={"x": {"one": {}, "two": {}}})
    with pytest.raises(UserError, match=r"2 of 2 cells failed .*one/seed-0, .*two/seed-0"):
        sweep(str(config), str(tmp_path / "out"), jobs)
    assert capfd.readouterr().err.count("data.image_size (100) differs") == 2
    for name in ("one", "two"):
        assert json.loads((tmp_path / "out" / name / "seed-0" / "cell.json").read_text())["finished"] is False
        assert (tmp_path / "out" / name / "seed-0" / LOG_NAME).exists() == (jobs > 1)
    with pytest.raises(UserError, match=r"jobs \(0\) must be at least 1"):
        sweep(str(config), str(tmp_path / "out"), 0)


def test_settings_that_no_run_takes_are_refused_before_any_cell_runs(tmp_path, capfd):
    base = str(ROOT / "configs" / "quickstart.yaml")
    axes = {"x": {"one": {}, "two": {"model.chunk_sise": 3}}}
    config = write(tmp_path, base=base, axes=axes, seeds=[0, 1])
    with pytest.raises(UserError, match=r"cell two, seed 0 cannot be run \(see above\)"):
        sweep(str(config), str(tmp_path / "out"))
    assert capfd.readouterr().err.count("chunk_sise") == 1
    assert not (tmp_path / "out").exists()


def wait_for(condition, process):
    deadline = time.monotonic() + 600  # two runs beside whatever else the machine does
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ctrl_c_reaches_all_cells_and_each_can_be_continued(small, tmp_path):
    """Two cells at once, which would run for hours; the third is never started."""
    config, extra = small
    content = yaml.safe_load(config.read_text())
    content["axes"]["steps"]["3"] = content["axes"]["steps"][1]
    config.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    extra += ["--trainer.max_steps", "100000", "--checkpoint.every_n_steps", "2"]
    command = ["sweep", "--config", str(config), "--out", str(out), "--jobs", "2", "--", *extra]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ldd", *command],
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folders = [out / name / "seed-5" for name in ("1", "2")]
    wait_for(lambda: all((folder / "checkpoints" / "last.ckpt").is_file() for folder in folders), process)
    runs = [child for child in psutil.Process(process.pid).children() if "fit" in child.cmdline()]
    share = str(max(1, available_cores() // 2))
    assert [run.environ()["OMP_NUM_THREADS"] for run in runs] == [share, share]
    for run in runs:
        arguments = run.cmdline()
        assert arguments[arguments.index("fit") + 1 :][:2] == ["--evaluation.num_workers", share]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert not [run for run in runs if run.is_running()]
    assert not (out / "3").exists()
    for cell in Sweep.load(config).cells(out, extra)[:2]:
        assert not cell.finished
        assert cell.command()[-2:] == ["--ckpt_path", "last"]
        saved = torch.load(cell.folder / "checkpoints" / "last.ckpt", weights_only=True)
        distilled = DistilledSet.load(cell.folder)
        assert torch.equal(saved["state_dict"]["codes.latents"], distilled.codes["latents"])
        assert "stopped by signal 2" in (cell.folder / LOG_NAME).read_text()


def test_a_run_that_is_told_to_stop_stops_the_others(tmp_path, monkeypatch):
    """Sleeping processes in the place of runs; a number of threads that the user set is kept."""
    script = "import os, sys, time; print(os.environ['OMP_NUM_THREADS'], flush=True); time.sleep(float(sys.argv[-1]))"
    started = []

    def sleep(command, **options):
        started.append(Popen([sys.executable, "-c", script, command[-1]], **options))
        return started[-1]

    Popen = subprocess.Popen
    monkeypatch.setattr(sweep_running.subprocess, "Popen", sleep)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    names = iter("abcd")
    before = signal.getsignal(signal.SIGINT)  # ignored where the suite runs in the background

    def commands():
        for seconds in ("0", "60", "60", "60"):
            name = next(names)
            (tmp_path / name).mkdir()
            yield name, ["fit", seconds], tmp_path / name

    found = Runs(2)(commands())
    assert next(found) == ("a", 0)
    log = tmp_path / "c" / LOG_NAME
    threading.Timer(1.0, lambda: started[2].terminate()).start()
    assert sorted(item for item in [next(found), next(found)]) == [("b", -15), ("c", -15)]
    with pytest.raises(KeyboardInterrupt):
        next(found)
    assert next(names) == "d"
    assert log.read_text() == "7\n"
    assert signal.getsignal(signal.SIGINT) is before
