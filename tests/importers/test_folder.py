"""Folders of pictures in the three ways of naming classes: the same set from each, and no order that is guessed."""

import json

import pytest
import torch
from tiny_set import random_images
from torchvision.transforms.v2.functional import to_pil_image

from ldd import cli
from ldd.artefact.exporters import write_imagefolder
from ldd.artefact.set import DistilledSet
from ldd.data.subsets import subset_wnids
from ldd.imagenet import tables as imagenet
from tests.disk.test_files import names

# Out of sorted order on purpose.
WNIDS = ["n02102040", "n01440764", "n02979186"]
IMAGES = random_images(6)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(WNIDS))
    return tmp_path / "classes.txt"


def write(folder, class_names, ending="png"):
    """Two pictures a class, in our order."""
    for label, name in enumerate(class_names):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            to_pil_image(IMAGES[2 * label + i]).save(folder / name / f"{i}.{ending}")
    return folder


def run(path, tmp_path, *options):
    return cli.main(["import", str(path), "--out", str(tmp_path / "out"), *map(str, options)])


NAMINGS = {
    "wnid": WNIDS,
    "label": ["00000", "00001", "00002"],
    "id": ["217", "0", "482"],
    "name": ["English_Springer", "tench", "cassette player"],
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming(tmp_path, table, capsys, naming):
    folder = write(tmp_path / "set", NAMINGS[naming])
    assert run(folder, tmp_path, "--classes", table) == 0
    assert f"folders named by {naming}" in capsys.readouterr().out
    read = DistilledSet.load(tmp_path / "out")
    assert [info.wnid for info in read.classes] == WNIDS
    assert read.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(read.images, IMAGES)


def test_pictures_at_any_depth_and_what_is_left(tmp_path):
    folder = write(tmp_path / "set", WNIDS)
    for label, name in enumerate(WNIDS):
        (folder / name / "part2" / "deep").mkdir(parents=True)
        (folder / name / "1.png").rename(folder / name / "part2" / "deep" / "1.png")
        (folder / name / "._0.png").write_bytes(b"of another system")
        (folder / name / ".ipynb_checkpoints").mkdir()
        to_pil_image(IMAGES[label]).save(folder / name / ".ipynb_checkpoints" / "0-checkpoint.png")
    (folder / WNIDS[0] / "loop").symlink_to(".")
    (folder / WNIDS[1] / "x.gif").write_bytes(b"GIF89a")
    (folder / "notes.png").write_bytes(b"beside the class folders")
    with pytest.warns(
        UserWarning, match=r"6 pictures are read, 2 other files are not \(notes\.png, x\.gif\)"
    ):
        assert run(folder, tmp_path) == 0
    read = DistilledSet.load(tmp_path / "out")
    assert torch.equal(read.images[read.labels == 1], IMAGES[:2])
    assert len(read.labels) == 6


def test_wnids_need_no_table(tmp_path):
    assert run(write(tmp_path / "set", WNIDS), tmp_path) == 0
    read = DistilledSet.load(tmp_path / "out")
    assert [info.wnid for info in read.classes] == sorted(WNIDS)
    assert [info.id for info in read.classes] == [0, 217, 482]
    assert torch.equal(read.images[read.labels == 1], IMAGES[:2])


def test_our_export_comes_back(tmp_path):
    classes = [f"class{i}" for i in (2, 0, 1)]
    assert run(write(tmp_path / "set", classes), tmp_path) == 0
    original = DistilledSet.load(tmp_path / "out")
    write_imagefolder(original, tmp_path / "exported")
    assert cli.main(["import", str(tmp_path / "exported"), "--out", str(tmp_path / "again")]) == 0
    again = DistilledSet.load(tmp_path / "again")
    assert torch.equal(again.images, original.images)
    assert again.classes == original.classes


def test_numbers_need_a_table(tmp_path, capsys):
    folder = write(tmp_path / "set", NAMINGS["label"])
    assert run(folder, tmp_path) == 2
    assert "nothing says which classes the labels 0, 1, ..." in capsys.readouterr().err
    assert names(tmp_path) == ["set"]


def test_numbers_beside_a_table_in_another_order(tmp_path, table, capsys):
    folder = write(tmp_path / "set", NAMINGS["label"])
    stated = [{"label": i, "wnid": wnid, "id": i} for i, wnid in enumerate(sorted(WNIDS))]
    (folder / "classes.json").write_text(json.dumps(stated))
    assert run(folder, tmp_path, "--classes", table) == 2
    printed = capsys.readouterr().err
    assert "in the files: 0 n01440764, 1 n02102040" in printed
    assert "by --classes: 0 n02102040 (English springer), 1 n01440764 (tench)" in printed


def test_data_in_another_order(tmp_path, capsys):
    """Ten folders by number, made in the order of a list, and data that has the digits' order."""
    for d in range(10):
        (tmp_path / "set" / f"{d:05d}").mkdir(parents=True)
        to_pil_image(IMAGES[d % 6]).save(tmp_path / "set" / f"{d:05d}" / "0.png")
    stated = [{"label": d, "wnid": f"digit-{9 - d}", "id": d} for d in range(10)]
    (tmp_path / "order.json").write_text(json.dumps(stated))
    options = ["--classes", tmp_path / "order.json", "--data.source", "ldd.data.DigitsSource"]
    assert run(tmp_path / "set", tmp_path, *options) == 2
    printed = capsys.readouterr().err
    assert "in the files: 0 digit-9, 1 digit-8" in printed
    assert "in --data: 0 digit-0 (0), 1 digit-1 (1)" in printed
    assert run(tmp_path / "set", tmp_path, *options, "--reorder", "true") == 0
    assert DistilledSet.load(tmp_path / "out").labels.tolist() == list(range(9, -1, -1))


def test_folders_of_other_classes_show_both(tmp_path, table, capsys):
    folder = write(tmp_path / "set", ["n02102040", "n01440764", "n03000684"])
    assert run(folder, tmp_path, "--classes", table) == 2
    printed = capsys.readouterr().err
    assert "folders: n01440764, n02102040, n03000684; classes: 0 n02102040 (English springer)" in printed


def test_published_subset(tmp_path):
    wnids = subset_wnids("imagenette")
    for label in range(10):
        (tmp_path / "set" / f"{label:05d}").mkdir(parents=True)
        to_pil_image(IMAGES[label % 6]).save(tmp_path / "set" / f"{label:05d}" / "0.png")
    assert run(tmp_path / "set", tmp_path, "--classes", "imagenette") == 0
    assert [i.id for i in DistilledSet.load(tmp_path / "out").classes] == [
        imagenet.indices()[w] for w in wnids
    ]


def test_unfit_pictures(tmp_path, table, capsys):
    folder = write(tmp_path / "set", WNIDS)
    to_pil_image(IMAGES[0][:, :, :4]).save(folder / WNIDS[1] / "0.png")
    assert run(folder, tmp_path, "--classes", table) == 2
    assert "must be squares of one size" in capsys.readouterr().err
    (folder / WNIDS[1] / "0.png").write_bytes(b"no picture")
    assert run(folder, tmp_path, "--classes", table) == 2
    assert "cannot read image" in capsys.readouterr().err
    for file in (folder / WNIDS[1]).iterdir():
        file.unlink()
    assert run(folder, tmp_path, "--classes", table) == 2
    assert "holds no pictures" in capsys.readouterr().err
    assert run(folder, tmp_path, "--classes", table, "--experiment", 1) == 2
    assert "experiment (1) is about .pt files" in capsys.readouterr().err
    assert names(tmp_path) == ["classes.txt", "set"]
