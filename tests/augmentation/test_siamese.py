"""Siamese augmentation against its formulas, written out per pixel in float64."""

import math

import numpy as np
import pytest
import torch

from ldd.augmentation.siamese import Draws, SiameseAugmentation
from ldd.errors import UserError

NAMES = ("color", "crop", "cutout", "flip", "scale", "rotate")
SIZE = 16
EXTREMES = (0.0, 0.25, 0.49, 0.5, 0.75, 1 - 2**-24)


def bilinear(image, x, y):
    """Value of a (C, H, W) image at pixel position (x, y), zero outside."""
    value = np.zeros(len(image))
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < image.shape[1] and 0 <= j < image.shape[2]:
                value += image[:, i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return value


def resampled(image, a, b, c, d):
    """Each output pixel at (x, y) in [-1, 1] takes the value at (a x + b y, c x + d y)."""
    half = (SIZE - 1) / 2
    out = np.zeros_like(image)
    for i in range(SIZE):
        for j in range(SIZE):
            x, y = j / half - 1, i / half - 1
            out[:, i, j] = bilinear(image, (a * x + b * y + 1) * half, (c * x + d * y + 1) * half)
    return out


def color(image, u):
    image = image + (u[0] - 0.5)
    grey = image.mean(0)
    image = (image - grey) * (2 * u[1]) + grey
    return (image - image.mean()) * (u[2] + 0.5) + image.mean()


def crop(image, u):
    shift = 2  # 0.125 of 16
    down, right = (math.floor(value * 5) - shift for value in u[:2])
    padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)))
    return padded[:, shift + down : shift + down + SIZE, shift + right : shift + right + SIZE]


def cutout(image, u):
    half = 4  # the square's side is 0.5 of 16
    i, j = (math.floor(value * (SIZE + 1)) for value in u[:2])
    image = image.copy()
    image[:, max(i - half, 0) : max(i + half, 0), max(j - half, 0) : max(j + half, 0)] = 0
    return image


def flip(image, u):
    return image[:, :, ::-1] if u[0] < 0.5 else image


def scale(image, u):
    low, high = 1 / 1.2, 1.2
    return resampled(image, low + u[0] * (high - low), 0, 0, low + u[1] * (high - low))


def rotate(image, u):
    angle = (u[0] - 0.5) * 2 * 15 / 180 * math.pi
    return resampled(image, math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle))


REFERENCE = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


def some_images(n, size=SIZE, seed=0):
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draws_of(strategies, seed=0):
    """Given strategies, random numbers."""
    uniform = torch.rand(len(strategies), 3, generator=torch.Generator().manual_seed(seed))
    return Draws(torch.tensor(strategies), uniform)


@pytest.mark.parametrize("name", NAMES)
def test_operation_equals_its_formula(name):
    """Random numbers and the ends of every range; absolute error 1e-12 in float64."""
    ends = torch.cartesian_prod(*[torch.tensor(EXTREMES)] * 2).repeat_interleave(2, 0)
    ends = torch.cat([ends, torch.tensor([0.0, 1 - 2**-24]).repeat(len(ends) // 2)[:, None]], dim=1)
    uniform = torch.cat([ends, draws_of([0] * 30).uniform])
    images = some_images(len(uniform))
    result = SiameseAugmentation([name])(images, Draws(torch.zeros(len(uniform), dtype=torch.int64), uniform))
    expected = [REFERENCE[name](i, u) for i, u in zip(images.numpy(), uniform.double().numpy(), strict=True)]
    np.testing.assert_allclose(result.numpy(), np.stack(expected), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_close_to_float64(name):
    images, draws = some_images(20, 32), draws_of([0] * 20)
    augmentation = SiameseAugmentation([name])
    torch.testing.assert_close(
        augmentation(images.float(), draws).double(), augmentation(images, draws), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_keeps_its_type_and_the_positions(name, dtype):
    images, draws = some_images(4, 32).to(dtype), draws_of([0] * 4)
    augmentation = SiameseAugmentation([name])
    result = augmentation(images, draws)
    assert result.dtype == dtype
    assert torch.equal(result, augmentation(images.float(), draws).to(dtype))


def test_published_ranges():
    """Scale and rotation leave the centre; shifts reach 4 px of 32 and the square has half the side."""
    generator = torch.Generator().manual_seed(0)
    draw = SiameseAugmentation(["crop"]).draw(2000, generator, one_strategy=True)
    dot = torch.zeros(2000, 1, 32, 32)
    dot[:, :, 16, 16] = 1
    places = SiameseAugmentation(["crop"])(dot, draw).flatten(1).argmax(1)
    rows, columns = places // 32 - 16, places % 32 - 16
    assert sorted(rows.unique().tolist()) == sorted(columns.unique().tolist()) == list(range(-4, 5))
    removed = (SiameseAugmentation(["cutout"])(torch.ones(2000, 1, 32, 32), draw) == 0).flatten(1).sum(1)
    assert removed.max() == 16 * 16
    assert removed.min() == 8 * 8  # a quarter of it where the centre is in a corner
    flipped = SiameseAugmentation(["flip"])(dot, draw).flatten(1).argmax(1) != 16 * 32 + 16
    assert flipped.double().mean() == pytest.approx(0.5, abs=0.04)


def test_real_and_synthetic_of_a_class_get_the_same():
    augmentation = SiameseAugmentation()
    draws = augmentation.draw(10, torch.Generator().manual_seed(3), one_strategy=False)
    per_class = some_images(10, 32).float()
    real_labels = torch.arange(10).repeat_interleave(5)
    labels = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    real = augmentation(per_class[real_labels], draws[real_labels])
    synthetic = augmentation(per_class[labels], draws[labels])
    assert len(set(draws.strategy.tolist())) > 1
    for label, image in zip(labels.tolist(), synthetic, strict=True):
        for same_class in real[real_labels == label]:
            assert torch.equal(same_class, image)


def test_mixed_strategies_equal_each_image_alone():
    augmentation = SiameseAugmentation()
    strategies = [5, 0, 3, 2, 2, 1, 4, 0, 5]
    images, draws = some_images(len(strategies)), draws_of(strategies)
    together = augmentation(images, draws)
    for index, (strategy, image) in enumerate(zip(strategies, images, strict=True)):
        expected = REFERENCE[NAMES[strategy]](image.numpy(), draws.uniform[index].double().numpy())
        np.testing.assert_allclose(together[index].numpy(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_twice(name):
    """Finite differences of value and gradient; squared, so that the second derivative is not zero."""
    images = some_images(2, 6).requires_grad_()
    augmentation, draws = SiameseAugmentation([name]), draws_of([0, 0])

    def squared(x):
        return augmentation(x, draws).square()

    assert torch.autograd.gradcheck(squared, images, atol=1e-6)
    assert torch.autograd.gradgradcheck(squared, images, atol=1e-6)


def test_mixed_strategies_are_differentiable():
    images = some_images(6, 6).requires_grad_()
    draws = draws_of([3, 1, 0, 5, 4, 2])
    assert torch.autograd.gradcheck(lambda x: SiameseAugmentation()(x, draws), images, atol=1e-6)


def test_nothing_on_the_images_device_is_waited_for():
    """On the meta device any read of a value by the host raises."""
    augmentation = SiameseAugmentation()
    draws = draws_of([5, 0, 3, 2, 1, 4, 4])
    images = torch.empty(7, 3, 32, 32, device="meta", requires_grad=True)
    augmentation(images, draws).sum().backward()
    assert images.grad.shape == images.shape


def test_draws_follow_from_the_generator():
    augmentation = SiameseAugmentation()

    def draw(seed, one_strategy):
        return augmentation.draw(600, torch.Generator().manual_seed(seed), one_strategy=one_strategy)

    for one_strategy in (False, True):
        first, again, other = (draw(seed, one_strategy) for seed in (1, 1, 2))
        assert torch.equal(first.strategy, again.strategy)
        assert torch.equal(first.uniform, again.uniform)
        assert not torch.equal(first.uniform, other.uniform)
        assert len(first.uniform.unique(dim=0)) == 600
    assert set(draw(1, False).strategy.tolist()) == set(range(6))
    assert {len(set(draw(seed, True).strategy.tolist())) for seed in range(5)} == {1}
    assert {draw(seed, True).strategy[0].item() for seed in range(60)} == set(range(6))


def test_no_strategies_leave_images_alone():
    augmentation = SiameseAugmentation([])
    images = some_images(4)
    draws = augmentation.draw(4, torch.Generator(), one_strategy=False)
    assert torch.equal(augmentation(images, draws), images)


def test_unknown_strategies_are_refused_with_the_choices():
    with pytest.raises(
        UserError, match="augmentation: unknown 'blur'; choose from color, crop, cutout, flip, scale, rotate"
    ):
        SiameseAugmentation(["flip", "blur"])
    with pytest.raises(UserError, match=r"augmentation is the text 'flip'; give a list, as in \['flip'\]"):
        SiameseAugmentation("flip")
