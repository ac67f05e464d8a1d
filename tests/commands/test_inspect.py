"""`latentdd inspect`: one JSON object, or tables that say the same."""

import json

import pytest
from tiny_set import full_set, tiny_set

from ldd.commands.inspect import inspect
from ldd.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    full_set().save(run / "distilled")
    return run


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("place", ["", "distilled"])
def test_json(run, capsys, place):
    inspect(str(run / place), json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["num_classes"] == 3
    assert printed["num_images"] == 6
    assert printed["images_per_class"] == 2
    assert printed["image_size"] == 8
    assert printed["classes"][1] == {"label": 1, "id": 101, "wnid": "n01", "name": "name n01"}
    assert printed["bytes"] == sum(printed["ledger"]["bytes"].values()) == 1152 + 108 + 432 + 50
    assert printed["ledger"]["stages"]["distil"] == {"seconds": 1.5, "peak_memory_mib": 900.0}
    assert printed["format_version"] == 1
    assert printed["seed"] == 7
    assert printed["sha256_ok"] is True
    assert printed["licences"] == {"prior": "MIT", "data": "CC BY 4.0"}


def test_tables(run, capsys, wide):
    inspect(str(run))
    text = capsys.readouterr().out
    for part in (
        "6 of 8 x 8 px",
        "1,742 (images 1,152, codes 432, labels 108, decoder 50)",
        "latents (6, 4, 2, 2)",
        "ldd.networks.ConvNet",
        "CC BY 4.0",
        "seconds 1.5, peak_memory_mib 900",
        "seconds 2, decodes unknown",
        "version 1, written by latentdd",
        "name n02",
    ):
        assert part in text


def test_many_classes_are_cut_and_names_are_no_markup(tmp_path, capsys, wide):
    path = tiny_set(["[red]first[/nothing]", *(f"c{i}" for i in range(24))]).save(tmp_path / "set")
    inspect(str(path))
    text = capsys.readouterr().out
    assert "[red]first[/nothing]" in text
    assert "name c18" in text
    assert "name c19" not in text
    assert "and 5 more; --json lists all" in text


def test_uneven_classes(tmp_path, capsys, wide):
    distilled = tiny_set(["a", "b"])
    distilled.labels[1] = 1
    path = distilled.save(tmp_path / "set")
    inspect(str(path))
    assert "1 to 3" in capsys.readouterr().out
    inspect(str(path), json=True)
    assert json.loads(capsys.readouterr().out)["images_per_class"] == [1, 3]


def test_damaged(tmp_path, capsys):
    path = tiny_set().save(tmp_path / "set")
    (path / "preview.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"preview\.png is damaged: its sha256 is not the manifest's"):
        inspect(str(path), json=True)
    assert capsys.readouterr().out == ""
