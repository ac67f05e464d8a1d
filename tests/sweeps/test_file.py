"""Sweep files: the cells that follow from them, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ldd.disk.shipped import shipped_file
from ldd.errors import UserError
from ldd.students.protocol import FOLDER, Protocol
from ldd.sweeps.file import Sweep


def write(folder, **content):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


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


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"base": "a.yaml"}, "is not a sweep; it needs base and axes"),
        ({"base": "a.yaml", "axes": {"x": {"one": {}}}, "sedes": [1]}, "is not a sweep"),
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
        ({"base": "a.yaml", "axes": {"x": {"one": {}}}, "seeds": [0, 3, 0]}, r"name 0 twice, .* one folder"),
        ({"base": "a.yaml", "axes": {"x": {"..": {}}}}, "nor start with a dot"),
        ({"base": "a.yaml", "axes": {"x": {"a\nb": {}}}}, "nor control characters"),
    ],
)
def test_bad_files(content, text, tmp_path):
    (tmp_path / "a.yaml").touch()
    with pytest.raises(UserError, match=text):
        Sweep.load(write(tmp_path, **content))
    with pytest.raises(UserError, match="cannot be read"):
        Sweep.load(tmp_path / "none.yaml")


def test_a_setting_named_twice_is_refused_with_its_line(tmp_path):
    (tmp_path / "a.yaml").touch()
    path = tmp_path / "sweep.yaml"
    for text, said in (
        (
            "base: a.yaml\naxes:\n  x:\n    a: {k: 1}\n    b: {}\n    a: {k: 2}\n",
            "line 6 names 'a' again, as line 4",
        ),
        ("base: a.yaml\naxes: {x: {a: {k: 1, j: 0, k: 2}}}\n", "line 2 names 'k' again"),
        ("base: a.yaml\naxes: {x: {a: {}}}\nbase: a.yaml\n", "line 3 names 'base' again, as line 1"),
        ("base: a.yaml\naxes: {x: {1: {}, '1': {}}}\n", "line 2 names '1' again"),
        ("base: a.yaml\naxes: {x: {1: {}, 01: {}}}\n", "line 2 names '01' again"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            Sweep.load(path)


def test_panels_must_be_one_of_several_axes(tmp_path):
    (tmp_path / "a.yaml").touch()
    axes = {"x": {"one": {}}, "y": {"two": {}}}
    assert Sweep.load(write(tmp_path, base="a.yaml", axes=axes, panels="y")).panels == "y"
    for changed in ({"panels": "z"}, {"axes": {"x": {"one": {}}}, "panels": "x"}):
        with pytest.raises(UserError, match=r"panels \([xz]\) must be one of several axes"):
            Sweep.load(write(tmp_path, **{"base": "a.yaml", "axes": axes, **changed}))


@pytest.fixture
def swept(tmp_path):
    """A finished cell of a recipe in files of files, and the same sweep as it is read now."""
    place = tmp_path / "recipes with spaces"
    (place / "parts").mkdir(parents=True)
    digits = str(shipped_file("prior/digits.yaml", "prior"))
    objective = {
        "class_path": "ldd.objectives.DistributionMatching",
        "init_args": {"real_batch": 4, "lr_latents": 0.5},
    }
    (place / "parts" / "objective.yaml").write_text(yaml.safe_dump(objective))
    shutil.copy(FOLDER / "quick.yaml", place / "mine.yaml")
    base = {
        "model": {"prior": digits, "objective": "parts/objective.yaml", "images_per_class": 1},
        "evaluation": {"protocol": str(place / "mine.yaml"), "repeats": 1},
    }
    base["evaluation"]["baselines"] = [{"class_path": "ldd.evaluation.RandomReal"}]
    (place / "base.yaml").write_text(yaml.safe_dump(base))
    options = {"trainer.max_steps": 3, "model.chunk_size": 2}
    write(place, base="base.yaml", options=options, axes={"x": {"one": {}}}, seeds=[4])

    def cell(folder=place, *extra):
        (found,) = Sweep.load(folder / "sweep.yaml").cells(tmp_path / "out", extra)
        return found

    first = cell()
    first.folder.mkdir(parents=True)
    first.note(finished=False)
    first.recipe().write(first.folder / "config.yaml")
    with (first.folder / "config.yaml").open("a") as file:
        file.write("ckpt_path: null\nweights_only: true\n")  # as `fit` writes them too
    evaluated = {"protocol": {"id": "quick", "hash": Protocol.load("quick").hash}}
    (first.folder / "evaluation.json").write_text(json.dumps(evaluated))
    first.note(finished=True)
    return place, cell


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("parts/objective.yaml", "lr_latents: 0.5", "lr_latents: 1000", r"lr_latents: 0.5 -> 1000"),
        ("base.yaml", "images_per_class: 1", "images_per_class: 2", r"model.images_per_class: 1 -> 2"),
        ("base.yaml", "repeats: 1", "repeats: 2", r"evaluation.repeats: 1 -> 2"),
        ("sweep.yaml", "trainer.max_steps: 3", "trainer.max_steps: 4", r"trainer.max_steps: 3 -> 4"),
        ("mine.yaml", "momentum: 0.9", "momentum: 0.8", r"evaluation.protocol: .*quick.* -> .*quick"),
    ],
)
def test_a_cell_of_other_settings_is_refused_whichever_file_holds_them(swept, file, old, new, told):
    place, cell = swept
    assert cell().finished
    text = (place / file).read_text()
    assert old in text
    (place / file).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=rf"other settings \(.*{told}.*\); choose another --out, or remove"):
        _ = cell().finished
    (place / file).write_text(text)
    assert cell().finished


def test_other_spellings_of_the_same_settings_are_finished(swept, tmp_path, monkeypatch):
    """Comments, order, names of files, defaults that are spelt out, places and workers."""
    place, cell = swept
    base = place / "base.yaml"
    content = yaml.safe_load(base.read_text())
    base.write_text("# so it was\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=True))
    moved = shutil.copytree(place, tmp_path / "moved")
    monkeypatch.setattr("ldd.sweeps.file.Cell.recipe", lambda _: pytest.fail("contents tell it at once"))
    assert cell().finished
    assert cell(moved).finished
    monkeypatch.undo()
    sweep_file = yaml.safe_load((place / "sweep.yaml").read_text())
    sweep_file["options"] = dict(reversed(sweep_file["options"].items()))
    write(place, **sweep_file)
    content["model"]["objective"] = str(moved / "parts" / "objective.yaml")
    content["evaluation"] |= {"num_workers": 2, "seed": 4}
    content["trainer"] = {"enable_progress_bar": False}
    base.write_text(yaml.safe_dump(content))
    assert cell().finished
    assert cell(place, "--model.chunk_size=4").finished  # of memory alone


def test_what_was_noted_before_contents_were_is_told_by_its_words(swept):
    place, cell = swept
    record = cell().folder / "cell.json"
    older = json.loads(record.read_text())
    del older["content"]
    record.write_text(json.dumps(older))
    (place / "base.yaml").write_text((place / "base.yaml").read_text() + "preview: {every_n_steps: 1}\n")
    assert cell().finished
    with pytest.raises(UserError, match=r"trainer.max_steps: 3 -> 5"):
        _ = cell(place, "--trainer.max_steps", "5").finished


def test_a_cell_that_is_not_finished_takes_a_corrected_file(swept):
    place, cell = swept
    cell().note(finished=False)
    base = place / "base.yaml"
    base.write_text(base.read_text().replace("repeats: 1", "repeats: 2"))
    assert not cell().finished
    cell().note(finished=True)  # it was running while the file was edited
    with pytest.raises(UserError, match=r"evaluation.repeats: 1 -> 2"):
        _ = cell().finished


def test_a_cell_without_its_configuration_is_told_by_its_files(swept):
    place, cell = swept
    (cell().folder / "config.yaml").unlink()
    assert cell().finished
    base = place / "base.yaml"
    base.write_text(base.read_text().replace("repeats: 1", "repeats: 2"))
    with pytest.raises(UserError, match=r"other settings \(files that it names were edited since\)"):
        _ = cell().finished
