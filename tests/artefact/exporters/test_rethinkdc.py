"""RethinkDC's layout, and Parquet files of any maker read back: pixels, labels and their meaning."""

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_session import session
from PIL import Image
from small_world import protocol_file
from tiny_set import full_set, random_images, tiny_set
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ldd import DistillationData, DistilledSet, cli, evaluate
from ldd.artefact.exporters import base, write_parquet, write_rethinkdc
from ldd.artefact.identity import identity
from ldd.errors import UserError
from ldd.importers import read_set


class Adapter(torch.utils.data.Dataset):
    """How its loader reads a data set of the hub: the split `train`, the columns `image` and `class_id`."""

    def __init__(self, read, transform):
        self.read, self.transform = read["train"], transform

    def __len__(self):
        return len(self.read)

    def __getitem__(self, index):
        row = self.read[index]
        return self.transform(row["image"]), row["class_id"]


def test_its_loader_reads_the_export(tmp_path):
    """Numbers are those of an ImageFolder of real images, on which it tests: n01, n02, n03; ours are n03, n01, n02."""
    made = tiny_set()
    write_rethinkdc(made, tmp_path / "he-y" / "out")
    table = json.loads((tmp_path / "he-y" / "out" / "classes.json").read_text())
    assert [(row["label"], row["wnid"], row["class_id"]) for row in table] == [
        (0, "n03", 2), (1, "n01", 0), (2, "n02", 1)
    ]  # fmt: skip
    read = datasets.load_dataset(str(tmp_path / "he-y" / "out"), cache_dir=str(tmp_path / "cache"))
    assert read["train"].column_names == ["image", "class_id"]
    assert read["train"].features["class_id"].names == ["name n01", "name n02", "name n03"]
    rows = [Adapter(read, pil_to_tensor)[index] for index in range(6)]
    assert torch.equal(torch.stack([image for image, _ in rows]), made.images)
    assert [number for _, number in rows] == [2, 2, 0, 0, 1, 1]
    batch = torch.utils.data.default_collate([number for _, number in rows])
    assert batch.type(torch.LongTensor).tolist() == [2, 2, 0, 0, 1, 1]  # what it does with a batch


def test_what_it_cannot_hold_is_said(tmp_path):
    with pytest.warns(UserWarning, match="has no soft labels or weights; --format parquet keeps them"):
        write_rethinkdc(full_set(), tmp_path / "out")
    with pytest.raises(UserError, match="classes 0 and 2 share the wnid 'a'"):
        write_rethinkdc(tiny_set(["a", "b", "a"]), tmp_path / "two")


@pytest.mark.parametrize("write", [write_parquet, write_rethinkdc])
@pytest.mark.parametrize("shards", [1, 3])
def test_read_back_it_is_the_same_set(tmp_path, monkeypatch, write, shards):
    made = tiny_set()
    monkeypatch.setattr(base, "SHARD_BYTES", made.images.nbytes // shards)
    out = write(made, tmp_path / "out")
    back = read_set(out)
    assert identity(back) == identity(made)
    assert back.classes == made.classes
    files = sorted((out / "data").iterdir())
    assert len(files) == shards
    assert set(back.manifest["imported"]["sha256"]) == {file.name for file in files}


def test_soft_labels_and_weights_come_back(tmp_path):
    made = full_set()
    back = read_set(write_parquet(made, tmp_path / "out"))
    assert torch.equal(back.soft_labels, made.soft_labels.float())
    assert torch.equal(back.weights.float(), made.weights)


@pytest.mark.parametrize("form", ["parquet", "rethinkdc", "ddranking"])
def test_read_back_it_has_the_score_of_the_set(tmp_path, form):
    """The same bytes, so the same accuracy to the last digit; all on the command line."""
    name, protocol = "embedded:digits-1", str(protocol_file(tmp_path))
    assert cli.main(["export", name, "--format", form, "--out", str(tmp_path / "out")]) == 0
    assert (
        cli.main(["import", str(tmp_path / "out"), "--data", "digits", "--out", str(tmp_path / "back")]) == 0
    )
    original, back = DistilledSet.load(name), DistilledSet.load(tmp_path / "back")
    assert identity(back) == identity(original)
    data = DistillationData(image_size=32)
    scores = [
        evaluate(one, None, data, protocol, repeats=1, baselines=(), num_workers=0)
        for one in (original, back)
    ]
    assert [row.accuracy for row in scores[0].rows] == [row.accuracy for row in scores[1].rows]


def test_a_repository_of_another_maker(tmp_path, monkeypatch, capsys):
    """Without a class table, as theirs are, JPEG files, and a column more; the user says what the numbers mean."""
    images = random_images(4)
    with session(monkeypatch, tmp_path / "cache") as hub:
        content = io.BytesIO()
        rows = {
            "image": [{"bytes": encoded(image), "path": None} for image in images],
            "class_id": [1, 0, 1, 0],
            "caption": ["x"] * 4,
        }
        pq.write_table(pa.table(rows), content)
        files = {
            "data/train-00000-of-00001.parquet": content.getvalue(),
            "README.md": b"#",
            "evil.py": b"raise SystemExit",
        }
        hub.repos["he-y/set"], hub.kinds["he-y/set"], hub.files["he-y/set"] = False, "dataset", files
        (tmp_path / "classes.txt").write_text("n01440764\nn02102040\n")
        command = [
            "import",
            "hf://he-y/set",
            "--classes",
            str(tmp_path / "classes.txt"),
            "--out",
            str(tmp_path / "set"),
        ]
        assert cli.main(command) == 0, capsys.readouterr().err
        assert cli.main([*command[:2], "--out", str(tmp_path / "other")]) == 2
    assert "nothing says which classes the labels" in capsys.readouterr().err
    read = DistilledSet.load(tmp_path / "set")
    assert read.labels.tolist() == [1, 0, 1, 0]
    assert [info.wnid for info in read.classes] == ["n01440764", "n02102040"]
    assert torch.equal(read.images, images)
    assert not any(path.name == "evil.py" for path in (tmp_path / "cache").rglob("*"))


def encoded(image, form="PNG"):
    content = io.BytesIO()
    to_pil_image(image).save(content, form)
    return content.getvalue()


def table(**changes):
    rows = {
        "image": [{"bytes": encoded(image), "path": "x.png"} for image in random_images(2)],
        "class_id": [0, 1],
        **changes,
    }
    return pa.table({name: values for name, values in rows.items() if values is not None})


BOMB = Image.new("1", (11_000, 11_000))


def bomb():
    content = io.BytesIO()
    BOMB.save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: table(image=None), "has the columns class_id; needed are image and one of label, class_id"),
        (lambda: table(class_id=None), "has the columns image; needed are"),
        (lambda: table(image=[{"bytes": None, "path": "/etc/passwd"}] * 2), "holds no bytes of a picture"),
        (lambda: table(image=["/etc/passwd"] * 2), "holds no bytes of a picture"),
        (lambda: table(image=[b"GIF89a"] * 2), "cannot read image in .*copy the file again"),
        (lambda: table(image=[bomb()] * 2), "over 120 million"),
        (lambda: table(image=[encoded(random_images(1, size)[0]) for size in (8, 4)]), "be squares of one size"),
        (lambda: table(image=[encoded(random_images(1)[0][:, :4])] * 2), "all must be squares of one size"),
        (lambda: table(class_id=[0.5, 1.0]), "column class_id must hold whole numbers from 0"),
        (lambda: table(class_id=[0, None]), "column class_id must hold whole numbers from 0"),
        (lambda: table(class_id=[0, -1]), "column class_id must hold whole numbers from 0"),
        (lambda: table(class_id=[0, 5]), "the labels are not those of the 2 classes"),
        (lambda: table(weight=["a", "b"]), "column weight must hold numbers"),
        (lambda: table(soft_label=[[0.5, 0.5], [1.0]]), "column soft_label must hold numbers, as many in each row"),
        (lambda: table(soft_label=[[1.0], [1.0]]), "soft labels must be"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, made, message):
    pq.write_table(made(), tmp_path / "x.parquet")
    (tmp_path / "classes.txt").write_text("n01440764\nn02102040\n")
    with pytest.raises(UserError, match=message):
        read_set(tmp_path / "x.parquet", classes=str(tmp_path / "classes.txt"))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"x" * 100 + b"PAR1", b"PK\3\4"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match="is damaged or no Parquet file"):
        read_set(tmp_path / "x.parquet", classes="imagenette")


def test_a_table_that_does_not_number_the_classes(tmp_path):
    out = write_rethinkdc(tiny_set(), tmp_path / "out")
    rows = json.loads((out / "classes.json").read_text())
    (out / "classes.json").write_text(json.dumps([{**row, "class_id": 0} for row in rows]))
    with pytest.raises(UserError, match="class_id must number the 3 classes from 0; export the set again"):
        read_set(out)
    (out / "classes.json").write_text(json.dumps(rows[:2]))
    with pytest.raises(UserError, match=r"must number the 2 classes|beyond the 2 classes"):
        read_set(out)
    for option in ({"labels": "x.pt"}, {"experiment": 1}, {"clamp": True}):
        with pytest.raises(
            UserError, match=r"is about \.pt files, and these are Parquet files; leave it out"
        ):
            read_set(out, **option)
