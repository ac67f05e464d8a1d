"""Folders and files as users have them: what is data, what a name means, and pictures that are traps."""

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldd.data import DistillationData, FolderSource, Subset, UnreadableImage
from ldd.data.pictures import files_below, fit_to_square, picture_files, read_file
from ldd.errors import UserError

SPLITS = ("train", "selection", "test")


def picture(path, size=(6, 5), mode="RGB", form=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 77).save(path, form)


def tree(root, classes=("apple", "pear"), train=4, val=2):
    for part, count in (("train", train), ("val", val)):
        for name in classes:
            for number in range(count):
                picture(root / part / name / f"{number}.png")
    return root


def keys(root, classes=2):
    source = FolderSource(str(root))
    return {split: [item.key for item in source.items(split)] for split in SPLITS}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth=8, colour=2, rows=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows or zlib.compress(b"")) + chunk(b"IEND", b"")


def tiff(bits, samples):
    """One pixel of `samples` channels of so many bits, uncompressed, little-endian."""
    data = b"\x01" * (samples * bits // 8)
    extra = 8 + len(data) + 2 + 12 * 9 + 4  # where three numbers of bits lie, which do not fit into their tag
    shorts = {256: 1, 257: 1, 259: 1, 262: 2 if samples > 2 else 1, 277: samples, 278: 1}
    tags = [(tag, 3, 1, value) for tag, value in shorts.items()]
    tags += [(258, 3, samples, extra if samples > 2 else bits), (273, 4, 1, 8), (279, 4, 1, len(data))]
    body = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return (
        head + data + struct.pack("<H", 9) + body + bytes(4) + struct.pack(f"<{samples}H", *[bits] * samples)
    )


# What is data


def test_links_are_followed_once_and_loops_end(tmp_path):
    root = tree(tmp_path / "d")
    plain = keys(root)
    for number in range(3):  # with os.walk(followlinks=True) these are 3^40 paths
        (root / "train" / "apple" / f"self{number}").symlink_to(".")
    (root / "train" / "pear" / "up").symlink_to("../pear")
    assert keys(root) == plain
    outside = tmp_path / "outside"
    picture(outside / "deep" / "x.png")
    (outside / "back").symlink_to(outside)
    (root / "train" / "apple" / "linked").symlink_to(outside)
    (root / "train" / "apple" / "again").symlink_to(outside / "deep")
    found = [path.name for path in map(Path, picture_files(str(root / "train" / "apple")))]
    assert sorted(found) == ["0.png", "1.png", "2.png", "3.png", "x.png"]


def test_a_folder_that_links_and_itself_is_listed_under_its_own_path(tmp_path):
    picture(tmp_path / "c" / "zoo" / "x.png")
    (tmp_path / "c" / "ape").symlink_to("zoo")
    assert picture_files(str(tmp_path / "c")) == [str(tmp_path / "c" / "zoo" / "x.png")]


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints",
        ".thumbnails",
        ".Trash-1000",
        ".git",
        "__MACOSX",
        "@eaDir",
        "$RECYCLE.BIN",
        "lost+found",
    ],
)
def test_folders_of_the_system_are_no_data_at_any_level(tmp_path, name):
    root = tree(tmp_path)
    plain = keys(root)
    for place in ("train", "val", "train/apple", "val/pear", "train/apple/deep"):
        picture(root / place / name / "x.png")
    assert keys(root) == plain
    assert [info.wnid for info in FolderSource(str(root)).classes] == ["apple", "pear"]


def test_two_classes_that_are_one_folder_are_refused(tmp_path):
    root = tree(tmp_path)
    (root / "train" / "quince").symlink_to("pear")
    with pytest.raises(UserError, match=r"train/pear and .*train/quince are one folder"):
        FolderSource(str(root))


def test_a_class_in_val_that_train_lacks_is_told(tmp_path):
    root = tree(tmp_path)
    picture(root / "val" / "zebra" / "0.png")
    with pytest.warns(UserWarning, match=r"has 1 class folders that .*train lacks \(zebra\); their images"):
        assert len(FolderSource(str(root)).classes) == 2


# Names


def test_numbers_as_class_folders_mean_their_names(tmp_path):
    source = FolderSource(str(tree(tmp_path, [str(n) for n in range(11)], train=2, val=1)))
    assert [info.wnid for info in source.classes] == sorted(map(str, range(11)))  # labels stay as they were
    for chosen in ([10, 2], ["10", "2"]):
        assert [info.wnid for info in Subset(source, chosen).classes] == ["10", "2"]
    with pytest.raises(UserError, match="unknown class 11"):
        Subset(source, [11])


def test_numbers_with_zeros_and_beside_words(tmp_path):
    source = FolderSource(str(tree(tmp_path / "a", ["007", "010"], train=2, val=1)))
    assert [info.id for info in source.classes] == [7, 10]
    source = FolderSource(str(tree(tmp_path / "b", ["7", "007", "x"], train=2, val=1)))
    assert [info.id for info in source.classes] == [0, 1, 2]
    assert Subset(source, ["007"]).classes[0].wnid == "007"


@pytest.mark.parametrize(
    "place", ["train/apple/caf\udce9.png", "val/apple/caf\udce9.png", "train/caf\udce9/0.png"]
)
def test_names_that_are_not_utf8_are_named(tmp_path, place):
    root = tree(tmp_path)
    path = os.fsencode(tmp_path / place)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(os.fsdecode(path)).write_bytes(png(1, 1))
    with pytest.raises(UserError, match=r"is not UTF-8: b'.*caf\\xe9.*rename it \(convmv") as raised:
        DistillationData(source=FolderSource, root=str(root), image_size=4).setup()
    str(raised.value).encode()


@pytest.mark.parametrize("name", ["a\x1b[31mred", "a\nb", "a\tb", "a\x7f", "a\x85b"])
def test_control_characters_in_a_class_are_refused_at_the_start(tmp_path, name):
    tree(tmp_path, ["apple", name])
    with pytest.raises(
        UserError, match=r"class name 'a.*in .* holds control characters; rename it"
    ) as raised:
        FolderSource(str(tmp_path))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("row", ["apple,1,{}".format("x" * 300), "apple,1,a\x07b", f"apple,{2**64},x"])
def test_a_table_whose_names_or_ids_no_manifest_holds(tmp_path, row):
    root = tree(tmp_path)
    (root / "classes.csv").write_text(f"wnid,id,name\n{row}\npear,2,y\n")
    with pytest.raises(UserError, match=r"shorten it|control characters|64 bits"):
        FolderSource(str(root))


def test_text_lists_take_names_with_spaces_marks_and_other_forms_of_unicode(tmp_path):
    nfd, nfc = "cafe\u0301", "caf\u00e9"
    source = FolderSource(str(tree(tmp_path / "d", ["golden retriever", "pear", nfd], train=2, val=1)))
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffpear a fruit # note\ngolden  retriever\n".encode() + nfc.encode())
    assert [info.wnid for info in Subset(source, str(path)).classes] == ["pear", "golden retriever", nfd]
    with pytest.raises(UserError, match=r"True is a truth value; YAML takes yes, no.*quote"):
        Subset(source, [True])


# Pictures


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb.png", png(4, 4, 16, 2)),
        ("rgba.png", png(4, 4, 16, 6)),
        ("la.png", png(4, 4, 16, 4)),
        ("l.png", png(4, 4, 16, 0)),
        ("p6.ppm", b"P6 1 1 65535\n" + b"\0\1" * 3),
        ("p6-12bit.ppm", b"P6 1 1 4095\n" + b"\0\1" * 3),
        ("p3.ppm", b"P3 1 1 1023\n 1 2 3\n"),
        ("p5.pgm", b"P5 1 1 4095\n\0\1"),
        ("p2.pgm", b"P2 1 1 65535\n7\n"),
        ("rgb.tif", tiff(16, 3)),
        ("l.tif", tiff(16, 1)),
    ],
)
def test_more_than_eight_bits_are_refused_by_the_header(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"{name} has more than 8 bits per channel"):
        read_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.ppm", b"P6 1 1 255\n\1\2\3"), ("x.pgm", b"P5 1 1 15\n\1"), ("x.tif", tiff(8, 3))],
)
def test_eight_bits_or_fewer_are_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_file(tmp_path / name).shape == (3, 1, 1)


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """Pillow hands EPS to the first `gs` of the path, whatever the file is called."""
    started = tmp_path / "started"
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {started}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("x.jpg", "x.png", "x.tif"):
        (tmp_path / name).write_bytes(eps)
        with pytest.raises(UnreadableImage, match="cannot identify image file"):
            read_file(tmp_path / name)
    assert not started.exists()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_each_named_format_is_read_under_any_ending(tmp_path, form):
    picture(tmp_path / "x.jpg", form=form)
    assert (
        read_file(tmp_path / "x.jpg").float() - 77 * torch.tensor([1.0, 0, 0])[:, None, None]
    ).abs().max() <= 3


THIN = """
import resource, sys
from pathlib import Path
from ldd.data.pictures import fit_to_square, read_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
square = fit_to_square(read_file(Path(sys.argv[1])), 128)
assert square.shape == (3, 128, 128) and square.unique().tolist() == [9]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1), (3, 2_000_000)])
def test_long_thin_pictures_take_little_memory(tmp_path, size):
    """At 128 px the first one would be resized to 128 x 128,000,000 pixels."""
    Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "thin.png")
    command = [sys.executable, "-c", THIN, tmp_path / "thin.png"]
    taken = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(taken) < 150 * 1024  # KiB


def test_the_middle_of_a_thin_picture_is_kept():
    image = torch.zeros(3, 1000, 4, dtype=torch.uint8)
    image[:, 498:502] = 200
    assert fit_to_square(image, 8).unique().tolist() == [200]
    ordinary = torch.arange(60).view(1, 4, 15).expand(3, 4, 15).to(torch.uint8)
    wide = torch.nn.functional.pad(ordinary, (0, 385))  # 400 : 4 is resized whole, as ever
    assert fit_to_square(wide, 4).equal(wide[:, :, 198:202])


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for width, height in ((12_000, 10_001), (13_000, 13_000), (20_000, 20_000), (1, 2**31 - 1)):
        (tmp_path / "x.png").write_bytes(png(width, height))
        with pytest.raises(UnreadableImage, match=r"over 120 million; resize it|decompression bomb"):
            read_file(tmp_path / "x.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_what_is_no_regular_file_is_refused(tmp_path):
    root = tree(tmp_path)
    os.mkfifo(root / "train" / "apple" / "z.png")
    with pytest.raises(UnreadableImage, match=r"z\.png is not a file"):
        read_file(root / "train" / "apple" / "z.png")
    assert len(files_below(str(root / "train" / "apple"))) == 5


# The selection split of small sets


@pytest.mark.parametrize("cached", [False, True])
def test_a_class_whose_one_selection_image_is_broken_is_kept(tmp_path, cached):
    root = tree(tmp_path / "d", train=12)
    source = FolderSource(str(root))
    [held_out] = source.class_items("selection", 0)
    (root / held_out.key).write_bytes(b"no picture")
    cache = str(tmp_path / "cache") if cached else None
    data = DistillationData(
        source=FolderSource, root=str(root), image_size=4, on_error="skip", cache_dir=cache
    )
    with pytest.warns(UserWarning, match="1 unreadable images are left out"):
        data.setup()
    assert data.train_images.counts == [11, 11]
    assert data.selection_images.counts == [0, 1]
    with pytest.raises(UnreadableImage):
        DistillationData(source=FolderSource, root=str(root), image_size=4).setup()


def test_a_grey_animation_shows_its_first_picture(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    assert read_file(tmp_path / "x.jpg").unique().tolist() == [50]


def test_pixels_are_those_of_the_plain_way(tmp_path):
    """Without copies in between: the same as opening, turning and converting step by step."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 7, 4), dtype=np.uint8)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK"):
        path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
        image = Image.fromarray(noise).convert("RGB").convert(mode)
        image.save(path)
        expected = np.asarray(Image.open(path).convert("RGB"))
        assert np.array_equal(read_file(path).permute(1, 2, 0).numpy(), expected), mode
