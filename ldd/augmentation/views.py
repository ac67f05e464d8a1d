"""Random views of images in [0, 1], every image its own, a whole batch at a time.

Hard- and soft-label protocols train on them instead of siamese augmentation. torchvision's transforms draw one set of
parameters for a batch or loop over images; here numbers are drawn on the CPU, from one generator, and applied to the
batch on its device. The tests compare each operation with torchvision's for the same parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.runtime.precision import without_autocast
from ldd.runtime.seeding import seeded

_STRENGTHS = 30  # the largest of RandAugment
_TRIES = 10  # boxes drawn before the whole image is taken, as torchvision does
_MIN_RATIO, _MAX_RATIO = 3 / 4, 4 / 3  # of a crop's width to its height
_GREY = (0.299, 0.587, 0.114)  # weights of the channels (ITU-R 601)

# Of ImageNet's colours in [0, 1] (Krizhevsky et al., 2012, as released code has them).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True)
class Views:
    """Random changes of each image, in this order: RandAugment, shuffled patches, crop and resize, mirror, colours.

    Attributes:
        patches: number of columns and of rows that the image is cut into; 1 leaves it whole. Each image has a random
            order of its columns and one of its rows (RDED, arXiv 2312.03526, released code).
        crop_scale: smallest and largest share of the image's area that a crop keeps; null: no crop. The ratio of width
            to height is drawn from 3/4 to 4/3, uniformly in its logarithm; the crop is resized back bilinearly.
        flip: mirror left to right with probability 1/2.
        jitter: largest change of brightness, contrast and saturation, in random order: a step towards black, the mean
            grey or the image's own grey, or away from it (released IDC code).
        lighting: standard deviation of the shift along the principal components of ImageNet's colours.
        rand_augment: number of operations and their strength from 0 to 30 of RandAugment (Cubuk et al., arXiv
            1909.13719), torchvision's own, one image after the other; null: none.

    Raises:
        UserError: a number out of range.
    """

    patches: int = 1
    crop_scale: tuple[float, float] | None = None
    flip: bool = False
    jitter: float = 0.0
    lighting: float = 0.0
    rand_augment: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_at_least(1, "views", patches=self.patches)
        check_not_negative("views", jitter=self.jitter, lighting=self.lighting)
        if self.rand_augment is not None:
            operations, strength = self.rand_augment
            if operations < 1 or not 0 <= strength <= _STRENGTHS:
                raise UserError(
                    f"views.rand_augment ({list(self.rand_augment)}) must be a number of operations from 1 on, and a "
                    f"strength from 0 to {_STRENGTHS}"
                )
        if self.crop_scale is not None:
            low, high = self.crop_scale
            if not 0 < low <= high <= 1:
                raise UserError(
                    f"views.crop_scale ({list(self.crop_scale)}) must be two shares of the area, 0 < low <= high <= 1"
                )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return views of images (n, 3, H, W) float in [0, 1], drawn on the CPU; colours may leave that range."""
        n, _, height, width = images.shape
        if self.rand_augment is not None:
            seeds = torch.randint(2**62, (n,), generator=generator)
            images = rand_augment(images, self.rand_augment, seeds)
        if self.patches > 1:
            orders = [
                torch.rand(n, self.patches, generator=generator).argsort(1).to(images.device)
                for _ in range(2)
            ]
            images = shuffle_patches(images, *orders)
        if self.crop_scale is not None:
            boxes = draw_boxes(n, height, width, self.crop_scale, generator)
            images = resized_crop(images, boxes.to(images.device))
        if self.flip:
            mirrored = torch.rand(n, generator=generator).to(images.device) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        if self.jitter:
            steps = (torch.rand(3, n, generator=generator) * 2 - 1) * self.jitter
            order = torch.rand(3, n, generator=generator).argsort(0)
            for now in order:
                for number, change in enumerate(_JITTERS):  # a step of 0 leaves an image as it is
                    images = change(images, torch.where(now == number, steps[number], 0).to(images))
        if self.lighting:
            shifts = torch.randn(n, 3, generator=generator) * self.lighting
            images = images + light(shifts).to(images).view(n, 3, 1, 1)
        return images


def rand_augment(images: Tensor, settings: tuple[int, int], seeds: Tensor) -> Tensor:
    """Return images (n, 3, H, W) in [0, 1] after torchvision's RandAugment on their bytes, each drawn from its seed."""
    from torchvision.transforms.v2 import (
        RandAugment,
    )  # here: no other view needs it, and workers start without

    change, made = RandAugment(*settings, num_magnitude_bins=_STRENGTHS + 1), []
    for image, seed in zip((images * 255).round().byte(), seeds.tolist(), strict=True):
        with seeded(seed):
            made.append(change(image))
    return torch.stack(made).to(images) / 255


def shuffle_patches(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Put the columns, then the rows of an even grid into another order: (n, p) int64, the old place of each."""
    for axis, order in ((3, columns), (2, rows)):
        size, count = images.shape[axis], order.shape[1]
        bounds = [size // count * place for place in range(count)] + [size]
        sizes = torch.tensor(bounds, device=order.device).diff()
        starts = torch.tensor(bounds[:-1], device=order.device)
        widths, begins = sizes[order], starts[order]
        # Position q of the new axis lies in the patch whose end is the first beyond it.
        ends = widths.cumsum(1)
        q = torch.arange(size, device=order.device)
        patch = torch.searchsorted(ends, q.expand(len(order), -1).contiguous(), right=True)
        source = begins.gather(1, patch) + q - (ends - widths).gather(1, patch)
        shape = [len(images), 1, 1, 1]
        shape[axis] = size
        images = images.gather(axis, source.view(shape).expand_as(images))
    return images


def draw_boxes(
    n: int, height: int, width: int, scale: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw crops (n, 4) int64: top, left, height and width, as torchvision's RandomResizedCrop does."""
    area = height * width * torch.empty(n, _TRIES).uniform_(*scale, generator=generator)
    ratio = torch.empty(n, _TRIES).uniform_(math.log(_MIN_RATIO), math.log(_MAX_RATIO), generator=generator)
    places = torch.rand(n, 2, generator=generator)
    ratio = ratio.exp()
    sizes = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], 2).long()
    limits = torch.tensor([height, width])
    fits = ((sizes > 0) & (sizes <= limits)).all(2)
    first = fits.int().argmax(1)  # 0 where none fits: replaced below
    chosen = sizes[torch.arange(n), first]
    corner = (places * (limits - chosen + 1)).floor().long()
    whole = _central_box(height, width)
    return torch.where(fits.any(1)[:, None], torch.cat([corner, chosen], 1), whole)


def _central_box(height: int, width: int) -> Tensor:
    if width / height < _MIN_RATIO:
        box = (round(width / _MIN_RATIO), width)
    elif width / height > _MAX_RATIO:
        box = (height, round(height * _MAX_RATIO))
    else:
        box = (height, width)
    return torch.tensor([(height - box[0]) // 2, (width - box[1]) // 2, *box])


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Resize each image's box (n, 4) to the image's own size, bilinearly; a crop is smaller, so nothing is aliased."""
    height, width = images.shape[2:]
    positions = []
    for axis, size in ((0, height), (1, width)):
        start, extent = boxes[:, axis, None], boxes[:, axis + 2, None]
        places = torch.arange(size, device=images.device, dtype=images.dtype) + 0.5
        steps = places * extent / size - 0.5
        inside = torch.minimum(steps.clamp(min=0), extent - 1) + start
        positions.append((inside + 0.5) * 2 / size - 1)
    rows, columns = positions
    n = len(images)
    grid = torch.stack(
        [columns[:, None].expand(n, height, width), rows[:, :, None].expand(n, height, width)], 3
    ).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor(_GREY, device=images.device, dtype=images.dtype)
    return (images * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def brighten(images: Tensor, steps: Tensor) -> Tensor:
    """Move a share `steps` (n,) of the way to black."""
    return images * (1 - steps).view(-1, 1, 1, 1)


def soften(images: Tensor, steps: Tensor) -> Tensor:
    """Move a share `steps` (n,) of the way to the image's mean grey: contrast."""
    return images.lerp(_grey(images).mean((1, 2, 3), keepdim=True), steps.view(-1, 1, 1, 1))


def desaturate(images: Tensor, steps: Tensor) -> Tensor:
    """Move a share `steps` (n,) of the way to the image in grey: saturation."""
    return images.lerp(_grey(images).expand_as(images), steps.view(-1, 1, 1, 1))


_JITTERS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brighten, soften, desaturate)


@without_autocast()
def light(shifts: Tensor) -> Tensor:
    """Return the colours (n, 3) of shifts (n, 3) along the principal components, each scaled by its eigenvalue."""
    return (shifts * torch.tensor(_EIGENVALUES)) @ torch.tensor(_EIGENVECTORS).T


def cutmix(
    images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace a box of each image by the same box of another image of the batch (CutMix, arXiv 1905.04899).

    The box has the share 1 - lambda of the area, with lambda from Beta(alpha, alpha), and a centre anywhere, so the
    border may cut it; targets (n, K) are mixed in proportion to the areas.
    """
    height, width = images.shape[2:]
    kept = _beta(alpha, generator)
    centre = [int(torch.randint(size, (), generator=generator)) for size in (height, width)]
    half = [int(size * math.sqrt(1 - kept)) // 2 for size in (height, width)]
    (top, bottom), (left, right) = (
        (max(0, middle - reach), min(size, middle + reach))
        for middle, reach, size in zip(centre, half, (height, width), strict=True)
    )
    other = torch.randperm(len(images), generator=generator).to(images.device)
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    share = (bottom - top) * (right - left) / (height * width)
    return images, targets.lerp(targets[other], share)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Return a draw of Beta(alpha, alpha), as a ratio of two Gamma draws."""
    # torch draws Gamma from a generator only through this operation; its distributions take the global one.
    first, second = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator)
    return float(first / (first + second))
