"""Commands as they are recorded: what the user typed, without what only this machine knows."""

import json
import shlex
from pathlib import Path

import pytest

from ldd import __version__
from ldd.disk.public import public_command
from ldd.errors import UserError
from ldd.runs.history import NAME, record_command, recorded_commands

HOME = str(Path.home())


@pytest.mark.parametrize(
    ("typed", "public"),
    [
        (["--config", "configs/quickstart.yaml"], ["--config", "configs/quickstart.yaml"]),
        (["--config", "../mine/x.yaml", "--out", "a run"], ["--config", "../mine/x.yaml", "--out", "a run"]),
        (["--data.root", "/srv/imagenet"], ["--data.root", "ROOT"]),
        (["--data.root=~/imagenet"], ["--data.root=ROOT"]),
        (["--root", "data"], ["--root", "data"]),
        (["--data.cache_dir", f"{HOME}/.cache/x"], ["--data.cache_dir", "CACHE"]),
        ([f"{HOME}/runs/my set/", "--overwrite", "true"], ["my set", "--overwrite", "true"]),
        (["--out", HOME], ["--out", "PATH"]),
        (["--out", "~"], ["--out", "PATH"]),
        (["--out", "~someone"], ["--out", "PATH"]),
        (["--out", "/"], ["--out", "PATH"]),
        (["--x", "file:///home/me/x.pt"], ["--x", "x.pt"]),
        (["--x", "https://hub.org/a/b.pt"], ["--x", "https://hub.org/a/b.pt"]),
        (["--x", "s3://bucket/b.pt"], ["--x", "s3://bucket/b.pt"]),
        (["--x", "train:/home/me/x"], ["--x", "train:x"]),
        (["--model.prior", "someone/ldm-imagenet"], ["--model.prior", "someone/ldm-imagenet"]),
        (
            ["--n", '{"mine": {"weights": "/home/me/my nets/w.pt", "width": 4}}'],
            ["--n", '{"mine": {"weights": "w.pt", "width": 4}}'],
        ),
        (["--n", "{a: /home/me/w.pt, b: [/x/y, ~/z]}"], ["--n", "{a: w.pt, b: [y, z]}"]),
        (["--lr", "1e-3", "--budgets", "[1,5]"], ["--lr", "1e-3", "--budgets", "[1,5]"]),
    ],
)
def test_local_paths_do_not_travel(typed, public):
    assert shlex.split(public_command(["fit", *typed])) == ["latentdd", "fit", *public]


def test_a_folder_keeps_all_commands_each_once(tmp_path):
    record_command(tmp_path, ["fit", "--config", "a.yaml"])
    for _ in range(2):
        record_command(tmp_path, ["evaluate", str(tmp_path), "--out", "x"])
    assert recorded_commands(tmp_path) == [
        ("fit", "latentdd fit --config a.yaml", __version__),
        ("evaluate", f"latentdd evaluate {tmp_path.name} --out x", __version__),
    ]
    record_command(tmp_path, ["fit", "--config", "b.yaml"], anew=True)
    assert [one.command for one in recorded_commands(tmp_path)] == ["latentdd fit --config b.yaml"]


def test_what_made_the_source_comes_first(tmp_path):
    record_command(tmp_path, ["fit"])
    made, file = tmp_path / "distilled" / "labelled", tmp_path / "weights.safetensors"
    made.mkdir(parents=True)
    file.touch()
    record_command(made, ["label", "x"], source=tmp_path / "distilled")  # the set of the run
    for _ in range(2):
        record_command(file, ["train", "y"], source=made)
    assert [one.verb for one in recorded_commands(file)] == ["fit", "label", "train"]
    assert (tmp_path / f"weights.safetensors.{NAME}").is_file()
    record_command(file, ["train", "z"])
    assert [one.verb for one in recorded_commands(file)] == ["train"], "the file was replaced"


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        json.dumps({"a": 1}),
        json.dumps([{"verb": "fit"}]),
        json.dumps([{"verb": "fit", "command": "latentdd fit; rm -r x", "package_version": "1"}]),
        json.dumps([{"verb": "fit", "command": "sh -c x", "package_version": "1"}]),
        json.dumps([{"verb": "fit", "command": 3, "package_version": "1"}]),
    ],
)
def test_a_damaged_record(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(UserError, match="delete it"):
        recorded_commands(tmp_path)
    record_command(tmp_path, ["fit"])
    assert [one.verb for one in recorded_commands(tmp_path)] == ["fit"]
