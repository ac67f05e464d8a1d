"""Sources: fixed disjoint splits, image files as they come, and clear errors."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ldd.data import DigitsSource, FolderSource, Item, Subset
from ldd.errors import UserError

SPLITS = ("train", "selection", "test")


def write_image(path, mode="RGB", size=(20, 10), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
    # A smooth ramp survives JPEG compression: left dark, right bright, in every channel.
    ramp = np.linspace(0, 255, size[0], dtype=np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (size[1], size[0], channels))
    if mode == "CMYK":
        pixels = np.concatenate([255 - pixels[..., :3], np.zeros_like(pixels[..., :1])], axis=-1)
    Image.fromarray(np.ascontiguousarray(pixels.squeeze()), mode).save(path, quality=95, **options)


@pytest.fixture
def tree(tmp_path):
    for split, count in (("train", 40), ("val", 3)):
        for name in ("cat", "dog", "emu"):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i:02d}.JPEG")
    return tmp_path


def test_digits_are_scikit_learns_scans_split_60_10_30_per_class():
    source, data = DigitsSource(None), load_digits()
    assert [info.wnid for info in source.classes] == [f"digit-{d}" for d in range(10)]
    seen = set()
    for split, share in zip(SPLITS, (0.6, 0.1, 0.3), strict=True):
        for label in range(10):
            items = source.class_items(split, label)
            assert abs(len(items) - share * (data.target == label).sum()) <= 1
            for item in items:
                number = int(item.key.removeprefix("digits/"))
                assert data.target[number] == label
                assert item.key not in seen
                seen.add(item.key)
    assert len(seen) == 1797
    image = source.read(Item("digits/0123", label=0))
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.uint8
    expected = np.rint(data.images[123] * 255 / 16)
    assert (image.numpy() == expected[None]).all()


def test_the_digits_split_never_moves():
    # A literal: should this change, published numbers stop being comparable and the embedded prior has
    # seen test images.
    assert DigitsSource().fingerprint("test") == "f562a9e469c9e9dc0504efd2e4f93eab"
    assert [item.key for item in DigitsSource().class_items("test", 0)[:3]] == [
        "digits/0020",
        "digits/0030",
        "digits/0055",
    ]


def test_digits_refuse_a_root():
    with pytest.raises(UserError, match=r"root='/data' is not used by the digits.*leave it null"):
        DigitsSource("/data")


def test_folder_splits_are_disjoint_fixed_and_independent_of_the_subset(tree):
    source = FolderSource(str(tree))
    assert [info.wnid for info in source.classes] == ["cat", "dog", "emu"]
    keys = {split: [item.key for item in source.items(split)] for split in SPLITS}
    assert [len(keys[split]) for split in SPLITS] == [3 * 38, 3 * 2, 3 * 3]
    assert not set(keys["train"]) & set(keys["selection"])
    assert set(keys["train"]) | set(keys["selection"]) == {
        f"train/{name}/{i:02d}.JPEG" for name in ("cat", "dog", "emu") for i in range(40)
    }
    assert all(key.startswith("val/") for key in keys["test"])
    subset = Subset(FolderSource(str(tree)), ["emu", 0])
    assert [(info.label, info.id, info.wnid) for info in subset.classes] == [(0, 2, "emu"), (1, 0, "cat")]
    for split in SPLITS:
        chosen = [key for name in ("emu", "cat") for key in keys[split] if f"/{name}/" in key]
        assert [item.key for item in subset.items(split)] == chosen
    assert {item.label for item in subset.items("test") if "/emu/" in item.key} == {0}


def test_moving_the_folder_keeps_the_fingerprint_and_a_changed_image_does_not(tree, tmp_path):
    before = FolderSource(str(tree)).fingerprint("test")
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tree.rename(moved)
    assert FolderSource(str(moved)).fingerprint("test") == before
    write_image(moved / "val" / "dog" / "00.JPEG", size=(40, 20))
    assert FolderSource(str(moved)).fingerprint("test") != before


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_colour_mode_reads_as_rgb(tree, mode):
    write_image(tree / "train" / "cat" / "odd.jpg", mode)
    image = FolderSource(str(tree)).read(Item("train/cat/odd.jpg", 0))
    ramp = torch.linspace(0, 255, 20)
    assert image.shape == (3, 10, 20)
    assert (image.float() - ramp).abs().max() <= 6  # JPEG at quality 95


def test_exif_orientation_is_applied(tree):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turn it a quarter clockwise to see it upright
    write_image(tree / "train" / "cat" / "turned.jpg", exif=exif)
    image = FolderSource(str(tree)).read(Item("train/cat/turned.jpg", 0))
    assert image.shape == (3, 20, 10)
    assert image[0, 0].max() < 10  # the dark left edge became the top
    assert image[0, -1].min() > 245


def test_a_truncated_image_is_an_error_with_its_path(tree):
    path = tree / "train" / "cat" / "00.JPEG"
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UserError, match=r"cannot read image .*train/cat/00\.JPEG: .*truncated.*remove it"):
        FolderSource(str(tree)).read(Item("train/cat/00.JPEG", 0))


def test_sixteen_bit_images_are_refused_rather_than_clipped(tree):
    path = tree / "train" / "cat" / "deep.png"
    Image.fromarray(np.full((4, 4), 30000, dtype=np.uint16)).save(path)
    with pytest.raises(UserError, match=r"deep\.png has more than 8 bits per channel"):
        FolderSource(str(tree)).read(Item("train/cat/deep.png", 0))


def test_missing_folders_are_named(tree, tmp_path):
    with pytest.raises(UserError, match=r"root is null.*set data\.root"):
        FolderSource(None)
    with pytest.raises(
        UserError, match=r"root='/no/such': there is no folder /no/such; .*<root>/train/<class>/"
    ):
        FolderSource("/no/such")
    (tree / "val").rename(tree / "elsewhere")
    with pytest.raises(UserError, match=r"there is no folder .*/val"):
        FolderSource(str(tree))
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "val").mkdir()
    with pytest.raises(UserError, match="has no class folders"):
        FolderSource(str(tmp_path / "empty"))


def test_a_class_without_images_is_named(tree):
    for path in (tree / "val" / "dog").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"class 'dog' has no images in .*/val/dog; add some"):
        FolderSource(str(tree)).items("test")
    assert len(Subset(FolderSource(str(tree)), ["cat"]).items("test")) == 3


def test_unknown_classes_are_answered_with_the_nearest(tree):
    source = FolderSource(str(tree))
    with pytest.raises(UserError, match=r"unknown class 'dogg'; nearest of 3: dog"):
        Subset(source, ["dogg"])
    with pytest.raises(UserError, match=r"unknown class 7; nearest of 3: 2, 1, 0"):
        Subset(source, [7])
    with pytest.raises(UserError, match="names class 'cat' twice"):
        Subset(source, ["cat", 0])
    with pytest.raises(UserError, match="names no class"):
        Subset(source, [])
