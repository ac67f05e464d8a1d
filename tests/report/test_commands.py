"""The page's commands: those that were recorded, words where none were, and what an evaluation lacks."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from small_world import small_set

from ldd import cli
from ldd.errors import UserError
from ldd.evaluation import Report, Row
from ldd.report import read_runs
from ldd.report.commands import again, lacking
from ldd.runs.history import record_command
from tests.report.test_page import Reader

OLD = Path(__file__).parents[1] / "data" / "1369bc3"
REAL = ["random_real", "nearest_real", "easy_real"]
FULL = ["full_real", "full_real_steps"]


@pytest.fixture
def run(tmp_path):
    """`run([sets], ...)`: a run whose evaluation has these sets."""

    def call(sets, distilled=None, facts=None, protocols=("small",), **config):
        folder = tmp_path / "a run"
        distilled = small_set() if distilled is None else distilled
        distilled = distilled.with_facts(config=config or None)
        distilled.save(folder / "distilled")
        rows = tuple(
            Row(0, name, "mine", True, repeat, 7, 0.5, 1.0, protocol)
            for protocol in protocols
            for name in ["distilled", *sets]
            for repeat in range(2)
        )
        Report(rows, dict.fromkeys(protocols, "h" * 16), facts or {}).write(folder)
        return read_runs([str(folder)])[0]

    return call


def soft_set(**facts):
    return small_set(soft_labels=torch.full((3, 3), 1 / 3).half(), **facts)


def test_recorded_commands_are_shown(run):
    found = run([], model={"objective": None}, data={"root": None})
    record_command(found.folder, ["fit", "--config", "mine.yaml", "--data.root", "/srv/data"])
    record_command(found.folder, ["evaluate", str(found.folder), "--out", str(found.folder)])
    install, *commands = again(found).commands
    assert install.startswith("pip install latentdd==")
    assert commands == [
        "latentdd fit --config mine.yaml --data.root ROOT",
        "latentdd evaluate 'a run' --out 'a run'",
    ]
    assert yaml.safe_load(again(found).settings) == found.config


def test_sets_without_a_record(run, tmp_path):
    for name, command in (
        ("dm", "latentdd fit --config config.yaml --trainer.default_root_dir again"),
        ("federated", "latentdd federate --config config.yaml --subtasks 2 --out again"),
    ):
        shutil.copytree(OLD / name, tmp_path / name)
        (old,) = read_runs([str(tmp_path / name)])
        assert again(old).commands[1:] == (command,)
        assert "made by an earlier version" in again(old).note
        assert yaml.safe_load(again(old).settings)["model"]
        record_command(old.folder, ["evaluate", name, "--out", name])  # by this version
        assert again(old).commands[1:] == (command, f"latentdd evaluate {name} --out {name}")
    _, command = again(run([])).commands
    assert command.startswith("latentdd inspect ")
    assert again(run([])).settings == ""


@pytest.mark.parametrize("name", ["pytest:console_main", "os.abort", "evilmod:run", "evilmod.run"])
def test_no_name_of_a_file_is_resolved(run, tmp_path, monkeypatch, name):
    """A folder of somebody else: its rows may be called whatever they like."""
    (tmp_path / "evilmod.py").write_text("open('evil', 'w')\n\ndef run(): open('evil', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(os, "abort", lambda: (tmp_path / "evil").touch())
    modules = set(sys.modules)
    settings = {"protocol": name, "networks": {"mine": {"class_path": name}}}
    of_run = run(
        [name], evaluation=settings, model={"labels": {"class_path": name}, "objective": {"class_path": name}}
    )
    assert cli.main(["report", str(of_run.folder), "--out", "page.html"]) == 0
    assert name in (tmp_path / "page.html").read_text()
    assert not (tmp_path / "evil").exists()
    assert "evilmod" not in sys.modules
    assert "evilmod" not in set(sys.modules) - modules


def test_names_and_command(run, tmp_path):
    (found,) = lacking(run(["random_real"]))
    missing = "nearest_real, easy_real, full_real and full_real_steps"
    assert found.sentence == f"a run, protocol small: {missing} are missing for an equal comparison."
    folder = shlex.quote("a run")  # the page says nothing of where it lies
    assert found.command == (
        f"latentdd evaluate {folder} --data DATA.yaml --protocol PROTOCOL.yaml --repeats 2 --seed 7 "
        f"--baselines nearest_real,easy_real,full_real,full_real_steps --out {folder}"
    )
    (found,) = lacking(run([*REAL, "full_real"], protocols=("quick",)))
    assert found.sentence == "a run, protocol quick: full_real_steps is missing for an equal comparison."
    assert "--protocol quick " in found.command


def test_the_command_is_of_the_split_that_is_there(run):
    """The folder takes no results on the other one."""
    (found,) = lacking(run(["random_real"], facts={"split": "selection"}))
    assert " --split selection " in found.command
    (found,) = lacking(run(["random_real"]))
    assert "--split" not in found.command


def test_nothing_where_all_are_there(run):
    assert lacking(run([*REAL, *FULL])) == []


def test_one_for_each_protocol(run):
    found = lacking(run(["random_real"], protocols=("small", "large")))
    assert [one.sentence.partition(":")[0] for one in found] == [
        "a run, protocol small",
        "a run, protocol large",
    ]


def test_soft_labels(run):
    forms = [real + end for end in ("", "_soft", "_bytes", "_bytes_steps") for real in REAL]
    (found,) = lacking(run(["distilled_hard", *forms, *FULL], soft_set()))
    missing = "random_real_bytes_soft, nearest_real_bytes_soft and easy_real_bytes_soft are missing"
    assert missing in found.sentence
    assert "--labels LABELS.yaml" in found.command
    # Where no student learned from the set's own labels, those of other images would change nothing.
    hard = [name for name in forms if not name.endswith("_soft")]
    assert lacking(run([*hard, *FULL], soft_set())) == []
    (found,) = lacking(run(["random_real"], facts={"teacher": {"network": "a.Teacher"}}))
    assert "--labels LABELS.yaml" in found.command


def test_equal_steps_where_as_many_images_took_others(run):
    """Figures of the evaluation itself tell; without any real images of that number there is nothing to go by."""
    packed = small_set(packing=2)

    def cost(**steps):
        storage = packed.storage.to_dict()
        return {"cost": {name: {"storage": storage, "training": {"steps": n}} for name, n in steps.items()}}

    names = [name + end for end in ("", "_steps") for name in REAL]
    (found,) = lacking(run([*REAL, *FULL], packed, cost(distilled=8, nearest_real=2)))
    assert "--baselines random_real_steps,nearest_real_steps,easy_real_steps " in found.command
    assert lacking(run([*names, *FULL], packed, cost(distilled=8, nearest_real=2))) == []
    for facts in (
        cost(distilled=8, random_real=8, full_real=40),
        cost(distilled=8),
        cost(distilled=8, random_real=None),
        {},
    ):
        assert lacking(run([*REAL, *FULL], packed, facts)) == []


def test_bytes_of_products(run):
    shapes = {"small": (2, 3, 8, 8), "left": (5, 32, 8), "right": (5, 32, 8), "mixing": (5, 3, 3)}
    products = small_set(codes={name: torch.zeros(3, *shape) for name, shape in shapes.items()})
    (found,) = lacking(run([*REAL, *FULL], products))
    assert (
        "--baselines random_real_bytes,nearest_real_bytes,easy_real_bytes,random_real_bytes_steps,"
        in found.command
    )


def test_what_could_not_be_had_is_not_asked_for(run):
    conditions = {"conditioning": torch.zeros(3, 1, 2), "latents": torch.zeros(3, 1)}
    (found,) = lacking(run([*REAL, *FULL], small_set(codes=conditions)))
    assert "--baselines prior_samples " in found.command
    left_out = {"prior_samples": "the prior does not know the classes"}
    assert lacking(run([*REAL, *FULL], small_set(codes=conditions), {"left_out": left_out})) == []
    left_out = dict.fromkeys(["easy_real", "easy_real_soft", "random_real_soft"], "why")
    forms = [real + end for end in ("", "_bytes", "_bytes_steps", "_bytes_soft") for real in REAL]
    sets = ["distilled_hard", *forms, "nearest_real_soft", *FULL]
    sets.remove("easy_real")
    (found,) = lacking(run(sets, soft_set(), {"left_out": left_out}))
    assert "--baselines random_real_soft " in found.command  # which needs the labels alone
    tiny = {"latents": torch.zeros(3, 2), "log_variance": torch.zeros(3, 2)}
    assert lacking(run([*REAL, *FULL], small_set(codes=tiny))) == []  # less than the bytes of one image


def test_the_command_is_one(run, monkeypatch):
    """`latentdd evaluate` parses it, once the files in capitals are there."""
    of_run = run(["distilled_hard"], soft_set(), protocols=("quick",))
    (found,) = lacking(of_run)
    monkeypatch.chdir(of_run.folder.parent)
    labels = {
        "class_path": "ldd.evaluation.ExpertLabels",
        "init_args": {"trajectories": "experts", "epoch": 2},
    }
    Path("DATA.yaml").write_text(yaml.safe_dump({"source": "ldd.data.DigitsSource", "image_size": 32}))
    Path("LABELS.yaml").write_text(yaml.safe_dump(labels))
    parsed = []

    def keep(parser, options):
        parsed.append(options)
        raise UserError("parsed")

    monkeypatch.setattr(ArgumentParser, "instantiate", keep)
    assert cli.main(shlex.split(found.command)[1:]) == 2
    (options,) = parsed
    assert {Path(options.path).absolute(), Path(options.out).absolute()} == {of_run.folder}
    assert (options.repeats, options.seed) == (2, 7)
    assert options.labels.init_args.epoch == 2
    assert options.baselines.split(",")[:4] == [*REAL, "random_real_soft"]


def test_on_the_page(run, tmp_path):
    def page(sets):
        folder = run(sets, model={}).folder
        assert cli.main(["report", str(folder), "--out", str(tmp_path / "page.html"), "--overwrite"]) == 0
        return Reader((tmp_path / "page.html").read_text()).text

    text = page(["random_real"])
    (found,) = lacking(run(["random_real"], model={}))
    assert any(found.sentence in part for part in text["p"])
    assert found.command in text["pre"]
    assert not any("missing for an equal comparison" in part for part in page([*REAL, *FULL])["p"])
