"""Schemas for editors: every shipped file is valid, a typing error is not, and both are what the parser says."""

import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from ldd import cli
from ldd.disk.shipped import configs_folder, shipped_names
from ldd.errors import UserError
from ldd.runs.schema import RECIPE, kinds, schema_of

library = pytest.importorskip("jsonargparse._completions_jsonschema", reason="needs jsonargparse 4.53")
FILES = [name for name in shipped_names() if not name.startswith("ablations/")]  # those are sweeps


def kind_of(name: str) -> str:
    """Return the kind of a shipped file by its name, such as `objective/gradient`; its folder, or `recipe`."""
    folder = name.rpartition("/")[0]
    return folder if folder in kinds() else RECIPE


@pytest.fixture(scope="module")
def validators():
    return {kind: Draft202012Validator(schema_of(kind)) for kind in kinds()}


def content(name):
    return yaml.safe_load((configs_folder() / f"{name}.yaml").read_text())


def test_each_is_a_schema(validators):
    for validator in validators.values():
        Draft202012Validator.check_schema(validator.schema)
    assert {kind_of(name) for name in FILES} == set(validators)


@pytest.mark.parametrize("name", FILES)
def test_shipped_files_are_valid(validators, name):
    assert [error.message for error in validators[kind_of(name)].iter_errors(content(name))] == []


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("quickstart", ("trainer", "max_stepz"), 3),
        ("quickstart", ("trainer", "max_steps"), "many"),
        ("quickstart", ("model", "objective", "init_args", "real_bath"), 3),
        ("quickstart", ("model", "objective", "init_args", "real_batch"), "all"),
        ("quickstart", ("model", "objective", "class_path"), "ldd.objectives.DistributionMatchin"),
        ("quickstart", ("evaluation", "baselines"), [{"class_path": "ldd.evaluation.RandomRea"}]),
        ("quickstart", ("evaluaton",), {"repeats": 3}),
        ("prior_training/folder", ("model", "autoencoder", "chanels"), [16]),
        ("experts/digits", ("network", "init_args", "widht"), 4),
        ("data/folder", ("on_error",), "ignore"),
        ("pruner/el2n", ("init_args", "training", "epoch"), 3),
        ("initializer/loss_guided", ("init_args", "guidance", "init_args", "rat"), 3),
    ],
)
def test_typing_errors_are_not(validators, name, place, value):
    settings = content(name)
    part = settings
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    assert not validators[kind_of(name)].is_valid(settings), place


def test_what_users_may_write(validators):
    """A class of one's own, another dotted name of ours, a class's name alone, a file, and null."""
    recipe = content("quickstart")
    own = {"class_path": "mine.Objective", "init_args": {"anything": [1]}}
    for objective in (own, "mine.Objective", "objective/gradient.yaml", "ldd.GradientMatching"):
        recipe["model"]["objective"] = objective
        validators[RECIPE].validate(recipe)
    recipe["model"]["objective"] = {"class_path": "ldd.objectives.distribution.DistributionMatching"}
    recipe["data"] = {"source": "ldd.data.FolderSource", "root": None, "subset": ["a", 7]}
    validators[RECIPE].validate(recipe)


def test_defaults_and_descriptions_are_those_of_the_parser(validators):
    (settings,) = (
        one for one in validators[RECIPE].schema["properties"]["data"]["anyOf"] if "properties" in one
    )
    assert settings["properties"]["image_size"]["default"] == 32
    assert settings["properties"]["on_error"]["enum"] == ["raise", "skip"]
    assert settings["properties"]["seed"]["description"].startswith("of the pruner")


def test_command(capsys):
    assert cli.main(["configs", "--schema", "data"]) == 0
    assert json.loads(capsys.readouterr().out) == schema_of("data")
    assert cli.main(["configs", "--schema", "recipes"]) == 2
    assert "schema (recipes) is unknown; choose from recipe, experts" in capsys.readouterr().err


def test_an_older_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jsonargparse._completions_jsonschema", None)
    monkeypatch.delattr("jsonargparse._completions_jsonschema", raising=False)
    with pytest.raises(UserError, match=r"needs jsonargparse 4\.53 or newer"):
        schema_of("data")
