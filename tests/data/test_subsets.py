"""Subsets: the published tables against the standard order, every way to name classes, and clear errors."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from ldd.data import DigitsSource, FolderSource, Subset
from ldd.errors import UserError
from ldd.imagenet import tables as imagenet

SHARED = Path(os.environ.get("LDD_SHARED", "../shared"))

# Class indices as the released GLaD and LD3M code lists them; the package stores wnids.
PUBLISHED = {
    "imagenette": "0 217 482 491 497 566 569 571 574 701",
    "imagewoof": "193 182 258 162 155 167 159 273 207 229",
    "birds": "84 130 88 144 145 22 96 9 100 89",
    "fruits": "953 954 949 950 951 957 952 945 943 948",
    "cats": "281 282 283 284 285 291 292 290 289 287",
    "yellow": "309 986 954 951 987 779 599 291 72 11",
    "a": "255 376 984 364 500 986 333 576 148 135",
    "b": "129 916 90 275 995 874 102 259 685 139",
    "c": "565 94 554 535 92 392 291 136 324 11",
    "d": "9 258 13 262 19 339 321 24 93 322",
    "e": "816 96 100 145 739 713 783 76 688 326",
    "geo": "980 970 975 974 973 977 976 978 972 979",
    "food": "933 934 932 963 930 928 924 959 931 927",
    "mammals": "386 387 354 340 338 104 103 279 334 366",
    "marine": "148 2 397 327 33 150 107 108 119 392",
}
ALSO = {"imagesquawk": "birds", "imagefruit": "fruits", "imagemeow": "cats", "imageyellow": "yellow"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """One tiny image of every class of the published subsets."""
    root = tmp_path_factory.mktemp("imagenet")
    pixel = Image.new("RGB", (4, 4))
    for wnid in {wnid for name in PUBLISHED for wnid in imagenet.named_subsets()[name]}:
        for split in ("train", "val"):
            (root / split / wnid).mkdir(parents=True)
            pixel.save(root / split / wnid / "0.png")
    return root


@pytest.fixture(scope="module")
def source(tree):
    return FolderSource(str(tree))


def test_the_standard_list_is_sorted_and_its_names_are_torchvisions():
    wnids = imagenet.synsets()
    assert len(wnids) == len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    # Well-known places in the standard order; an off-by-one anywhere would move one of them.
    known = {
        0: "tench",
        134: "crane bird",
        207: "golden retriever",
        291: "lion",
        517: "crane",
        701: "parachute",
    }
    known |= {309: "bee", 599: "honeycomb", 783: "screw", 816: "spindle", 950: "orange", 999: "toilet tissue"}
    assert {index: imagenet.readable_name(wnids[index]) for index in known} == known
    assert len({imagenet.readable_name(wnid) for wnid in wnids}) == 1000


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_subset_is_ten_classes_at_their_places_in_the_standard_list(name):
    indices = [int(index) for index in PUBLISHED[name].split()]
    assert len(set(indices)) == 10
    assert imagenet.named_subsets()[name] == tuple(imagenet.synsets()[index] for index in indices)


def test_the_table_holds_these_subsets_and_no_other():
    assert set(imagenet.named_subsets()) == {*PUBLISHED, *ALSO, "1k"}
    for name, same in ALSO.items():
        assert imagenet.named_subsets()[name] == imagenet.named_subsets()[same]
    assert imagenet.named_subsets()["1k"] == imagenet.synsets()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_subset_by_name_keeps_the_published_order_with_imagenets_indices_and_names(source, name):
    subset = Subset(source, name)
    indices = [int(index) for index in PUBLISHED[name].split()]
    assert [info.label for info in subset.classes] == list(range(10))
    assert [info.id for info in subset.classes] == indices
    assert [info.wnid for info in subset.classes] == [imagenet.synsets()[index] for index in indices]
    assert [info.name for info in subset.classes] == [imagenet.readable_name(i.wnid) for i in subset.classes]
    keys = [item.key for item in subset.items("test")]
    assert keys == [f"val/{info.wnid}/0.png" for info in subset.classes]


def test_names_in_other_words_are_the_same_subset(source):
    birds = Subset(source, "birds").classes
    for name in ("imagesquawk", "ImageSquawk", "imagenet-birds", "Birds"):
        assert Subset(source, name).classes == birds


def test_lists_of_wnids_indices_and_names_and_files_of_wnids(source, tmp_path):
    by_index = Subset(source, [291, 207, 0]).classes
    assert [info.name for info in by_index] == ["lion", "golden retriever", "tench"]
    assert Subset(source, ["n02129165", "n02099601", "n01440764"]).classes == by_index
    assert Subset(source, ["lion", "n02099601", 0]).classes == by_index
    path = tmp_path / "three.txt"
    path.write_text("# my three\nn02129165 lion\n\nn02099601\nn01440764  # tench\n")
    assert Subset(source, str(path)).classes == by_index


def test_an_unknown_subset_is_answered_with_the_nearest_and_all_known():
    with pytest.raises(UserError, match=r"unknown subset='imagenett'; nearest: imagenette.*known: .*marine"):
        Subset(DigitsSource(), "imagenett")
    with pytest.raises(UserError, match=r"unknown subset='n01440764'.*write a list, subset=\[n01440764\]"):
        Subset(DigitsSource(), "n01440764")
    with pytest.raises(UserError, match=r"unknown subset='imagenet-100'.*several lists.*subset=PATH\.txt"):
        Subset(DigitsSource(), "imagenet-100")


def test_classes_that_are_not_in_the_folder_are_all_named_with_the_root(tmp_path):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            (tmp_path / split / wnid).mkdir(parents=True)
    source = FolderSource(str(tmp_path))
    with pytest.raises(
        UserError,
        match=rf"root='{tmp_path}' has no images of 8 of 10 classes: n02979186 \(cassette player\), .*n03888257",
    ):
        Subset(source, "imagenette")
    with pytest.raises(
        UserError, match=r"no images of 998 of 1000 classes: n01443537 \(goldfish\), .*and 988 more"
    ):
        Subset(source, "imagenet-1k")
    with pytest.raises(UserError, match=r"has no images of 2 of 3 classes: n02129165 \(lion\), n99999999;"):
        Subset(source, ["n01440764", "n02129165", "n99999999"])
    with pytest.raises(UserError, match=r"subset: unknown class 5; nearest of 2: 0, 217"):
        Subset(source, [5])


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"subset='.*none\.txt': cannot read this list.*No such file"):
        Subset(DigitsSource(), str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"empty\.txt': the file names no class"):
        Subset(DigitsSource(), str(tmp_path / "empty.txt"))


def test_a_name_that_several_classes_bear_is_refused(tmp_path):
    for split in ("train", "val"):
        for name in ("bird1", "machine1"):
            (tmp_path / split / name).mkdir(parents=True)
    (tmp_path / "classes.csv").write_text("wnid,id,name\nbird1,0,crane\nmachine1,1,crane\n")
    with pytest.raises(UserError, match="2 classes are called 'crane'; use a wnid: bird1, machine1"):
        Subset(FolderSource(str(tmp_path)), ["crane"])


@pytest.mark.skipif(not (SHARED / "data/tiny-imagenet").is_dir(), reason="no ../shared/data/tiny-imagenet")
def test_classes_of_tiny_imagenet_get_imagenets_indices():
    classes = FolderSource(str(SHARED / "data/tiny-imagenet")).classes
    assert len(classes) == 200
    assert all(imagenet.synsets()[info.id] == info.wnid for info in classes)
    assert [info.id for info in classes] == sorted(info.id for info in classes)
