"""`.pt` files of other programs: the pixels they were made of come back, and no order or range is guessed."""

import collections
import json

import numpy as np
import pytest
import torch
from tiny_set import classes_of, full_set, random_images, tiny_set
from torchvision.transforms.v2.functional import normalize

from ldd import cli
from ldd.artefact.exporters import write_pt
from ldd.artefact.set import DistilledSet
from ldd.errors import UserError
from ldd.importers import KNOWN, read_pt, undo_normalisation
from tests.disk.test_files import names

WNIDS = ["n01440764", "n02102040", "n02979186"]
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
EXPORT = {"images": random_images(6), "labels": LABELS}


@pytest.fixture
def images():
    """With both ends of the range in every channel, as decoded images have them."""
    images = random_images(6)
    images[0, :, 0, 0], images[1, :, 0, 0] = 0, 255
    return images


@pytest.fixture
def wnids(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(WNIDS))
    return tmp_path / "classes.txt"


def normalised(images, name="imagenet"):
    """By torchvision, as the released code does it."""
    return normalize(images.float() / 255, *map(list, KNOWN[name]))


def run(path, tmp_path, *options):
    return cli.main(["import", str(path), "--out", str(tmp_path / "out"), *map(str, options)])


class TestForms:
    def test_images_and_labels_side_by_side(self, images, wnids, tmp_path, capsys):
        run_folder = tmp_path / "run"
        run_folder.mkdir()
        torch.save(normalised(images), run_folder / "images_best.pt")
        torch.save(normalised(images) * 2, run_folder / "images_400.pt")
        torch.save(normalised(images) * 3, run_folder / "images_zca_best.pt")
        torch.save(LABELS, run_folder / "labels_best.pt")
        assert run(run_folder, tmp_path, "--classes", wnids) == 0
        assert "normalisation imagenet, 0.00 % of the values clamped" in capsys.readouterr().out
        read = DistilledSet.load(tmp_path / "out")
        assert torch.equal(read.images, images)
        assert read.labels.tolist() == LABELS.tolist()
        assert [info.wnid for info in read.classes] == WNIDS
        assert [info.id for info in read.classes] == [0, 217, 482]
        assert read.classes[2].name == "cassette player"
        assert read.manifest["normalisation"]["mean"] == [0.485, 0.456, 0.406]
        assert read.manifest["imported"]["normalisation"].startswith("normalisation imagenet")

    def test_experiments_with_numpy_accuracies(self, images, wnids, tmp_path, capsys):
        # As DC writes it: two experiments, and its accuracies are scalars of numpy.
        other = normalised(images.flip(0), "cifar10")
        content = {
            "data": [[other, LABELS], [normalised(images, "cifar10"), LABELS]],
            "accs_all_exps": {"ConvNet": [np.float64(0.5), np.mean([0.25])]},
        }
        torch.save(content, tmp_path / "res_DC_CIFAR10_ConvNet_1ipc.pt")
        file = tmp_path / "res_DC_CIFAR10_ConvNet_1ipc.pt"
        assert run(file, tmp_path, "--classes", wnids) == 2
        assert "holds 2 experiments; choose one with --experiment 0 to 1" in capsys.readouterr().err
        assert run(file, tmp_path, "--classes", wnids, "--experiment", 1) == 0
        assert torch.equal(DistilledSet.load(tmp_path / "out").images, images)
        assert run(file, tmp_path, "--classes", wnids, "--experiment", 2, "--overwrite") == 2

    def test_our_export_comes_back(self, tmp_path):
        original = full_set()
        write_pt(original, tmp_path / "set.pt")
        assert run(tmp_path / "set.pt", tmp_path) == 0
        read = DistilledSet.load(tmp_path / "out")
        for name in ("images", "labels", "soft_labels", "weights"):
            assert torch.equal(getattr(read, name), getattr(original, name))
        assert read.classes == original.classes
        assert read.manifest["normalisation"] == original.manifest["normalisation"]

    def test_soft_labels(self, images, wnids, tmp_path):
        soft = torch.eye(3)[LABELS] * 0.7 + 0.1
        torch.save(normalised(images), tmp_path / "images.pt")
        torch.save(soft, tmp_path / "labels.pt")
        assert run(tmp_path / "images.pt", tmp_path, "--classes", wnids) == 0
        read = DistilledSet.load(tmp_path / "out")
        assert torch.equal(read.soft_labels, soft)
        assert read.labels.tolist() == LABELS.tolist()

    def test_soft_labels_add_up_to_one(self, wnids, tmp_path, capsys):
        torch.save(EXPORT | {"soft_labels": torch.ones(6, 3)}, tmp_path / "set.pt")
        assert run(tmp_path / "set.pt", tmp_path, "--classes", wnids) == 2
        assert "soft_labels of image 0 add up to 3, not to 1" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_one_number_is_the_mean_of_all_channels(self, images, wnids, tmp_path):
        floats = (images.float() / 255 - 0.5) / 0.5
        torch.save(
            {"images": floats, "labels": LABELS, "mean": 0.5, "std": torch.tensor(0.5)}, tmp_path / "set.pt"
        )
        assert run(tmp_path / "set.pt", tmp_path, "--classes", wnids) == 0
        assert torch.equal(DistilledSet.load(tmp_path / "out").images, images)

    def test_one_grey_channel(self, tmp_path):
        grey = random_images(6)[:, :1]
        grey[0, :, 0, 0], grey[1, :, 0, 0] = 0, 255
        assert torch.equal(
            ((undo_normalisation((grey / 255 - 0.1307) / 0.3081).images + 1) * 127.5).round().byte(),
            grey.expand(-1, 3, -1, -1),
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (torch.zeros(6), "holds images alone"),
            ([1, 2], "holds a list of no known form"),
            ({"data": [1]}, r"data must be a list of \[images, labels\]"),
            ({"images": 1, "labels": LABELS}, "images must be a tensor, got int"),
            ({"images": torch.zeros(6), "labels": torch.randn(6, 3)}, "take the softmax of logits"),
            (collections.Counter("ab"), "no known form"),
            (EXPORT | {"soft_labels": [[1.0]]}, "soft_labels must be a tensor, got list"),
            (EXPORT | {"weights": 0.5}, "weights must be a tensor, got float"),
            (EXPORT | {"mean": "grey"}, "mean must be a number or one for each channel, got 'grey'"),
            (EXPORT | {"std": [None]}, "std must be a number or one for each channel"),
            (
                EXPORT | {"classes": [{"label": 0}]},
                r"classes must be a list of \{label, id, wnid, name\}: missing",
            ),
            (
                EXPORT | {"classes": [{"label": 0, "id": 0, "wnid": "a\x1b", "name": "b"}]},
                "control characters",
            ),
            (EXPORT | {"classes": 7}, "classes must be a list"),
        ],
    )
    def test_other_content(self, tmp_path, content, message):
        torch.save(content, tmp_path / "file.pt")
        with pytest.raises(UserError, match=message):
            read_pt(tmp_path / "file.pt")

    @pytest.mark.parametrize(
        "labels",
        [
            LABELS[:, None],
            LABELS[:, None].float(),
            LABELS.float(),
            torch.nn.functional.one_hot(LABELS),
            torch.nn.functional.one_hot(LABELS).bool(),
        ],
    )
    def test_whole_numbers_in_a_column_or_one_hot_are_hard_labels(self, tmp_path, labels):
        torch.save({"images": torch.zeros(len(LABELS), 3, 8, 8), "labels": labels}, tmp_path / "file.pt")
        read = read_pt(tmp_path / "file.pt")
        assert torch.equal(read.labels, LABELS)
        assert read.soft_labels is None

    def test_probabilities_stay_soft(self, tmp_path):
        for labels in (torch.nn.functional.one_hot(LABELS).float(), torch.ones(len(LABELS), 1)):
            torch.save({"images": torch.zeros(len(LABELS), 3, 8, 8), "labels": labels}, tmp_path / "file.pt")
            assert torch.equal(read_pt(tmp_path / "file.pt").soft_labels, labels)

    @pytest.mark.parametrize("what", ["images", "labels"])
    def test_complex_numbers_are_refused(self, tmp_path, what):
        content = {"images": torch.zeros(6, 3, 8, 8), "labels": LABELS}
        torch.save(content | {what: content[what].to(torch.complex64)}, tmp_path / "file.pt")
        with pytest.raises(
            UserError, match=rf"{what} must be real numbers, got torch\.complex64; save their"
        ):
            read_pt(tmp_path / "file.pt")

    def test_a_pickle_that_would_run_something(self, tmp_path):
        class Harmful:
            def __reduce__(self):
                return print, ("ran",)

        torch.save({"images": Harmful()}, tmp_path / "file.pt")
        with pytest.raises(UserError, match="a pickle with other objects could run any program"):
            read_pt(tmp_path / "file.pt")
        (tmp_path / "text.pt").write_text("no pickle")
        with pytest.raises(UserError, match=r"text\.pt"):
            read_pt(tmp_path / "text.pt")

    def test_whitened_or_unclear_files(self, tmp_path):
        (tmp_path / "images_zca_best.pt").touch()
        with pytest.raises(UserError, match="ZCA-whitened"):
            read_pt(tmp_path / "images_zca_best.pt")
        for name in ("images_1.pt", "images_2.pt"):
            (tmp_path / name).touch()
        with pytest.raises(
            UserError, match=r"2 files images\*\.pt: images_1\.pt, images_2\.pt; name the file"
        ):
            read_pt(tmp_path)


class TestNormalisation:
    @pytest.mark.parametrize("name", KNOWN)
    def test_recognised(self, images, name):
        undone = undo_normalisation(normalised(images, name))
        assert undone.name == name
        assert torch.equal(((undone.images + 1) * 127.5).round().byte(), images)

    @pytest.mark.parametrize("name", KNOWN)
    def test_given(self, images, name):
        undone = undo_normalisation(normalised(images, name).half(), *KNOWN[name])
        assert undone.clamped == 0
        assert ((undone.images + 1) * 127.5 - images).abs().max() < 0.2  # half precision, of a byte's step

    def test_not_recognised(self, images):
        with pytest.raises(
            UserError, match=r"cannot be recognised: none .*imagenet \[.*give --mean and --std"
        ):
            undo_normalisation(normalised(images) * 1.1)
        with pytest.raises(UserError, match="cannot be recognised"):
            undo_normalisation(normalised(images.clamp(20, 200)))  # within the range of several

    def test_pixels_outside(self, images):
        optimised = normalised(images)
        optimised[0, 0, 0, 0] -= 2
        with pytest.raises(
            UserError, match=r"0\.09 % of the pixels lie outside \[0, 1\] \(from -0\.458 to 1\)"
        ):
            undo_normalisation(optimised, *KNOWN["imagenet"])
        undone = undo_normalisation(optimised, *KNOWN["imagenet"], clamp=True)
        assert undone.clamped == pytest.approx(1 / images.numel())
        assert torch.equal(((undone.images + 1) * 127.5).round().byte(), images)

    def test_wrong_arguments(self, images):
        for arguments, message in (
            (([0.5], None), "belong together"),
            (([0.5] * 2, [0.5] * 2), "one number or three"),
            (([0.5], [0.0]), "must be above 0"),
        ):
            with pytest.raises(UserError, match=message):
                undo_normalisation(normalised(images), *arguments)
        with pytest.raises(UserError, match="NaN"):
            undo_normalisation(normalised(images) * float("nan"))


class TestClassOrder:
    @pytest.fixture
    def file(self, images, tmp_path):
        torch.save({"images": images, "labels": LABELS}, tmp_path / "set.pt")
        return tmp_path / "set.pt"

    def test_numbers_alone_say_nothing(self, file, tmp_path, capsys):
        assert run(file, tmp_path) == 2
        assert "nothing says which classes the labels 0, 1, ... of these files are" in capsys.readouterr().err
        assert names(tmp_path) == ["set.pt"]

    @pytest.mark.parametrize("typed", ["cat,ship,truck", "[cat, 'ship', \"truck\"]"])
    def test_names(self, file, images, tmp_path, capsys, typed):
        assert run(file, tmp_path, "--classes", typed) == 0
        assert (
            "a dictionary of images and labels; pixels as stored; classes 0 cat, 1 ship"
            in capsys.readouterr().out
        )
        read = DistilledSet.load(tmp_path / "out")
        assert [(info.wnid, info.name) for info in read.classes] == [(n, n) for n in ("cat", "ship", "truck")]

    def test_names_are_those_of_the_data(self, tmp_path, capsys):
        torch.save({"images": random_images(4), "labels": torch.tensor([0, 0, 1, 1])}, tmp_path / "set.pt")
        data = ("--data.source", "ldd.data.DigitsSource", "--data.subset", '["digit-7", "digit-3"]')
        assert run(tmp_path / "set.pt", tmp_path, "--classes", "3,digit-7", *data) == 2  # the other way round
        assert "in the files: 0 digit-3 (3), 1 digit-7 (7)" in capsys.readouterr().err
        assert run(tmp_path / "set.pt", tmp_path, "--classes", "7,digit-3", *data) == 0

    @pytest.mark.parametrize(
        ("typed", "said"),
        [
            ("cat,ship,cat", "'cat' stands twice"),
            ("cat,,ship", "'' is not a name"),
            ("imagenett", "unknown classes='imagenett'; nearest: imagenette"),
            ("none.txt", "classes='none.txt': cannot read this list"),
        ],
    )
    def test_names_that_are_none(self, file, tmp_path, capsys, typed, said):
        assert run(file, tmp_path, "--classes", typed) == 2
        assert said in capsys.readouterr().err

    def test_other_order_shows_both(self, tmp_path, capsys):
        write_pt(tiny_set(), tmp_path / "set.pt")
        table = [info.to_dict() for info in classes_of(["n01", "n02", "n03"])]
        (tmp_path / "table.json").write_text(json.dumps(table))
        assert run(tmp_path / "set.pt", tmp_path, "--classes", tmp_path / "table.json") == 2
        printed = capsys.readouterr().err
        assert "in the files: 0 n03 (name n03), 1 n01 (name n01), 2 n02 (name n02)" in printed
        assert "by --classes: 0 n01 (name n01), 1 n02 (name n02), 2 n03 (name n03)" in printed

    def test_reorder(self, images, tmp_path, capsys):
        digits = [f"digit-{d}" for d in (2, 0, 1, *range(3, 10))]
        soft = torch.eye(10) * 0.9 + 0.01
        ten = torch.cat([images, images.flip(0)])[:10]
        distilled = DistilledSet.from_images(ten, torch.arange(10), classes_of(digits), soft_labels=soft)
        write_pt(distilled, tmp_path / "set.pt")
        data = ["--data.source", "ldd.data.DigitsSource"]
        assert run(tmp_path / "set.pt", tmp_path, *data) == 2
        printed = capsys.readouterr().err
        assert "in the files: 0 digit-2 (name digit-2), 1 digit-0" in printed
        assert "in --data: 0 digit-0 (0), 1 digit-1 (1)" in printed
        assert "--reorder true renumbers them" in printed
        assert run(tmp_path / "set.pt", tmp_path, *data, "--reorder", "true") == 0
        read = DistilledSet.load(tmp_path / "out")
        assert [info.wnid for info in read.classes] == [f"digit-{d}" for d in range(10)]
        assert read.labels.tolist() == [2, 0, 1, *range(3, 10)]
        assert torch.equal(read.images, ten)
        assert read.soft_labels.argmax(1).tolist() == read.labels.tolist()

    def test_count_that_does_not_fit(self, file, tmp_path, capsys):
        assert run(file, tmp_path, "--classes", "imagenette") == 2
        printed = capsys.readouterr().err
        assert "labels: [0, 1, 2] (3 in all); classes: 0 n01440764 (tench)" in printed
        assert names(tmp_path) == ["set.pt"]

    def test_nothing_is_overwritten(self, file, wnids, tmp_path, capsys):
        assert run(file, tmp_path, "--classes", wnids) == 0
        assert run(file, tmp_path, "--classes", wnids) == 2
        assert "is not empty; name a new folder" in capsys.readouterr().err
        assert run(file, tmp_path, "--classes", wnids, "--overwrite") == 0
