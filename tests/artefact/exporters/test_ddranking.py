"""The export for DD-Ranking: its tensors, the way back, and the package itself, where it is installed."""

import json
import warnings

import numpy as np
import pytest
import torch
from tiny_set import classes_of, full_set, random_images, tiny_set
from torchvision.transforms.v2.functional import to_pil_image

from ldd import DistilledSet
from ldd.artefact.exporters import write_ddranking
from ldd.data import DigitsSource
from ldd.errors import UserError
from ldd.imagenet.tables import find_subset, synsets
from ldd.images import ClassInfo
from ldd.importers import read_set

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SUBSETS = {"ImageNette", "ImageWoof", "ImageFruit", "ImageYellow", "ImageMeow", "ImageSquawk"}


def read(folder):
    return (
        torch.load(folder / "images.pt", weights_only=True),
        torch.load(folder / "labels.pt", weights_only=True),
        json.loads((folder / "ddranking.json").read_text()),
    )


def test_tensors_are_normalised_and_sorted_by_its_numbers(tmp_path):
    """Its numbers are those of an ImageFolder: n01, n02, n03; ours are n03, n01, n02."""
    made = tiny_set(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images, labels, facts = read(write_ddranking(made, tmp_path / "out"))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert labels.dtype == torch.int64
    pixels = made.images[[2, 3, 4, 5, 0, 1]].double() / 255
    expected = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(
        3, 1, 1
    )
    assert images.dtype == torch.float32
    assert (images - expected).abs().max() < 1e-6
    assert facts == {
        "arguments": {"ipc": 2, "im_size": [8, 8]},
        "normalisation": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    table = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [(row["label"], row["wnid"], row["ddranking_label"]) for row in table] == [
        (0, "n03", 2), (1, "n01", 0), (2, "n02", 1)
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(SUBSETS | {"CIFAR10"}))
def test_its_own_data_sets_have_its_order(tmp_path, name):
    wnids = find_subset(name) or [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    made = tiny_set(sorted(wnids)[::-1], 1, **IMAGENET)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, labels, facts = read(write_ddranking(made, tmp_path / "out"))
    table = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [row["wnid"] for row in sorted(table, key=lambda row: row["ddranking_label"])] == list(wnids)
    assert labels.tolist() == list(range(10))
    assert facts["arguments"] == {"dataset": name, "ipc": 1, "im_size": [8, 8]}
    said = [str(one.message) for one in caught if "DD-Ranking normalises" in str(one.message)]
    assert len(said) == (name == "CIFAR10")  # whose statistics are others than these


def test_soft_labels_are_what_its_softmax_makes_of_them(tmp_path):
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2],
                                  [0.0, 0.1, 0.9], [0.25, 0.25, 0.5]])  # fmt: skip
    made = tiny_set(soft_labels=probabilities)
    _, labels, _ = read(write_ddranking(made, tmp_path / "out"))
    softmax = labels.exp() / labels.exp().sum(1, keepdim=True)
    ours_in_its_order = probabilities[[2, 3, 4, 5, 0, 1]][:, [1, 2, 0]]
    assert (softmax - ours_in_its_order).abs().max() < 1e-7


@pytest.mark.parametrize(
    "made", [full_set(), tiny_set(), tiny_set(["b", "a"], 3)], ids=["full", "plain", "two"]
)
def test_read_back_it_is_the_same_set(tmp_path, made):
    back = read_set(write_ddranking(made, tmp_path / "out"))
    assert torch.equal(back.images, made.images)  # to rounding, and rounding gives back every byte
    assert torch.equal(back.labels, made.labels)
    assert [info.wnid for info in back.classes] == [info.wnid for info in made.classes]
    assert back.manifest.normalisation == pytest.approx(made.manifest.normalisation) or (
        np.allclose(back.manifest.normalisation.mean, made.manifest.normalisation.mean)
        and np.allclose(back.manifest.normalisation.std, made.manifest.normalisation.std)
    )
    if made.soft_labels is None:
        assert back.soft_labels is None
    else:
        assert (back.soft_labels - made.soft_labels).abs().max() < 1e-3  # the set's own are float16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "classes.json").unlink(), "lacks classes.json; export the set again"),
        (lambda out: (out / "ddranking.json").write_text("{}"), "lacks the normalisation"),
        (lambda out: (out / "images.pt").unlink(), "is missing, damaged or no file of torch.save"),
        (lambda out: torch.save([1], out / "labels.pt"), "holds a list, not a tensor"),
        (lambda out: torch.save(torch.arange(5), out / "labels.pt"), "does not fit 6 images of 3 classes"),
        (lambda out: torch.save(torch.arange(6), out / "labels.pt"), "does not fit 6 images of 3 classes"),
        (lambda out: torch.save(torch.zeros(6, 3, 8, 8) + 9, out / "images.pt"), r"outside \[0, 1\]"),
    ],
)  # fmt: skip
def test_damaged_exports_are_refused(tmp_path, change, message):
    out = write_ddranking(tiny_set(), tmp_path / "out")
    change(out)
    with pytest.raises(UserError, match=message):
        read_set(out)


def test_what_it_cannot_hold_is_said(tmp_path):
    uneven = DistilledSet.from_images(random_images(3), torch.tensor([0, 0, 1]), classes_of("ab"))
    with pytest.raises(UserError, match="takes as many images of each class, and this set has 1 to 2"):
        write_ddranking(uneven, tmp_path / "out")
    with pytest.raises(UserError, match="classes 0 and 2 share the wnid 'a'"):
        write_ddranking(tiny_set(["a", "b", "a"]), tmp_path / "out")
    with pytest.warns(UserWarning, match="has no weights of images; --format pt keeps them"):
        write_ddranking(full_set(), tmp_path / "out")


@pytest.fixture(scope="module")
def ddranking():
    """Its scores want numpy below 2, which `latentdd` does not; installed without its dependencies they run."""
    reason = "ddranking is not installed: pip install --no-deps ddranking==0.2.0 kornia kornia_rs timm"
    return pytest.importorskip("ddranking", reason=reason)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The digits as the ten classes of ImageWoof, whose order is not the alphabet's; our own order is a third."""
    order = sorted(find_subset("imagewoof"))[::-1]
    digits = DistilledSet.load("embedded:digits-1")
    known = {wnid: index for index, wnid in enumerate(synsets())}
    classes = [ClassInfo(label, known[wnid], wnid, wnid) for label, wnid in enumerate(order)]
    made = DistilledSet.from_images(digits.images, digits.labels, classes, **IMAGENET)
    return write_ddranking(made, tmp_path_factory.mktemp("ddranking") / "out"), order


@pytest.fixture(scope="module")
def real(tmp_path_factory, exported):
    """ImageNet's 1,000 folders, ten of them with digits."""
    root, order = tmp_path_factory.mktemp("real"), exported[1]
    source = DigitsSource()
    blank = root / "blank.png"
    to_pil_image(torch.zeros(3, 1, 1, dtype=torch.uint8)).save(blank)
    for part, split in (("train", "train"), ("val", "test")):
        for wnid in synsets():
            (root / part / wnid).mkdir(parents=True)
            if wnid not in order:
                (root / part / wnid / "0.png").hardlink_to(blank)
        for label, wnid in enumerate(order):
            for number, item in enumerate(source.class_items(split, label)[:30]):
                picture = to_pil_image(source.read(item)).resize((32, 32))
                picture.save(root / part / wnid / f"{number}.png")
    return root


def test_it_scores_the_export(ddranking, exported, real, tmp_path, monkeypatch, capsys):
    from ddranking.metrics import hard_label

    folder, _ = exported
    images, labels, facts = read(folder)
    # What it saves has columns of two lengths, which pandas refuses after all training (0.2.0).
    monkeypatch.setattr(hard_label, "save_results", lambda results, path: None)
    monkeypatch.setitem(hard_label.REAL_DATA_ACC_CACHE, "ImageWoof-ConvNet-3", 90.0)
    arguments = {**facts["arguments"], "im_size": tuple(facts["arguments"]["im_size"])}
    scorer = ddranking.LabelRobustScoreHard(
        **arguments, real_data_path=str(real), model_name="ConvNet-3", data_aug_func=None, optimizer="sgd",
        lr_scheduler="cosine", num_eval=1, num_epochs=20, num_workers=0, device="cpu",
        save_path=str(tmp_path / "scores" / "x.csv"), random_data_path=str(tmp_path / "random"),
    )  # fmt: skip
    found = scorer.compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=0.01)
    accuracy = 90.0 - found["hard_label_recovery_mean"]
    assert accuracy > 50  # with another order of classes it would be at chance, 10
    alpha = 0.5 * found["improvement_over_random_mean"] - 0.5 * found["hard_label_recovery_mean"]
    expected = (np.exp(alpha) - np.exp(-1)) / (np.exp(1) - np.exp(-1))  # in points, where it means shares
    assert found["label_robust_score_mean"] == pytest.approx(expected, abs=1e-9)
    with capsys.disabled():
        print(f"DD-Ranking: {accuracy:.1f} %, over random {found['improvement_over_random_mean']:.1f}")
