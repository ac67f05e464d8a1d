"""A sweep: its cells, a small one on the digits, its continuation, and bad files."""

import csv
import json
import os
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
from ldd.runtime.devices import available_cores
from ldd.sweeps import running as sweep_running
from ldd.sweeps.file import Sweep
from ldd.sweeps.results import Results
from ldd.sweeps.running import LOG_NAME, Runs, sweep

ROOT = Path(ldd.__file__).parent.parent


def write(folder, **content):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def small(tmp_path, tiny_prior_path):
    """Two cells of two steps: quickstart with tiny parts, one network trained for two epochs."""
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
        base=str(ROOT / "configs" / "quickstart.yaml"),
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
    with (out / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["steps", "seed", "protocol", "set", "network", "mean", "std", "n"]
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
    with pytest.raises(UserError, match=r"was run with other settings .* choose another --out"):
        verb.main("sweep", [*command, "--trainer.max_steps", "3"])


def test_cells_are_the_product(tmp_path):
    (tmp_path / "a.yaml").touch()
    (tmp_path / "b.yaml").touch()
    config = write(
        tmp_path,
        base=["a.yaml", "b.yaml"],
        axes={
            "x": {"one": {"k.a": 1, "k.b": None}, "two": {"k.file": "b.yaml"}},
            "y": {0.5: {}, 1: {"m": [1, "z"]}},
        },
        seeds=[0, 3],
    )
    cells = Sweep.load(config).cells("out", ["--extra", "e"])
    assert [(cell.names, cell.seed) for cell in cells][:3] == [
        (("one", "0.5"), 0),
        (("one", "0.5"), 3),
        (("one", "1"), 0),
    ]
    assert len(cells) == 8
    base = ("--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--extra", "e")
    assert cells[2].arguments == (*base, "--k.a", "1", "--k.b", "null", "--m", '[1, "z"]')
    assert cells[-1].arguments == (*base, "--k.file", str(tmp_path / "b.yaml"), "--m", '[1, "z"]')
    assert cells[-1].folder == Path("out/two_1/seed-3")


def test_a_reference_runs_once_a_seed(tmp_path):
    """It has none of the axes' settings; options of the file come before those of the command line, axes after both."""
    (tmp_path / "a.yaml").touch()
    config = write(
        tmp_path,
        base="a.yaml",
        options={"p": "a.yaml", "q": 1},
        axes={"x": {"one": {"k": 1}, "two": {"k": 2}}, "y": {"a": {}, "b": {"p": "dotted.Name"}}},
        references={"none of it": {"p": None}},
        seeds=[4, 5],
    )
    cells = Sweep.load(config).cells("out", ["--q", "2"])
    assert len(cells) == 10
    common = ("--config", str(tmp_path / "a.yaml"), "--p", str(tmp_path / "a.yaml"), "--q", "1", "--q", "2")
    assert cells[2].arguments == (*common, "--k", "1", "--p", "dotted.Name")
    assert [(cell.names, cell.seed, cell.folder, cell.arguments) for cell in cells[-2:]] == [
        (("none of it", ""), seed, Path(f"out/none of it/seed-{seed}"), (*common, "--p", "null"))
        for seed in (4, 5)
    ]


def written_cell(folder, distilled, random, protocol_hash="f" * 16):
    """The evaluation.json of one cell, with one unseen network."""
    folder.mkdir(parents=True)
    scores = {"distilled": distilled, "random_real": random}
    accuracy = {name: {"mean": value, "std": 0.25, "n": 2} for name, value in scores.items()}
    content = {
        "protocol": {"id": "tiny", "hash": protocol_hash},
        "accuracy": {name: {"ViT": score} for name, score in accuracy.items()},
        "mean_unseen": accuracy,
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


def test_cells_of_an_edited_protocol_are_not_mixed(tmp_path):
    cells = [((name,), 0, written_cell(tmp_path / name, 0.5, 0.25, name * 16)) for name in ("a", "b")]
    with pytest.raises(UserError, match="protocol tiny was edited between cells"):
        Results.collect(("k",), cells)


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
    assert [str(cell) for cell in shown.columns[0].cells] == ["0.1", "0.1", "0.5", "0.5", "whole"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_cell_does_not_stop_the_others(jobs, tmp_path, monkeypatch, capfd):
    """Real processes, which fail since the recipe is empty; what they say is shown either way."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "a.yaml").write_text("model: {chunk_sise: 3}")
    config = write(tmp_path, base="a.yaml", axes={"x": {"one": {}, "two": {}}})
    with pytest.raises(UserError, match=r"2 of 2 cells failed .*one/seed-0, .*two/seed-0"):
        sweep(str(config), str(tmp_path / "out"), jobs)
    assert capfd.readouterr().err.count("chunk_sise") == 2
    for name in ("one", "two"):
        assert json.loads((tmp_path / "out" / name / "seed-0" / "cell.json").read_text())["finished"] is False
        assert (tmp_path / "out" / name / "seed-0" / LOG_NAME).exists() == (jobs > 1)
    with pytest.raises(UserError, match=r"jobs \(0\) must be at least 1"):
        sweep(str(config), str(tmp_path / "out"), 0)


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
    runs = psutil.Process(process.pid).children()
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


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"base": "a.yaml"}, "is no sweep; it needs base and axes"),
        ({"base": "a.yaml", "axes": {"x": {"one": {}}}, "sedes": [1]}, "is no sweep"),
        ({"base": "missing.yaml", "axes": {"x": {"one": {}}}}, "missing.yaml does not exist"),
        ({"base": "a.yaml", "axes": {"x": {}}}, "axes must map each axis to names"),
        ({"base": "a.yaml", "axes": ["x"]}, "axes must map each axis to names"),
        ({"base": "a.yaml", "axes": {"x": {"one": {}}}, "references": [1]}, "axes must map each .*likewise"),
        (
            {"base": "a.yaml", "axes": {"x": {"one": {}}}, "references": {"one": {}}},
            "'one' is the name of a ref",
        ),
        (
            {"base": "a.yaml", "axes": {"x": {"one": {}}}, "options": [1]},
            r"options \(\[1\]\) must map options",
        ),
        ({"base": "a.yaml", "axes": {"x": {"one": 3}}}, r"axes.x.one \(3\) must map options"),
        ({"base": "a.yaml", "axes": {"x": {"o_e": {}}}}, "may hold neither _ nor /"),
        ({"base": "a.yaml", "axes": {"x": {"one": {}}}, "seeds": ["a"]}, r"seeds \(\['a'\]\) must be a list"),
        ({"base": "a.yaml", "axes": {"x": {"one": {"model.prior": "no.yaml"}}}}, "no.yaml does not exist"),
    ],
)
def test_bad_files(content, text, tmp_path):
    (tmp_path / "a.yaml").touch()
    with pytest.raises(UserError, match=text):
        Sweep.load(write(tmp_path, **content))
    with pytest.raises(UserError, match="cannot be read"):
        Sweep.load(tmp_path / "none.yaml")


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
    planes = results.plot().axes
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


def test_panels_must_be_one_of_several_axes(tmp_path):
    (tmp_path / "a.yaml").touch()
    axes = {"x": {"one": {}}, "y": {"two": {}}}
    assert Sweep.load(write(tmp_path, base="a.yaml", axes=axes, panels="y")).panels == "y"
    for changed in ({"panels": "z"}, {"axes": {"x": {"one": {}}}, "panels": "x"}):
        with pytest.raises(UserError, match=r"panels \([xz]\) must be one of several axes"):
            Sweep.load(write(tmp_path, **{"base": "a.yaml", "axes": axes, **changed}))
