"""The commands that make a set again: those that made it, or words where its folder does not tell."""

import json
import shlex
import shutil

import pytest
import torch
import yaml
from small_world import protocol_file, small_set

from ldd import cli
from ldd.commands import federate, plain
from ldd.commands.prior import sample as prior_sample
from ldd.errors import UserError
from ldd.evaluation import Protocol, Report, Row
from ldd.federation import ClassPartition
from ldd.report import read_runs, write_report
from ldd.report.again import again
from ldd.report.lacking import lacking

MODEL = {"objective": {"class_path": "ldd.objectives.DistributionMatching"}}
DATA = {"source": "ldd.data.DigitsSource", "image_size": 32}
LABELS = {"class_path": "ldd.evaluation.ExpertLabels", "init_args": {"trajectories": "experts", "epoch": 2}}


@pytest.fixture
def run(tmp_path):
    """`run(config, (protocol, sets), ...)`: a run of this configuration, evaluated by these protocols."""

    def call(config, *evaluations, networks=None, facts=None, manifest=None, **of_set):
        shutil.rmtree(tmp_path / "run" / "distilled", ignore_errors=True)
        (tmp_path / "run" / "evaluation.csv").unlink(missing_ok=True)
        distilled = small_set(seed=3, **of_set).with_facts(config=config, seed=5, **(manifest or {}))
        distilled.save(tmp_path / "run" / "distilled")
        for protocol, names in evaluations:
            sets, met = ("distilled", *names), networks or protocol.networks
            rows = tuple(Row(0, name, n, True, 0, 7, 0.5, 1.0, protocol.id) for name in sets for n in met)
            report = Report(rows, {protocol.id: protocol.hash}, facts or {})
            earlier = Report.read(tmp_path / "run")
            (report if earlier is None else report.after(earlier)).write(tmp_path / "run")
        (found,) = read_runs([str(tmp_path / "run")])
        write_report([found], tmp_path / "page.html")
        return found

    return call


def options(command):
    """`--name value` of a command line."""
    words = shlex.split(command)
    return {word: words[place + 1] for place, word in enumerate(words) if word.startswith("--")}


def test_each_protocol_as_it_was_used(run):
    quick, idc = Protocol.load("quick"), Protocol.load("idc-hard-small")
    names = ["random_real", "distilled_ipc1", "random_real_ipc1", "initial", "full_real_steps", "my set"]
    found = again(run({"model": MODEL, "data": DATA}, (quick, names), (idc, [])))
    install, fit, one, other = found.commands
    assert install.startswith("pip install latentdd==")
    assert fit == "latentdd fit --config run.yaml --trainer.default_root_dir again"
    assert options(one) == {
        "--data": "data.yaml",
        "--protocol": "quick",
        "--repeats": "1",
        "--seed": "7",
        "--baselines": "random_real,full_real_steps",
        "--budgets": "[1]",
        "--out": "again/evaluation-quick",
    }
    assert options(other)["--out"] == "again/evaluation-idc-hard-small"
    assert options(other)["--baselines"] == ""
    assert [note for note in found.notes if "my set under protocol quick" in note]
    assert yaml.safe_load(found.files["data.yaml"]) == DATA


def test_networks(run):
    quick = Protocol.load("quick")
    first = next(iter(quick.networks))
    found = again(run({"model": MODEL, "data": DATA}, (quick, []), networks=[first]))
    given = json.loads(options(found.commands[-1])["--networks"])
    assert given[first]["class_path"] == quick.networks[first].class_path
    found = again(run({"model": MODEL, "data": DATA}, (quick, []), networks=["mine"]))
    assert "--networks" not in found.commands[-1]
    assert any("Networks were mine, not all" in note for note in found.notes)


def test_a_teacher_needs_labels(run):
    rded = Protocol.load("rded-soft-small")
    of_run = run({"model": {**MODEL, "labels": LABELS}, "data": DATA}, (rded, ["random_real"]))
    found = again(of_run)
    assert options(found.commands[-1])["--labels"] == "labels.yaml"
    assert yaml.safe_load(found.files["labels.yaml"]) == LABELS
    (missing,) = lacking(of_run)
    assert options(missing.command)["--labels"] == "labels.yaml"
    facts = {"teacher": {"network": "a.Teacher"}}
    of_run = run({"model": MODEL, "data": DATA}, (rded, ["random_real"]), facts=facts)
    assert options(lacking(of_run)[0].command)["--labels"] == "LABELS.yaml"
    assert any("labels by a.Teacher" in note for note in lacking(of_run)[0].notes)


def test_a_protocol_by_path(run, tmp_path):
    path = protocol_file(tmp_path)
    protocol = Protocol.load(path)
    config = {"model": MODEL, "data": DATA, "evaluation": {"protocol": str(path)}}
    found = again(run(config, (protocol, [])))
    file = f"protocol-{protocol.id}.yaml"
    (tmp_path / file).write_text(found.files[file])
    assert Protocol.load(tmp_path / file) == protocol
    assert options(found.commands[-1])["--protocol"] == file
    assert options(found.commands[1])["--evaluation.protocol"] == file
    protocol_file(tmp_path, epochs=9)  # which the results are not of
    found = again(run(config, (protocol, [])))
    assert options(found.commands[-1])["--protocol"] == "PROTOCOL.yaml"
    assert any(protocol.hash in note for note in found.notes)


def test_a_federation(run, tmp_path):
    config = {"model": MODEL, "data": DATA, "seed_everything": 3}
    classes = small_set().classes
    blocks = ClassPartition.contiguous(classes, 2).blocks
    parts = [{"classes": list(block), "seed": 0, "step": 1} for block in blocks]
    expected = "latentdd federate --config run.yaml --subtasks 2 --partition contiguous --out again"
    assert again(run(config, manifest={"subtasks": parts})).commands[1:] == (expected,)
    strange = [{**parts[0], "classes": [classes[1].wnid, classes[0].wnid]}, {**parts[1], "classes": ["n2"]}]
    found = again(run(config, manifest={"subtasks": strange}))
    assert not any("fit" in command or "federate" in command for command in found.commands)
    assert any("n1, n0; n2" in note for note in found.notes)
    ClassPartition(blocks, "semantic").save(tmp_path / "run" / "partition.json")
    (command,) = again(run(config)).commands[1:]
    assert options(command)["--partition"] == "semantic"


def test_samples_of_a_prior(run):
    config = {"prior": "embedded:digits", "drawn_at": 32, "per_class": 1, "num_steps": 5}
    config |= {"guidance_scale": 2.0, "seed": 5}
    found = again(run(config))
    command = "latentdd prior sample embedded:digits --data DATA.yaml --per-class 1 --num-steps 5 --guidance-scale 2.0"
    assert found.commands[1:] == (f"{command} --seed 5 --out again",)
    assert found.notes[0].startswith("DATA.yaml: the data")


def test_labels_that_came_later(run):
    soft = {"soft_labels": torch.full((3, 3), 1 / 3).half()}
    labels = {"network": "a.Teacher", "expert": None}
    _, fit, label = again(run({"model": MODEL, "data": DATA}, manifest={"labels": labels}, **soft)).commands
    assert fit.startswith("latentdd fit")
    assert label == "latentdd label again --data data.yaml --labels LABELS.yaml --out again/labelled"


def test_what_is_not_known_is_said(run):
    for config in (None, {"made": "by hand"}):
        found = again(run(config, (Protocol.load("quick"), [])))
        assert found.commands[0].startswith("latentdd inspect ")
        assert found.commands[1].startswith("latentdd evaluate ")
        assert found.notes[0].startswith("How the set was made is not in its manifest")


def test_the_commands_are_some(run, tmp_path, monkeypatch):
    """`latentdd` parses them, with the files that the page shows."""
    quick, parsed = Protocol.load("quick"), []

    def keep(parser, options):
        parsed.append(options)
        raise UserError("parsed")

    monkeypatch.setattr(plain.ArgumentParser, "instantiate_classes", keep)
    monkeypatch.chdir(tmp_path)
    first = next(iter(quick.networks))
    names = ["random_real_soft", "distilled_ipc1", "distilled_ipc2"]
    config = {"model": {**MODEL, "labels": LABELS}, "data": DATA}
    found = again(run(config, (quick, names), networks=[first]))
    for name, content in found.files.items():
        (tmp_path / name).write_text(content)
    assert cli.main(shlex.split(found.commands[-1])[1:]) == 2
    (options,) = parsed
    assert (options.path, options.budgets, options.baselines) == ("again", [1, 2], "random_real_soft")
    assert options.networks[first].class_path.endswith("ConvNet")

    drawn = {
        "prior": "embedded:digits",
        "drawn_at": 32,
        "per_class": 1,
        "num_steps": 5,
        "guidance_scale": 2.0,
    }
    (tmp_path / "DATA.yaml").write_text(yaml.safe_dump(DATA))
    words = shlex.split(again(run(drawn | {"seed": 5})).commands[-1])
    options = prior_sample._parser(data=True).parse_args(words[3:])
    assert (options.per_class, options.num_steps, options.seed, options.out) == (1, 5, 5, "again")
    parts = [{"classes": [f"n{n}"], "seed": 0, "step": 1} for n in range(3)]
    words = shlex.split(again(run(config, manifest={"subtasks": parts})).commands[1])
    options = federate._parser("federate").parse_args(words[2:])
    assert (options.subtasks, options.partition, options.out) == (3, "contiguous", "again")
