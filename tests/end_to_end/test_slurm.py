"""The shipped files through a real SLURM: requeued, on several nodes, with a node that dies, arrays and sub-tasks."""

import csv
import re
import shlex

import pytest
import yaml
from processes import Started, latentdd, torchrun_variables
from slurm import Slurm, missing
from small_runs import ROOT, small_arguments
from small_world import protocol_file

from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.disk.files import sha256

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

STEPS = 30
ON_CPUS = ("--trainer.accelerator", "cpu", "--preview.every_n_steps", 0)
TWO_RANKS = {
    "one_node.sbatch": ("--gres=gpu:2", "--ntasks-per-node=2", "--cpus-per-task=1"),
    "several_nodes.sbatch": ("--gres=gpu:1", "--ntasks-per-node=1", "--cpus-per-task=1"),
}
SMALL_CELL = [
    *("--", "--trainer.max_steps", "2", "--model.objective.init_args.real_batch", "4"),
    *("--model.objective.init_args.network.init_args.width", "8", "--preview.every_n_steps", "0"),
    *("--evaluation.repeats", "1", "--evaluation.baselines", "[ldd.evaluation.RandomReal]"),
    *("--evaluation.initial", "false", "--evaluation.num_workers", "1"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Three nodes. Their names are in no table of hosts, so that the first rank's address is told."""
    with Slurm(tmp_path_factory.mktemp("slurm"), nodes=3) as cluster:
        cluster.environment["MASTER_ADDR"] = "127.0.0.1"
        yield cluster


def arguments(prior, folder, steps=STEPS):
    """Those of `latentdd fit` for a small run, without the number of ranks."""
    options = [str(word) for word in small_arguments(prior)]
    options[options.index("configs/ld3m_digits.yaml")] = str(ROOT / "configs" / "ld3m_digits.yaml")
    return [*options, *ON_CPUS, "--trainer.default_root_dir", folder, "--trainer.max_steps", steps]


@pytest.fixture(scope="module")
def unbroken(tiny_prior_path, tmp_path_factory):
    """Codes of two ranks that nothing interrupts, outside of SLURM."""
    folder = tmp_path_factory.mktemp("unbroken")
    words = ["fit", *arguments(tiny_prior_path, folder / "run")]
    words += ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    ranks = [
        Started(latentdd, words, folder / f"{number}.log", environment={"OMP_NUM_THREADS": "1", **variables})
        for number, variables in enumerate(torchrun_variables(2))
    ]
    assert [one.result() for one in ranks] == [0, 0], (folder / "0.log").read_text()
    return codes_of(folder / "run")


def codes_of(run):
    return sha256(run / "distilled" / "codes.safetensors")


def log_of(folder, job):
    return (folder / "logs" / f"latentdd-{job}.out").read_text()


def script(name):
    return ROOT / "cluster" / name


def begun(slurm, name, prior, run, steps=STEPS):
    """The number of a job of two ranks, submitted next to its run, that has written its first checkpoint."""
    words = arguments(prior, run, steps)
    job = slurm.submit(script(name), *words, folder=run.parent, options=TWO_RANKS[name])
    slurm.wait_until(lambda: (run / "checkpoints" / "last.ckpt").exists(), "a checkpoint")
    return job


def test_a_run_that_is_told_that_its_time_is_up_goes_on(slurm, tiny_prior_path, unbroken, tmp_path):
    """What SLURM does two minutes before the limit, and at pre-emption: each rank gets the signal at once."""
    run = tmp_path / "run"
    job = begun(slurm, "one_node.sbatch", tiny_prior_path, run)
    slurm.run("scancel", "--signal=USR1", job)
    facts = slurm.wait_for(job, "COMPLETED")
    said = log_of(tmp_path, job)
    assert facts["Restarts"] == "1", said
    assert said.count(f"queuing SLURM job {job} again") == 1, said
    assert codes_of(run) == unbroken
    assert "Traceback" not in said


def test_when_a_node_dies_the_run_goes_on_on_others(slurm, tiny_prior_path, unbroken, tmp_path):
    run = tmp_path / "run"
    job = begun(slurm, "several_nodes.sbatch", tiny_prior_path, run)
    first = slurm.facts(job)
    assert first["NodeList"] == "n[1-2]"
    slurm.kill_node("n2")
    facts = slurm.wait_for(job, "COMPLETED")
    slurm.start_node("n2")
    said = log_of(tmp_path, job)
    assert facts["NodeList"] == "n[1,3]", said
    # The dead node may be given once more before SLURM misses it.
    assert 1 <= int(facts["Restarts"]) <= 3, said
    assert codes_of(run) == unbroken


def test_a_run_that_is_cancelled_or_has_wrong_settings_is_not_queued_again(slurm, tiny_prior_path, tmp_path):
    run = tmp_path / "run"
    submit = {"folder": tmp_path, "options": TWO_RANKS["several_nodes.sbatch"]}
    words = arguments(tiny_prior_path, run, steps=100_000)
    wrong = slurm.submit(script("several_nodes.sbatch"), *words, "--data.root", "/nowhere", **submit)
    assert slurm.wait_for(wrong, "FAILED")["ExitCode"] == "2:0", log_of(tmp_path, wrong)
    job = begun(slurm, "several_nodes.sbatch", tiny_prior_path, run, steps=100_000)
    slurm.run("scancel", job)
    slurm.wait_for(job, "CANCELLED")
    slurm.wait_until(
        lambda: not slurm.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").startswith("COMPLETING"),
        "its end",
    )
    assert [slurm.facts(one)["Restarts"] for one in (wrong, job)] == ["0", "0"]
    assert slurm.facts(job)["JobState"] == "CANCELLED", log_of(tmp_path, job)


def test_an_array_with_a_member_that_fails(slurm, tiny_prior_path, tmp_path):
    """The cells of a sweep as array jobs, a wrong one among them; the sweep afterwards trains what is missing."""
    prior = {"model.prior.init_args.path_or_hub_id": str(tiny_prior_path)}
    cells = {n: {**prior, "model.prior.init_args.num_steps": n} for n in (1, 2)}
    base = str(ROOT / "configs" / "ld3m_digits.yaml")
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"base": base, "axes": {"steps": cells}, "seeds": [5]}, sort_keys=False)
    )
    command = ["latentdd", "sweep", "--config", "sweep.yaml", "--out", "runs/skip", *SMALL_CELL]
    command += ["--evaluation.protocol", protocol_file(tmp_path, epochs=2)]
    lines = slurm.run(*command[:6], "--dry_run", "true", *command[6:], folder=tmp_path).splitlines()
    wrong = shlex.join(
        [*shlex.split(lines[0]), "--data.root", "/nowhere", "--trainer.default_root_dir", "runs/wrong"]
    )
    (tmp_path / "cells.txt").write_text("\n".join([lines[0], wrong, lines[1]]) + "\n")
    options = ("--array=1-3%2", "--cpus-per-task=1")
    job = slurm.submit(script("array.sbatch"), "cells.txt", *ON_CPUS, folder=tmp_path, options=options)
    wrap = ["sbatch", "--parsable", f"--dependency=afterany:{job}", "--output=logs/last.out", "--wrap"]
    last = slurm.run(*wrap, shlex.join(command), folder=tmp_path)
    slurm.wait_for(last, "COMPLETED")
    states = [slurm.facts(f"{job}_{member}") for member in (1, 2, 3)]
    logs = [next((tmp_path / "logs").glob(f"*-{job}-{member}.out")).read_text() for member in (1, 2, 3)]
    assert [(one["JobState"], one["ExitCode"]) for one in states] == [
        ("COMPLETED", "0:0"),
        ("FAILED", "2:0"),
        ("COMPLETED", "0:0"),
    ], logs
    with (tmp_path / "runs" / "skip" / "sweep.csv").open() as file:
        assert {row["steps"] for row in csv.DictReader(file)} == {"1", "2"}
    said = (tmp_path / "logs" / "last.out").read_text()
    assert said.count("Restored all states from the checkpoint") == 2, said
    assert "starting the run" not in said


def test_an_array_prepares_the_data_and_a_killed_member_is_submitted_again(slurm, tmp_path):
    """Three members of which one is cancelled; it alone is given again, and leaves the caches of one process."""
    digits = ["--data", str(ROOT / "configs" / "data" / "digits.yaml"), "--data.image_size", "8"]
    words = ["3", "prepare", *digits, "--data.cache_dir", "cache"]
    options = ("--array=1-3", "--cpus-per-task=1", "--mem=1G")
    job = slurm.submit(script("prepare.sbatch"), *words, folder=tmp_path, options=options)
    slurm.run("scancel", f"{job}_2")
    for member in (1, 3):
        slurm.wait_for(f"{job}_{member}", "COMPLETED")
    assert not list((tmp_path / "cache").glob("*.json"))
    again = slurm.submit(
        script("prepare.sbatch"), *words, folder=tmp_path, options=("--array=2", *options[1:])
    )
    slurm.wait_for(f"{again}_2", "COMPLETED")
    data = DistillationData(image_size=8, cache_dir=str(tmp_path / "alone"))
    data.prepare()
    found = [{path.name: sha256(path) for path in (tmp_path / name).iterdir()} for name in ("cache", "alone")]
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_sub_tasks_are_an_array_and_the_merging_waits_for_it(slurm, tmp_path):
    """The scripts that `latentdd federate --engine slurm` writes, one sub-task told in mid-run that its time is up."""
    out, config = tmp_path / "out", ROOT / "configs"
    command = ["latentdd", "federate", "--out", out, "--config", config / "quickstart.yaml", "--subtasks", 2]
    command += ["--model.prior", config / "prior" / "pixel.yaml", "--engine", "slurm", "--cpus_per_job", 1]
    command += ["--data.subset", '["digit-0", "digit-1", "digit-4", "digit-7"]', *ON_CPUS]
    command += ["--trainer.max_steps", 200, "--checkpoint.every_n_steps", 2, "--trainer.limit_val_batches", 0]
    command += [
        "--model.objective.init_args.real_batch",
        4,
        "--model.objective.init_args.network.init_args.width",
        8,
    ]
    slurm.run(*map(str, command), folder=tmp_path)
    last = slurm.run(out / "slurm" / "submit.sh", folder=tmp_path).split()[-1]
    array = re.search(r"afterok:(\d+)", slurm.facts(last)["Dependency"])[1]
    slurm.wait_until(lambda: (out / "subtasks" / "1" / "checkpoints" / "last.ckpt").exists(), "a checkpoint")
    slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
    slurm.wait_for(last, "COMPLETED")
    states = [slurm.facts(f"{array}_{member}") for member in (0, 1)]
    logs = [(out / "slurm" / f"{member}.log").read_text() for member in (0, 1)]
    assert [one["Restarts"] for one in states] == ["0", "1"], logs
    assert "Restored all states" in logs[1]
    merged = DistilledSet.load(out)
    assert [info.wnid for info in merged.classes] == ["digit-0", "digit-1", "digit-4", "digit-7"]
    assert [part["step"] for part in merged.manifest["subtasks"]] == [200, 200]


@pytest.mark.slow
def test_the_time_limit_itself(slurm, tiny_prior_path, tmp_path):
    """A run without an end in a queue whose limit is a minute."""
    run = tmp_path / "run"
    words = arguments(tiny_prior_path, run, steps=100_000)
    options = (*TWO_RANKS["one_node.sbatch"], "--time=00:01:00", "--signal=USR1@20")
    job = slurm.submit(script("one_node.sbatch"), *words, folder=tmp_path, options=options)
    slurm.wait_until(lambda: slurm.facts(job)["Restarts"] == "1", "the limit", 200)
    slurm.run("scancel", job)
    said = log_of(tmp_path, job)
    assert said.count(f"queuing SLURM job {job} again") == 1, said
    assert "DUE TO TIME LIMIT" not in said
