"""Sources: fixed disjoint splits, image files as they come, and clear errors."""

import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ldd.data import DigitsSource, DistillationData, FolderSource, Item, Subset, UnreadableImage
from ldd.errors import UserError

SHARED = Path(os.environ.get("LDD_SHARED", "../shared"))
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
    with pytest.raises(
        UnreadableImage,
        match=r"cannot read image .*train/cat/00\.JPEG: .*truncated.*remove it.*on_error: skip",
    ):
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


@pytest.fixture
def whole(tmp_path):
    """Classes that are not split: 11, 2 and 1 images."""
    for name, count in (("cat", 11), ("dog", 2), ("emu", 1)):
        for number in range(count):
            path = tmp_path / "mine" / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return tmp_path / "mine"


def test_a_folder_without_parts_is_split(whole, caplog):
    with caplog.at_level(logging.INFO):
        source = FolderSource(str(whole))
        again = FolderSource(str(whole))
    assert caplog.text.count("has no train/ and val/: a fixed fifth of each class is kept for the test") == 1
    parts = {
        split: [[item.key for item in source.class_items(split, label)] for label in range(2)]
        for split in ("train", "selection", "test")
    }
    assert [list(map(len, parts[split])) for split in ("train", "selection", "test")] == [
        [8, 1],
        [1, 0],
        [2, 1],
    ]
    for label, name in enumerate(("cat", "dog")):
        keys = [key for split in parts.values() for key in split[label]]
        assert sorted(keys) == sorted(
            f"{name}/{number:02d}.png" for number in range(11 if name == "cat" else 2)
        )
    assert again.items("train") == source.items("train")
    assert source.read(source.items("test")[0]).shape == (3, 8, 8)
    assert len(source.class_items("train", 2)) == 1


def test_a_part_is_not_taken_for_a_whole_folder(tree, whole):
    with pytest.raises(UserError, match="is the part train of a data set; name the folder above it"):
        FolderSource(str(tree / "train"))
    (whole / "train").mkdir()
    with pytest.raises(UserError, match=r"there is no folder .*/val"):
        FolderSource(str(whole))


def test_the_terms_lie_beside_the_images(tree):
    assert FolderSource(str(tree)).licence == "unknown: the terms of the folder's images apply"
    (tree / "LICENSE").write_text("\n  CC BY 4.0, my own photographs \nmore\n")
    assert FolderSource(str(tree)).licence == "CC BY 4.0, my own photographs"
    assert (
        DistillationData(FolderSource, str(tree), image_size=8).spec.licence
        == "CC BY 4.0, my own photographs"
    )
    (tree / "LICENSE").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="LICENSE is not text"):
        FolderSource(str(tree))


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


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPEG", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp", ".PNG"]
)
def test_files_of_every_known_kind_are_found_and_read(tree, suffix):
    path = tree / "val" / "cat" / f"photo{suffix}"
    write_image(path)
    source = FolderSource(str(tree))
    item = Item(f"val/cat/photo{suffix}", 0)
    assert item in source.class_items("test", 0)
    assert (source.read(item).float() - torch.linspace(0, 255, 20)).abs().max() <= 6


def test_what_is_no_image_is_not_listed_and_nothing_is_decoded_before_it_is_read(tree):
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    (tree / "train" / "cat" / "._00.JPEG").write_text("left by another system")
    (tree / "train" / ".cache").mkdir()
    (tree / "train" / "cat" / "deep" / "er").mkdir(parents=True)
    (tree / "train" / "cat" / "deep" / "er" / "false.png").write_text("no image either")
    source = FolderSource(str(tree))
    keys = [item.key for split in ("train", "selection") for item in source.class_items(split, 0)]
    assert len(keys) == 41
    assert "train/cat/deep/er/false.png" in keys
    assert len(source.classes) == 3
    with pytest.raises(UnreadableImage, match=r"false\.png: cannot identify image file"):
        source.read(Item("train/cat/deep/er/false.png", 0))


def test_broken_links_are_reported_when_read(tree):
    (tree / "val" / "cat" / "gone.png").symlink_to("nowhere.png")
    source = FolderSource(str(tree))
    assert len(source.fingerprint("test")) == 32
    with pytest.raises(UnreadableImage, match=r"cannot read image .*gone\.png: .*No such file"):
        source.read(Item("val/cat/gone.png", 0))


def test_palettes_and_transparency_read_as_plain_colours(tree):
    colours = Image.new("RGBA", (4, 2), (10, 200, 30, 0))
    colours.save(tree / "val" / "cat" / "clear.png")
    indexed = Image.new("P", (4, 2), 1)
    indexed.putpalette([0, 0, 0, 10, 200, 30])
    indexed.save(tree / "val" / "cat" / "indexed.png", transparency=b"\x00\x80")
    for name in ("clear", "indexed"):
        image = FolderSource(str(tree)).read(Item(f"val/cat/{name}.png", 0))
        assert image.equal(torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None].expand(3, 2, 4))


def test_validation_images_without_class_folders_are_refused_with_the_cure(tree):
    for path in list((tree / "val").rglob("*.JPEG")):
        path.rename(tree / "val" / f"{path.parent.name}{path.name}")
    for folder in ("cat", "dog", "emu"):
        (tree / "val" / folder).rmdir()
    with pytest.raises(
        UserError, match=r"/val has no class folders.*torchvision\.datasets\.ImageNet\(root, split"
    ):
        FolderSource(str(tree))


def test_a_folder_called_test_serves_where_there_is_no_val(tree):
    before = FolderSource(str(tree)).items("train")
    (tree / "val").rename(tree / "test")
    source = FolderSource(str(tree))
    assert source.items("train") == before
    assert [item.key for item in source.class_items("test", 1)] == [
        f"test/dog/{i:02d}.JPEG" for i in range(3)
    ]


TABLE = [
    {"wnid": "emu", "id": 3, "name": "Dromaius"},
    {"wnid": "cat", "id": 12},
    {"wnid": "dog", "id": 5, "name": "Canis"},
]


def test_a_table_of_classes_gives_ids_names_and_order(tree):
    (tree / "classes.json").write_text(json.dumps([*TABLE, {"wnid": "yak", "id": 1, "name": "not here"}]))
    source = FolderSource(str(tree))
    expected = [(0, 3, "emu", "Dromaius"), (1, 5, "dog", "Canis"), (2, 12, "cat", "cat")]
    assert [(info.label, info.id, info.wnid, info.name) for info in source.classes] == expected
    assert all("/dog/" in item.key for item in source.class_items("train", 1))
    (tree / "classes.json").unlink()
    (tree / "classes.csv").write_text("name,wnid\nCanis,dog\n,cat\nDromaius,emu\n", encoding="utf-8-sig")
    classes = FolderSource(str(tree)).classes
    assert [(info.id, info.wnid, info.name) for info in classes] == [
        (0, "dog", "Canis"),
        (1, "cat", "cat"),
        (2, "emu", "Dromaius"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is not a table of classes \(JSONDecodeError.*each row needs wnid"),
        (
            '{"cat": "Felis"}',
            r"is not a table of classes .*rename the file if it is meant for something else",
        ),
        ('[{"id": 1, "name": "Felis"}]', r"is not a table of classes \(KeyError: 'wnid'\)"),
        ('[{"wnid": "cat", "id": 1.5}]', r"is not a table of classes \(ValueError: .*1\.5"),
        (json.dumps([*TABLE, {"wnid": "cow", "id": 5}]), "id 5 stands in more than one row"),
        (json.dumps([*TABLE, {"wnid": "cat", "id": 6}]), "wnid 'cat' stands in more than one row"),
        (json.dumps(TABLE[1:]), r"has no row for 1 of 3 class folders \(emu\)"),
        ("[]", r"has no row for 3 of 3 class folders \(cat, dog, emu\)"),
    ],
)
def test_a_wrong_table_is_named(tree, content, message):
    (tree / "classes.json").write_text(content)
    with pytest.raises(UserError, match=rf"classes\.json:? {message}"):
        FolderSource(str(tree))


def test_imagenet_folders_carry_imagenets_indices_only_when_all_are_imagenets(tmp_path):
    for split in ("train", "val"):
        for wnid in ("n02099601", "n01440764"):
            (tmp_path / split / wnid).mkdir(parents=True)
    classes = FolderSource(str(tmp_path)).classes
    assert [(info.id, info.name) for info in classes] == [(0, "tench"), (207, "golden retriever")]
    (tmp_path / "train" / "background").mkdir()
    classes = FolderSource(str(tmp_path)).classes
    assert [(info.id, info.name) for info in classes] == [
        (0, "background"),
        (1, "n01440764"),
        (2, "n02099601"),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_does_not_pass_for_an_empty_one(tree):
    (tree / "train" / "cat").chmod(0)
    with pytest.raises(UserError, match=r"cannot list .*train/cat: Permission denied"):
        FolderSource(str(tree)).items("train")
