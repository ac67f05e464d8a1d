"""Views against torchvision's own operations with the same parameters, and by the numbers that are drawn."""

import math

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from ldd.augmentation.views import (
    Views,
    brighten,
    cutmix,
    desaturate,
    draw_boxes,
    light,
    resized_crop,
    shuffle_patches,
    soften,
)
from ldd.errors import UserError
from ldd.runtime.seeding import generator, seeded


@pytest.fixture
def images():
    return torch.rand(6, 3, 33, 40, generator=generator(0), dtype=torch.float64)


def test_resized_crop_is_torchvisions(images):
    boxes = draw_boxes(6, 33, 40, (0.1, 1.0), generator(1))
    cropped = resized_crop(images, boxes)
    for image, box, found in zip(images, boxes.tolist(), cropped, strict=True):
        expected = tv.resized_crop(image, *box, size=[33, 40], antialias=False)
        assert (found - expected).abs().max() < 1e-9
    assert len({tuple(box) for box in boxes.tolist()}) == 6


def test_boxes_are_distributed_as_torchvisions():
    """Means and spreads of 4,000 boxes against as many of RandomResizedCrop, within 4 standard errors."""
    ours = draw_boxes(4000, 64, 48, (0.3, 1.0), generator(2)).double()
    crop, image = v2.RandomResizedCrop(8, scale=(0.3, 1.0)), torch.zeros(3, 64, 48)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [crop.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in drawn]).double()
    error = (ours.var(0) / 4000 + theirs.var(0) / 4000).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.08)
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor([64, 48])).all()


def test_a_box_that_never_fits_is_the_central_one():
    assert draw_boxes(3, 16, 64, (1.0, 1.0), generator(0)).tolist() == [[0, 21, 16, 21]] * 3


def test_colours_are_torchvisions(images):
    """torchvision clamps to [0, 1], so the images are kept away from the border."""
    images, steps = images * 0.4 + 0.3, torch.linspace(-0.4, 0.4, 6, dtype=torch.float64)
    operations = ((brighten, tv.adjust_brightness), (soften, tv.adjust_contrast))
    for ours, theirs in (*operations, (desaturate, tv.adjust_saturation)):
        found = ours(images, steps)
        for image, step, one in zip(images, steps.tolist(), found, strict=True):
            # torchvision's grey has weights that sum to 0.9999 (0.2989, 0.587, 0.114)
            assert (one - theirs(image, 1 - step)).abs().max() < 2e-4


def test_light():
    shift = light(torch.tensor([[1.0, 0, 0], [0, 0, 2.0]]))
    first = torch.tensor([-0.5675, -0.5808, -0.5836]) * 0.2175
    last = torch.tensor([0.4009, -0.8140, 0.4203]) * 0.0045 * 2
    assert (shift - torch.stack([first, last])).abs().max() < 1e-7


@pytest.mark.parametrize("size", [8, 9])
def test_patches_by_a_loop(size):
    images = torch.rand(4, 3, size, size, generator=generator(3))
    columns, rows = (torch.rand(4, 2, generator=generator(s)).argsort(1) for s in (4, 5))
    found = shuffle_patches(images, columns, rows)
    for image, order, down, one in zip(images, columns.tolist(), rows.tolist(), found, strict=True):
        half = size // 2
        parts = [image[..., :half], image[..., half:]]
        turned = torch.cat([parts[i] for i in order], -1)
        parts = [turned[:, :half], turned[:, half:]]
        assert torch.equal(one, torch.cat([parts[i] for i in down], 1))
    assert not torch.equal(found, images)


def test_cutmix_by_a_loop():
    """Each pixel comes from the image or its partner, and the targets say how many from which."""
    n = 5
    images = torch.arange(n).view(n, 1, 1, 1).expand(n, 3, 16, 12).float()
    shares = []
    for draw in range(40):
        mixed, targets = cutmix(images, torch.eye(n), 1.0, generator(draw))
        for own, (image, target) in enumerate(zip(mixed, targets, strict=True)):
            counts = torch.bincount(image[0].long().flatten(), minlength=n) / (16 * 12)
            assert (counts - target).abs().max() < 1e-6
            assert torch.equal(image[0], image[2])
            shares.append(float(target[own]))
    assert min(shares) < 0.5
    assert max(shares) == 1
    assert torch.equal(images[3], torch.full_like(images[3], 3)), "the batch itself is left as it is"


def test_beta_draws():
    from ldd.augmentation.views import _beta

    draws = torch.tensor([_beta(0.5, generator(i)) for i in range(2000)])
    assert draws.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(0.125 / 2000))
    assert draws.var().item() == pytest.approx(0.125, abs=0.01)  # 1 / (4 (2 alpha + 1))


def test_views_follow_from_the_generator(images):
    views = Views(patches=2, crop_scale=(0.5, 1.0), flip=True, jitter=0.4, lighting=0.1)
    first = views(images.float(), generator(7))
    assert torch.equal(first, views(images.float(), generator(7)))
    assert not torch.equal(first, views(images.float(), generator(8)))
    assert first.shape == images.shape
    assert torch.equal(Views()(images, generator(7)), images)
    mirrored = Views(flip=True)(images, generator(1))
    kinds = [torch.equal(a, b) for a, b in zip(mirrored, images, strict=True)]
    assert True in kinds
    assert False in kinds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patches": 0}, r"views.patches \(0\) must be at least 1"),
        ({"crop_scale": (0.6, 0.5)}, r"views.crop_scale \(\[0.6, 0.5\]\) must be two shares"),
        ({"crop_scale": (0.0, 0.5)}, "views.crop_scale"),
        ({"jitter": -1.0}, r"views.jitter \(-1.0\) must be a number of 0 or more"),
        ({"lighting": math.nan}, "views.lighting"),
    ],
)
def test_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        Views(**settings)


def test_rand_augment_is_torchvisions_one_image_after_the_other():
    """The same operations for the same state of torch's generator, on bytes; images do not depend on their batch."""
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    images = (images * 255).round() / 255
    views = Views(rand_augment=(2, 9))
    found = views(images, torch.Generator().manual_seed(7))
    seeds = torch.randint(2**62, (5,), generator=torch.Generator().manual_seed(7))
    state = torch.random.get_rng_state()
    for image, seed, made in zip(images, seeds.tolist(), found, strict=True):
        with seeded(seed):
            wanted = v2.RandAugment(2, 9)((image * 255).round().byte())
        assert (made - wanted.float() / 255).abs().max() < 1e-6
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(found, images)
    for wrong in ((0, 6), (1, 31)):
        with pytest.raises(
            UserError, match=r"views.rand_augment \(\[\d+, \d+\]\) must be a number of operations"
        ):
            Views(rand_augment=wrong)
