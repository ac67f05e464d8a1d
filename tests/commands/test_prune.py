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

from ldd.commands.prepare import main as prepare
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


def own_cache(loss, folder):
    return [
        f"--pruner.cache_dir={folder}" if word.startswith("--pruner.cache_dir") else word for word in loss
    ]


@pytest.mark.parametrize("of", [2, 3, 40])
def test_parts_end_in_the_table_of_one_process(data, loss, tmp_path, of):
    """34 images in batches of four: no part ends with a batch, and the last two images are in a smaller one."""
    end = ["--pruner.keep=0.5", f"--out={tmp_path / 'scores.parquet'}"]
    shared = [*data, *own_cache(loss, tmp_path / "parts"), *end]
    whole = [tmp_path / "scores.parquet", tmp_path / "scores.png"]
    main("prune", [*data, *own_cache(loss, tmp_path / "alone"), *end])
    expected = [path.read_bytes() for path in whole]
    recorded = (tmp_path / "scores.parquet.commands.json").read_text()
    with pytest.raises(UserError, match=r"out \(.*\) is there already; delete it"):
        main("prune", [*shared, f"--part=1/{of}"])
    for path in tmp_path.glob("scores*"):
        path.unlink()
    for number in range(of, 0, -1):
        ending = main("prune", [*shared, f"--part={number}/{of}"])
        assert bool(ending.made) == whole[0].exists()
        if ending.made:
            break
    assert number <= max(1, of - 33)
    assert [path.read_bytes() for path in whole] == expected
    assert (tmp_path / "scores.parquet.commands.json").read_text().replace("/parts", "/alone") == recorded
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_parts_of_other_settings_or_other_images_are_told_apart(root, data, loss, tmp_path):
    options = [*data, *own_cache(loss, tmp_path / "cache"), f"--out={tmp_path / 'scores.parquet'}"]
    main("prune", [*options, "--pruner.keep=0.5", "--part=1/2"])
    assert not main("prune", [*options, "--pruner.keep=0.6", "--part=2/2"]).made
    with pytest.raises(
        UserError, match=r"part 1 of 2 .* is missing \(part 1 of 2 is of other settings or images\)"
    ):
        main("prune", [*options, "--pruner.keep=0.6", "--part=join"])
    main("prune", [*options, "--pruner.keep=0.6", "--part=1/2"])
    assert sum(pq.read_table(tmp_path / "scores.parquet")["kept"].to_pylist()) == 13 + 6


@pytest.mark.filterwarnings("ignore:1 unreadable")
def test_parts_with_unreadable_images_need_the_decoded_ones(data, loss, tmp_path):
    root = write_folder(tmp_path / "data", {"ant": 12, "bee": 12})
    (root / "train" / "ant" / "ant_005.png").write_bytes(b"no image")
    data = [f"--data.root={root}" if word.startswith("--data.root") else word for word in data]
    data += [f"--data.cache_dir={tmp_path / 'decoded'}", "--data.on_error=skip"]
    end = "--pruner.keep=0.5"
    main("prune", [*data, *own_cache(loss, tmp_path / "alone"), end, f"--out={tmp_path / 'alone.parquet'}"])
    parts = [*data, *own_cache(loss, tmp_path / "parts"), end, f"--out={tmp_path / 'parts.parquet'}"]
    with pytest.raises(
        UserError, match=r"parts have to agree on the images .* `latentdd prepare`, with the same"
    ):
        main("prune", [*parts, "--part=1/2"])
    prepare("prepare", data)
    for number in (1, 2):
        main("prune", [*parts, f"--part={number}/2"])
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()


def test_networks_are_shared_too_and_other_criteria_have_nothing_to_share(data, tmp_path):
    small = ("--pruner.training.epochs=1", "--pruner.training.network=ldd.networks.ConvNet")
    options = [*data, "--pruner=configs/pruner/el2n.yaml", "--pruner.networks=3", "--pruner.keep=0.5", *small]
    options += ["--pruner.training.network.width=4"]
    main("prune", [*options, f"--pruner.cache_dir={tmp_path / 'a'}", f"--out={tmp_path / 'alone.parquet'}"])
    parts = [*options, f"--pruner.cache_dir={tmp_path / 'b'}", f"--out={tmp_path / 'parts.parquet'}"]
    assert not main("prune", [*parts, "--part=2/2"]).made
    assert main("prune", [*parts, "--part=1/2"]).made
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()
    out = f"--out={tmp_path / 'random.parquet'}"
    with pytest.raises(UserError, match="RandomPruner has no work that could be shared; leave --part out"):
        main("prune", [*data, "--pruner=configs/pruner/random.yaml", "--pruner.keep=0.5", out, "--part=1/2"])
    with pytest.raises(UserError, match=r"pruner\.cache_dir \(null\) must name a folder"):
        main("prune", [*options, "--pruner.cache_dir=null", out, "--part=1/2"])


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
