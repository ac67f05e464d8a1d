"""Classes by name: ImageNet's, those of a file, and those that a user names."""

import pytest

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.class_table import choose_classes, imagenet_classes, read_class_names


def test_the_classes_of_imagenet():
    classes = imagenet_classes()
    assert [info.label for info in classes] == list(range(1000))
    assert classes[0] == ClassInfo(0, 0, "n01440764", "tench")
    assert classes[701].name == "parachute"


def test_class_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\n\nn01 the  dog\n")
    assert read_class_names(path) == [ClassInfo(0, 0, "cat", "cat"), ClassInfo(1, 1, "n01", "the  dog")]
    path.write_text("cat\ncat\n")
    with pytest.raises(UserError, match="names cat twice"):
        read_class_names(path)
    with pytest.raises(UserError, match=r"--class-names .* cannot be read"):
        read_class_names(tmp_path)


def test_choosing_classes():
    known = [
        ClassInfo(0, 0, "a", "crane"),
        ClassInfo(1, 1, "b", "crane"),
        ClassInfo(2, 2, "c", "maillot, tank suit"),
    ]
    assert choose_classes(known, []) == known
    assert choose_classes(known, ["maillot, tank suit", "b,a", "c"]) == [known[2], known[1], known[0]]
    with pytest.raises(UserError, match="crane names several classes; give one of a, b"):
        choose_classes(known, ["crane"])
