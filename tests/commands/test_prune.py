"""`latentdd prune`: the table, the counts, the picture and the lists, and what users get wrong."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from jsonargparse import ArgumentParser
from PIL import Image
from pruning_cases import write_folder
from safetensors.torch import save_file
from torchvision.models import get_model

from ldd.commands.prune import main
from ldd.data import DistillationData, FolderSource, Pruner, ScoreTable, TablePruner
from ldd.errors import UserError
from ldd.runtime.seeding import seeded


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("prune") / "data", {"ant": 24, "bee": 12})


@pytest.fixture(scope="module")
def loss(tmp_path_factory):
    """Options of a LossPruner with random weights."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    with seeded(0):
        save_file(get_model("mobilenet_v3_small", num_classes=2).state_dict(), path)
    options = {
        "": "configs/pruner/loss.yaml",
        ".classifier": "mobilenet_v3_small",
        ".weights": path,
        ".resize": 36,
        ".crop": 32,
        ".cache_dir": path.parent / "cache",
        ".device": "cpu",
    }
    return [f"--pruner{name}={value}" for name, value in options.items()]


@pytest.fixture
def data(root):
    return ["--data=configs/data/folder.yaml", f"--data.root={root}", "--data.image_size=32"]


def test_everything_is_written_and_shown(root, data, loss, tmp_path, capsys):
    out, lists = tmp_path / "deep" / "scores.parquet", tmp_path / "lists"
    main(
        "prune",
        [*data, *loss, "--pruner.keep=0.29", f"--out={out}", f"--lists={lists}", "--lists_prefix=/x/"],
    )
    shown = capsys.readouterr().out
    assert "kept by loss" in shown
    rows = [line.split() for line in shown.splitlines() if " ant " in line or " bee " in line]
    assert [[word for word in row if word != "│"][:4] for row in rows] == [
        ["0", "ant", "23", "6"],
        ["1", "bee", "11", "3"],
    ]
    table = pq.read_table(out)
    assert sum(table["kept"].to_pylist()) == 9
    assert table.schema.metadata[b"classifier"].startswith(b"torchvision mobilenet_v3_small sha256:")
    assert b"resize 36 (bilinear" in table.schema.metadata[b"preprocessing"]
    assert f"data fingerprint {table.schema.metadata[b'data_fingerprint'].decode()}" in shown
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.format == "PNG"
        assert picture.height > 300 + 2 * 72
    assert sorted(file.name for file in lists.iterdir()) == [f"class_{i}_top_29_asc.json" for i in range(2)]
    kept = [row["path"] for row in table.to_pylist() if row["kept"] and row["label"] == 0]
    assert sorted(json.loads((lists / "class_0_top_29_asc.json").read_text())) == sorted(
        f"/x/{path}" for path in kept
    )


def test_a_run_prunes_by_the_table_that_was_written(root, data, loss, tmp_path):
    out = tmp_path / "scores.parquet"
    main("prune", [*data, *loss, "--pruner.keep=0.5", "--pruner.order=hard", f"--out={out}"])
    pruner = TablePruner(str(out), 0.5, "hard", cache_dir=None)
    used = DistillationData(FolderSource, str(root), image_size=8, pruner=pruner)
    used.setup()
    table = ScoreTable.load(out)
    assert used.core_set.keys == [table.paths[i] for i in table.kept.tolist()]
    assert used.prune_table.kept.equal(table.kept)


def test_an_unreadable_image_is_left_out_when_asked(data, loss, tmp_path, capsys):
    root = write_folder(tmp_path / "data", {"ant": 6, "bee": 6})
    data = [f"--data.root={root}" if word.startswith("--data.root") else word for word in data]
    for broken in sorted((root / "train" / "bee").iterdir())[:3]:
        broken.write_bytes(b"no image")
    arguments = [*data, *loss, f"--out={tmp_path / 'scores.parquet'}"]
    with pytest.raises(UserError, match=r"cannot read image .*/train/bee/bee_"):
        main("prune", arguments)
    assert not (tmp_path / "scores.parquet").exists()
    main("prune", [*arguments, "--data.on_error=skip"])
    assert "left out: cannot read image" in capsys.readouterr().out
    assert len(ScoreTable.load(tmp_path / "scores.parquet")) < 5 + 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pruner.keep=1.5"], r"keep=1\.5 is not a share; use a number above 0 and at most 1"),
        (
            ["--pruner.keep=0.05"],
            r"keep=0\.05 would leave class 'bee' \(label 1, 11 images\) empty; use at least keep=0\.09",
        ),
        (["--picture={out}"], "are one file; name the table"),
        (["--lists_prefix=/x/"], r"lists_prefix='/x/' needs --lists DIR"),
        (["--pruner=configs/pruner/lists.yaml"], r"lists='lists' has no files class_\*_top_60_asc\.json"),
        (["--pruner=configs/pruner/table.yaml"], r"score table scores\.parquet does not exist"),
    ],
)
def test_mistakes_are_explained(data, options, message, tmp_path):
    out = tmp_path / "scores.parquet"
    options = [option.format(out=out) for option in options]
    with pytest.raises(UserError, match=message):
        main("prune", [*data, "--pruner=configs/pruner/random.yaml", *options, f"--out={out}"])
    assert not out.exists()


def test_unknown_settings_are_refused_by_the_parser(data, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(
            "prune",
            [*data, "--pruner=configs/pruner/random.yaml", "--pruner.kep=1", f"--out={tmp_path / 'x'}"],
        )
    assert stopped.value.code == 2
    assert "kep" in capsys.readouterr().err


COMPONENTS = sorted(
    {path.stem for path in Path("configs/pruner").glob("*.yaml")} - {"table", "lists", "stratified"}
)


@pytest.mark.parametrize("name", COMPONENTS)
def test_shipped_components_build(name):
    parser = ArgumentParser()
    parser.add_argument("--pruner", type=Pruner, sub_configs=True)
    options = parser.parse_args([f"--pruner=configs/pruner/{name}.yaml", "--pruner.keep=0.25"])
    assert parser.instantiate(options).pruner.selection.keep == 0.25
