"""Pictures: which image stands where, and what is left out."""

import pytest
import torch
from PIL import Image
from tiny_set import classes_of, random_images
from torchvision.transforms.v2.functional import pil_to_tensor

from ldd.artefact.picture import HEADER, MARGIN, draw_curve, draw_grid


def grid(num_classes, images_per_class, size=32):
    labels = torch.arange(num_classes).repeat_interleave(images_per_class)
    images = random_images(len(labels), size)
    return images, draw_grid(images, labels, classes_of([f"c{i}" for i in range(num_classes)]))


@pytest.mark.parametrize(("size", "cell"), [(32, 64), (64, 64), (96, 96), (24, 72)])
def test_one_column_a_class(size, cell):
    images, picture = grid(3, 2, size)
    assert picture.size == (3 * (cell + MARGIN) + MARGIN, HEADER + 2 * (cell + MARGIN) + MARGIN)
    pixels, factor = pil_to_tensor(picture), cell // size
    for label in range(3):
        left = MARGIN + label * (cell + MARGIN)
        assert (pixels[:, MARGIN : MARGIN + HEADER, left : left + cell] < 128).any()  # the name, in black
        for place in range(2):
            top = MARGIN + HEADER + place * (cell + MARGIN)
            found = pixels[:, top : top + cell : factor, left : left + cell : factor]
            assert torch.equal(found, images[2 * label + place])


def test_large_images_are_reduced():
    assert grid(1, 1, 300)[1].size == (128 + 2 * MARGIN, HEADER + 128 + 2 * MARGIN)


@pytest.mark.parametrize(
    ("num_classes", "images_per_class", "columns", "bands", "rows", "cut"),
    [
        (10, 1, 10, 1, 1, 0),
        (10, 10, 10, 1, 10, 0),
        (200, 1, 20, 10, 1, 0),
        (10, 50, 10, 1, 10, 1),
        (100, 10, 20, 5, 4, 1),
        (500, 3, 20, 20, 1, 1),
    ],
)
def test_sizes(num_classes, images_per_class, columns, bands, rows, cut):
    _, picture = grid(num_classes, images_per_class, 8)
    step = 64 + MARGIN
    assert picture.size == (columns * step + MARGIN, bands * (HEADER + rows * step) + cut * HEADER + MARGIN)


def test_any_order_and_uneven_classes():
    images = random_images(4, 64)
    picture = draw_grid(images, torch.tensor([1, 0, 1, 1]), classes_of("ab"))
    pixels, step = pil_to_tensor(picture), 64 + MARGIN
    top, left = MARGIN + HEADER, MARGIN
    assert torch.equal(pixels[:, top : top + 64, left : left + 64], images[1])
    assert (pixels[:, top + step : top + step + 64, left : left + 64] == 255).all()
    assert torch.equal(
        pixels[:, top + 2 * step : top + 2 * step + 64, left + step : left + step + 64], images[3]
    )


@pytest.mark.parametrize("name", ["", "two\nlines", "a" * 1000, "日本 ünï 🐞", "\ud800"], ids=ascii)
def test_any_name(name):
    plain = draw_grid(random_images(1), torch.tensor([0]), classes_of(["a"]))
    assert draw_grid(random_images(1), torch.tensor([0]), classes_of([name])).size == plain.size


def test_curve():
    falling = draw_curve([3.0, 2.0, 1.0])
    assert falling.mode == "RGB"
    assert falling.size == (600, 350)
    assert falling.tobytes() == draw_curve([3.0, 2.0, 1.0]).tobytes()
    assert falling.tobytes() != draw_curve([3.0, 2.0, 2.5]).tobytes()
    assert isinstance(draw_curve([1.0]), Image.Image)
