"""Exports: pixel-equal in the libraries that read them, with our labels recoverable; never over a user's files."""

import errno
import io
import json
import os

import datasets
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from tiny_set import classes_of, full_set, random_images, tiny_set
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

from ldd import cli
from ldd.artefact.exporters import WRITERS, base, write_imagefolder, write_parquet, write_pt, write_webdataset
from ldd.artefact.set import DistilledSet
from ldd.commands.export import export
from ldd.errors import UserError
from tests.disk.test_files import file_size_limit, names


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_set(mean=(0.1, 0.2, 0.3)).save(tmp_path_factory.mktemp("run") / "distilled")


class TestImageFolder:
    def test_round_trip(self, saved, tmp_path, capsys):
        ending = export(str(saved), "imagefolder", str(tmp_path / "out"))
        assert capsys.readouterr().out == "exported 6 images of 3 classes\n"
        assert ending.made == (tmp_path / "out",)
        assert names(tmp_path / "out") == ["classes.json", "n01", "n02", "n03"]
        assert names(tmp_path / "out" / "n03") == ["00000.png", "00001.png"]
        original = DistilledSet.load(saved)
        table = json.loads((tmp_path / "out" / "classes.json").read_text())
        assert [(info["label"], info["wnid"], info["name"]) for info in table] == [
            (0, "n03", "name n03"),
            (1, "n01", "name n01"),
            (2, "n02", "name n02"),
        ]

        plain = ImageFolder(tmp_path / "out", transform=pil_to_tensor)
        assert plain.classes == ["n01", "n02", "n03"]  # the alphabet's order, not ours
        for info in table:
            assert plain.class_to_idx[info["wnid"]] == info["imagefolder_label"]

        # As the docstring of write_imagefolder says.
        ours = [info["label"] for info in sorted(table, key=lambda info: info["imagefolder_label"])]
        mapped = ImageFolder(tmp_path / "out", transform=pil_to_tensor, target_transform=ours.__getitem__)
        read = {label: [image for image, got in mapped if got == label] for label in range(3)}
        for label, images in read.items():
            assert torch.equal(torch.stack(images), original.images[original.labels == label])

    def test_many_images_keep_their_order(self, tmp_path):
        images, labels = random_images(12, size=2), torch.tensor([0, 1] * 6)
        write_imagefolder(DistilledSet.from_images(images, labels, classes_of("ab")), tmp_path / "out")
        read = torch.stack([image for image, _ in ImageFolder(tmp_path / "out", transform=pil_to_tensor)])
        assert torch.equal(read, torch.cat([images[0::2], images[1::2]]))

    @pytest.mark.parametrize("wnid", ["", ".", "..", "../up", "a/b", "a\\b", "/abs"])
    def test_wnid_that_names_no_folder(self, tmp_path, wnid):
        with pytest.raises(
            UserError, match=r"class 1 \(name .*\) has wnid .*, which cannot name a folder; give it"
        ):
            write_imagefolder(tiny_set(["a", wnid]), tmp_path / "out")
        assert names(tmp_path) == []

    def test_shared_wnid(self, tmp_path):
        with pytest.raises(
            UserError, match="classes 0 and 2 share the wnid 'a', so their images would fall into one"
        ):
            write_imagefolder(tiny_set(["a", "b", "a"]), tmp_path / "out")

    def test_what_it_cannot_hold_is_said(self, tmp_path):
        with pytest.warns(
            UserWarning, match="an ImageFolder has no soft labels or weights; --format pt keeps them"
        ):
            write_imagefolder(full_set(), tmp_path / "out")


class TestPt:
    def test_round_trip(self, saved, tmp_path, capsys):
        ending = export(str(saved.parent), "pt", str(tmp_path / "out"))  # the run's folder
        assert ending.made == (tmp_path / "out" / "distilled.pt",)
        assert names(tmp_path / "out") == ["classes.json", "distilled.pt"]
        original = DistilledSet.load(saved)
        content = torch.load(tmp_path / "out" / "distilled.pt", weights_only=True)
        assert set(content) == {"images", "labels", "classes", "mean", "std"}
        assert content["images"].dtype == torch.uint8
        assert torch.equal(content["images"], original.images)
        assert torch.equal(content["labels"], original.labels)
        assert content["mean"] == [0.1, 0.2, 0.3]
        assert content["std"] == [0.5, 0.5, 0.5]
        table = json.loads((tmp_path / "out" / "classes.json").read_text())
        assert content["classes"] == table == [info.to_dict() for info in original.classes]

    def test_one_file_with_everything(self, tmp_path):
        assert write_pt(full_set(), tmp_path / "set.pt") == tmp_path / "set.pt"
        content = torch.load(tmp_path / "set.pt", weights_only=True)
        assert torch.equal(content["soft_labels"], full_set().soft_labels)
        assert torch.equal(content["weights"], full_set().weights)
        assert names(tmp_path) == ["set.pt"]

    def test_a_view_is_stored_alone(self, tmp_path):
        images = random_images(1000)[:1]
        write_pt(DistilledSet.from_images(images, torch.tensor([0]), classes_of("a")), tmp_path / "set.pt")
        assert (tmp_path / "set.pt").stat().st_size < 10_000  # the batch behind it has 192,000

    def test_existing_file(self, tmp_path):
        (tmp_path / "set.pt").write_text("old")
        with pytest.raises(
            UserError, match=r"--out \(.*set\.pt\) exists; name a new file, or .* --overwrite true"
        ):
            write_pt(tiny_set(), tmp_path / "set.pt")
        assert (tmp_path / "set.pt").read_text() == "old"
        write_pt(tiny_set(), tmp_path / "set.pt", True)
        assert torch.load(tmp_path / "set.pt", weights_only=True)["labels"].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.fixture
def load(tmp_path):
    """`datasets.load_dataset` as a user calls it, with a cache of its own."""

    def load_dataset(*what, **options):
        return datasets.load_dataset(*what, split="train", cache_dir=str(tmp_path / "cache"), **options)

    datasets.disable_progress_bars()
    return load_dataset


class TestParquet:
    def test_round_trip(self, saved, tmp_path, load):
        assert cli.main(["export", str(saved), "--format", "parquet", "--out", str(tmp_path / "out")]) == 0
        assert names(tmp_path / "out") == ["classes.json", "commands.json", "data"]
        read, original = load(str(tmp_path / "out")), DistilledSet.load(saved)
        assert read.column_names == ["image", "label"]
        assert torch.equal(torch.stack([pil_to_tensor(image) for image in read["image"]]), original.images)
        assert list(read["label"]) == original.labels.tolist()
        assert read.features["label"].names == ["name n03", "name n01", "name n02"]  # our order
        table = json.loads((tmp_path / "out" / "classes.json").read_text())
        assert table == [info.to_dict() for info in original.classes]

    def test_soft_labels_and_weights(self, tmp_path, load):
        read = load(str(write_parquet(full_set(), tmp_path / "out")))
        assert torch.equal(torch.tensor(read["soft_label"][:]), full_set().soft_labels.float())
        assert torch.tensor(read["weight"][:]).tolist() == full_set().weights.tolist()

    def test_shards_and_row_groups(self, tmp_path, load, monkeypatch):
        monkeypatch.setattr(base, "SHARD_BYTES", 120 * 12)  # 120 images of 12 bytes
        images, labels = random_images(250, size=2), torch.arange(250) % 2
        out = write_parquet(DistilledSet.from_images(images, labels, classes_of("ab")), tmp_path / "out")
        assert names(out / "data") == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
        read = load(str(out))
        assert torch.equal(torch.stack([pil_to_tensor(image) for image in read["image"]]), images)
        assert list(read["label"]) == labels.tolist()

    def test_names_that_are_not_unique(self, tmp_path, load):
        classes = [type(info)(info.label, info.id, info.wnid, "crane") for info in classes_of("ab")]
        distilled = DistilledSet.from_images(random_images(2), torch.tensor([0, 1]), classes)
        assert load(str(write_parquet(distilled, tmp_path / "out"))).features["label"].names == ["a", "b"]


class TestWebDataset:
    def test_round_trip(self, saved, tmp_path, load):
        export(str(saved), "webdataset", str(tmp_path / "out"))
        original, file = DistilledSet.load(saved), tmp_path / "out" / "data" / "train-00000-of-00001.tar"
        read = list(
            webdataset.WebDataset(str(file), shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json")
        )
        images = torch.stack([torch.tensor(image).permute(2, 0, 1) for image, _, _ in read])
        assert torch.equal(images, original.images)
        assert [label for _, label, _ in read] == original.labels.tolist()
        assert [facts for _, _, facts in read] == [original.classes[i].to_dict() for i in original.labels]
        again = load("webdataset", data_files={"train": str(file)})
        assert torch.equal(torch.stack([pil_to_tensor(image) for image in again["png"]]), original.images)
        assert list(again["cls"]) == original.labels.tolist()

    def test_soft_labels_weights_and_bytes(self, tmp_path):
        file = write_webdataset(full_set(), tmp_path / "out") / "data" / "train-00000-of-00001.tar"
        read = list(webdataset.WebDataset(str(file), shardshuffle=False))
        soft = np.stack([np.load(io.BytesIO(sample["soft.npy"])) for sample in read])
        assert torch.equal(torch.from_numpy(soft), full_set().soft_labels)
        assert [json.loads(sample["json"])["weight"] for sample in read] == full_set().weights.tolist()
        again = write_webdataset(full_set(), tmp_path / "again") / "data" / file.name
        assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("format", WRITERS)
class TestTarget:
    def test_empty_folder_is_used(self, saved, tmp_path, format):
        (tmp_path / "out").mkdir()
        export(str(saved), format, str(tmp_path / "out"))
        assert (tmp_path / "out" / "classes.json").is_file()

    def test_earlier_export(self, saved, tmp_path, format):
        export(str(saved), format, str(tmp_path / "out"))
        before = (tmp_path / "out" / "classes.json").read_text()
        other = tiny_set(["x"]).save(tmp_path / "other")
        with pytest.raises(
            UserError, match=r"--out \(.*out\) is not empty; name a new folder, or .*--overwrite true"
        ):
            export(str(other), format, str(tmp_path / "out"))
        assert (tmp_path / "out" / "classes.json").read_text() == before
        export(str(other), format, str(tmp_path / "out"), overwrite=True)
        of_form = {
            "imagefolder": ["x"],
            "pt": ["distilled.pt"],
            "ddranking": ["ddranking.json", "images.pt", "labels.pt"],
        }
        assert names(tmp_path / "out") == ["classes.json", *of_form.get(format, ["data"])]
        assert names(tmp_path) == ["other", "out"]

    def test_foreign_files_are_never_replaced(self, saved, tmp_path, format):
        (tmp_path / "thesis.txt").write_text("words")
        for out in (tmp_path, saved, saved.parent):
            with pytest.raises(
                UserError,
                match=r"does not hold an earlier export .*, so it is not replaced; name a new folder",
            ):
                export(str(saved), format, str(out), overwrite=True)
        assert names(tmp_path) == ["thesis.txt"]
        assert DistilledSet.load(saved).num_classes == 3

    def test_unwritable(self, saved, tmp_path, format):
        (tmp_path / "file").touch()
        for out in ("file", "file/out"):
            with pytest.raises(UserError, match=f"cannot write .*{out}: .*; "):
                export(str(saved), format, str(tmp_path / out))

    def test_failure_leaves_the_earlier_export(self, saved, tmp_path, format, monkeypatch):
        export(str(saved), format, str(tmp_path / "out"))
        before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
        monkeypatch.setattr(Image.Image, "save", full_disk)
        with (
            pytest.raises(UserError, match=f"cannot write {tmp_path / 'out'}.*: (No space|disk full)"),
            file_size_limit(10_000),
        ):
            WRITERS[format](tiny_set(size=64), tmp_path / "out", True)
        assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
        assert names(tmp_path) == ["out"]

    def test_damaged_set(self, tmp_path, format):
        path = tiny_set().save(tmp_path / "set")
        (path / "images.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match=r"images\.safetensors is damaged"):
            export(str(path), format, str(tmp_path / "out"))
        assert names(tmp_path) == ["set"]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
