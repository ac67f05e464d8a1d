"""A set as a torch data set, and real images made like its own."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_set import full_set, random_images, tiny_set

from ldd.data.pictures import fit_to_square
from ldd.images import DataSpec, to_unit_range


@pytest.mark.parametrize("normalise", [False, True])
def test_real_images_are_made_like_those_of_the_set(normalise):
    """A set's own image, read as a picture, is what its data set gives; others are resized as a run resizes them."""
    distilled = full_set()
    dataset, transform = distilled.as_dataset(normalise=normalise), distilled.test_transform(normalise)
    spec = DataSpec(distilled.classes, 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "")
    for row, (image, label) in enumerate(dataset):
        pixels = distilled.images[row]
        expected = spec.normalise(to_unit_range(pixels)) if normalise else pixels / 127.5 - 1
        assert torch.allclose(image, expected, atol=1e-6)
        assert label == distilled.labels[row]
        assert torch.equal(transform(Image.fromarray(pixels.permute(1, 2, 0).numpy())), image)
    photo = torch.cat([random_images(1, 40)[0], random_images(1, 40, seed=1)[0]], 2)
    square = to_unit_range(fit_to_square(photo, 8))
    assert torch.equal(transform(photo), spec.normalise(square) if normalise else square)


def test_a_grey_picture_becomes_rgb():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert tiny_set().test_transform()(grey).shape == (3, 8, 8)


def test_a_transform_of_ones_own_comes_last():
    seen = []
    dataset = full_set().as_dataset(transform=lambda image: seen.append(image) or "done", normalise=True)
    assert dataset[2] == ("done", int(dataset.targets[2]))
    assert torch.equal(seen[0], full_set().as_dataset(normalise=True)[2][0])
    loader = torch.utils.data.DataLoader(full_set().as_dataset(), batch_size=3)
    assert [batch.shape for batch, _ in loader] == [(3, 3, 8, 8)] * 2


def test_a_set_shows_itself():
    distilled = full_set()
    line = repr(distilled)
    assert line.startswith("DistilledSet(6 images of 3 classes, 2 per class, 8 x 8 px, ")
    assert line.endswith("soft labels, weights, codes, decoder)")
    assert len(line) < 200
    assert distilled.show().size[0] > 3 * 64
    html = distilled._repr_html_()
    assert html.startswith('<img src="data:image/png;base64,')
    assert line in html
