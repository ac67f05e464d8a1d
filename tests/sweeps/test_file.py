"""Sweep files: the cells that follow from them, and what is refused."""

from pathlib import Path

import pytest
import yaml

from ldd.errors import UserError
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
