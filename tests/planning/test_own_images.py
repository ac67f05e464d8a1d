"""`latentdd init`: recipes for one's own folder suit it, run, and never take the place of others."""

import numpy as np
import pytest
import yaml
from jsonschema import Draft202012Validator
from parsers import parser_of
from PIL import Image

from ldd import cli
from ldd.data import DistillationData, FolderSource
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.planning import own_images
from ldd.planning.own_images import OwnRecipes, Survey
from ldd.prior_training.module import PriorTraining
from ldd.runs.command_line import DistillationCLI
from ldd.runs.prior import PriorTrainingCLI
from ldd.runs.schema import RECIPE, schema_of

TERMS = "CC BY 4.0: mine, 100 %"


def pictures(root, *, grey, side=40, counts=(12, 7)):
    draws = np.random.default_rng(0)
    for label, count in enumerate(counts):
        for number in range(count):
            pixels = draws.integers(0, 256, (side, side + label, 1 if grey else 3), dtype=np.uint8)
            path = root / f"class {label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))).save(path)
    return root


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("images") / "my pets", grey=False)


def suiting(survey, root, **changes):
    return OwnRecipes.suiting(survey, str(root), TERMS, **{"image_size": 32, "images_per_class": 1} | changes)


@pytest.mark.parametrize("grey", [True, False])
def test_what_a_folder_holds(tmp_path, grey):
    root = pictures(tmp_path / "mine", grey=grey)
    found = Survey.of(str(root))
    source = FolderSource(str(root))
    assert (found.classes, found.train, found.selection, found.test) == (2, 14, 2, 3)
    assert (found.fewest, found.side, found.grey) == (5, 40, grey)
    pixels = (
        np.concatenate([source.read(item).numpy().reshape(3, -1) for item in source.items("train")], axis=1)
        / 255
    )
    assert np.abs(np.array(found.mean) - pixels.mean(1)).max() <= 6e-4
    assert np.abs(np.array(found.std) - pixels.std(1)).max() <= 6e-4


@pytest.mark.parametrize(
    ("side", "device", "size"),
    [
        (8, "cpu", 32),
        (40, "cpu", 32),
        (64, "cpu", 64),
        (500, "cpu", 64),
        (500, "cuda", 128),
        (100, "cuda", 64),
    ],
)
def test_the_size_suits_images_and_machine(monkeypatch, side, device, size):
    monkeypatch.setattr(own_images, "pick_device", lambda: type("Device", (), {"type": device}))
    assert Survey(2, 9, 1, 3, 4, side, False, (0.5,) * 3, (0.2,) * 3).image_size == size


def test_the_recipes_are_those_of_the_parsers(colour, tmp_path, monkeypatch):
    survey = Survey.of(str(colour))
    recipes = suiting(survey, colour, images_per_class=2)
    monkeypatch.chdir(tmp_path)
    recipes.write(tmp_path / "out", survey, {"fit": "3 min 0 s"})
    prior, fit = tmp_path / "out" / "prior.yaml", tmp_path / "out" / "fit.yaml"
    for file, kind in ((prior, "prior_training"), (fit, RECIPE)):
        Draft202012Validator(schema_of(kind)).validate(yaml.safe_load(file.read_text()))
    head = fit.read_text().splitlines()[:2]
    assert head[0] == f"# latentdd fit --config {fit}"
    assert head[1].startswith(
        "# For 2 classes, 14 training images, short side 40 px, colour. On this machine ("
    )
    assert head[1].endswith(" cores) about 3 min 0 s.")
    assert "Its time was not measured." in prior.read_text()
    assert "# required" not in prior.read_text() + fit.read_text()
    assert "# a quarter for the autoencoder" in prior.read_text()

    parser = parser_of(PriorTrainingCLI, PriorTraining, "runs/prior", arguments=[])
    found = parser.parse_args(["--config", str(prior)])
    assert (found.model.licence, found.model.mirror, found.data.root) == (TERMS, True, str(colour))
    assert found.model.autoencoder_steps * 4 == found.trainer.max_steps == 2000
    of_fit = (
        parser_of(DistillationCLI, Distiller, "runs/default").parse_args(["fit", "--config", str(fit)]).fit
    )
    assert of_fit.model.prior.init_args.path_or_hub_id == f"{found.trainer.default_root_dir}/prior"
    assert (of_fit.model.images_per_class, of_fit.model.objective.init_args.real_batch) == (2, 5)
    assert of_fit.data.mean == survey.mean
    assert (
        DistillationData(FolderSource, of_fit.data.root, image_size=of_fit.data.image_size).classes[1].name
        == "class 1"
    )


def test_what_is_refused(colour, tmp_path):
    survey = Survey.of(str(colour))
    with pytest.raises(UserError, match="licence is empty; name the terms of your images"):
        OwnRecipes.suiting(survey, str(colour), " ", image_size=32, images_per_class=1)
    with pytest.raises(UserError, match=r"image_size \(40\) must be a multiple of 16"):
        suiting(survey, colour, image_size=40)
    with pytest.raises(UserError, match=r"images_per_class \(7\) must be 1 to 5"):
        suiting(survey, colour, images_per_class=7)
    recipes = suiting(survey, colour)
    (tmp_path / "fit.yaml").write_text("mine")
    with pytest.raises(
        UserError, match=r"fit\.yaml exists, and is not overwritten; name another folder with --out"
    ):
        recipes.write(tmp_path, survey, {})
    assert [path.name for path in tmp_path.iterdir()] == ["fit.yaml"]


def test_command(colour, tmp_path, capsys, monkeypatch):
    """With the minutes of both, measured on as few steps as can be."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["init", str(colour)])
    assert stop.value.code == 2
    assert "required: licence" in capsys.readouterr().err
    assert cli.main(["init", str(colour), "--licence", TERMS, "--plan", "false", "--image_size", "64"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-4:] == [
        "made: recipes/my pets/prior.yaml, recipes/my pets/fit.yaml",
        "next: latentdd prior train --config 'recipes/my pets/prior.yaml'",
        "then: latentdd fit --config 'recipes/my pets/fit.yaml'",
        "then: latentdd report 'runs/my pets' --out 'runs/my pets/report.html'",
    ]
    assert yaml.safe_load((tmp_path / "recipes/my pets/fit.yaml").read_text())["data"]["image_size"] == 64
    assert cli.main(["init", str(colour), "--licence", TERMS]) == 2
    assert "prior.yaml exists, and is not overwritten" in capsys.readouterr().err


def test_minutes(tmp_path, monkeypatch):
    """Of the recipes as they are; networks, images and steps are made small."""
    root = pictures(tmp_path / "mine", grey=False)
    survey = Survey.of(str(root))
    recipes = suiting(survey, root)
    monkeypatch.setattr(own_images, "_PROBED", 2)
    narrow = "{class_path: ldd.ConvNet, init_args: {width: 4, depth: 2}}"
    fit = recipes.fit.replace("real_batch: 5", f"real_batch: 2\n      network: {narrow}")
    fit = fit.replace("protocol: quick\n", f"protocol: quick\n  networks: {{n: {narrow}}}\n")
    fit = fit.replace("repeats: 3", "repeats: 1")
    assert fit.count(narrow) == 2
    said = OwnRecipes(recipes.prior, fit, recipes.run).minutes()
    assert set(said) == {"prior train", "fit"}
    assert all(text[0].isdigit() for text in said.values())
    assert " evaluating" in said["fit"]
