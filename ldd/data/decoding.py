"""From image files to squares of bytes: every oddity of real files is settled here, once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from ldd.cores import available_cores
from ldd.data.sources import Item, Source, UnreadableImage
from ldd.errors import UserError

RECIPE = "1: RGB, upright; short side resized (bilinear, antialiased, on bytes); centre cropped"
"""What `read_file` and `fit_to_square` do; its number rises whenever the same file would give other pixels."""

OnError = Literal["raise", "skip"]
"""What an unreadable image does: end the run with its path, or stay out, reported."""

_LISTED = 10  # unreadable images spelt out in a message
_AT_ONCE = 32  # images per thread between two writes, so that decoding never runs far ahead of the disk
_SHOW_PROGRESS_FROM = 2000  # images: some seconds


@dataclass(frozen=True)
class LeftOut:
    """An image that could not be read.

    Attributes:
        key: its name.
        reason: what the decoder said.
    """

    key: str
    reason: str


def read_file(path: Path) -> Tensor:
    """One image file as (3, h, w) uint8 RGB, at its native size and upright.

    Grey, palette and CMYK images are converted, transparency is dropped (as torchvision's `ImageFolder` does), of
    an animation the first picture is taken. JPEG is decoded at full size: the decoder's own downscaling ("draft") is
    a quarter faster and moves pixels by 2.5 grey levels on average (from 160 to 64 px).

    Raises:
        UnreadableImage: damaged, truncated, no image, or more than 8 bits per grey value.
    """
    try:
        return _decode(path)
    except UnreadableImage:
        raise
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        raise UnreadableImage(
            f"cannot read image {path}: {error}; repair it or remove it from the folder, or leave out such "
            "images with data.on_error: skip"
        ) from error


def _decode(path: Path) -> Tensor:
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would clip these to white without a word
            raise UnreadableImage(
                f"{path} has more than 8 bits per channel; convert it to 8 bits, or leave out such images with "
                "data.on_error: skip"
            )
        upright = ImageOps.exif_transpose(image)
        if "transparency" in upright.info:
            upright = upright.convert("RGBA")  # the way Pillow wants palettes with transparency taken
        pixels: Tensor = pil_to_tensor(upright.convert("RGB"))
        return pixels


def fit_to_square(image: Tensor, size: int) -> Tensor:
    """(3, h, w) uint8 -> (3, size, size): short side resized (bilinear, antialiased), centre cropped."""
    resized = resize(image, [size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    square: Tensor = center_crop(resized, [size, size])
    return square


def decode_all(
    source: Source,
    items: Sequence[Item],
    size: int,
    sink: Callable[[NDArray[np.uint8]], object],
    on_error: OnError,
) -> tuple[list[Item], list[LeftOut]]:
    """Decode `items` with all CPUs and hand each image, (3, size, size) uint8, to `sink` in their order.

    Returns:
        The items that could be read, and those that could not (with `on_error` "skip").

    Raises:
        UnreadableImage: one cannot be read, and `on_error` is "raise".
        UserError: none of a class can be read.
    """

    def decode(item: Item) -> NDArray[np.uint8] | LeftOut:
        try:
            square = fit_to_square(source.read(item), size)
        except UnreadableImage as error:
            if on_error == "raise":
                raise
            return LeftOut(item.key, str(error))
        # Copied by numpy: each of these threads would start a whole team of torch's own.
        return np.ascontiguousarray(square.numpy())

    kept, left_out = [], []
    threads = available_cores()
    shown = len(items) >= _SHOW_PROGRESS_FROM and getattr(rank_zero_only, "rank", 0) == 0
    shown = shown and get_console().is_terminal
    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not shown) as bar, ThreadPoolExecutor(threads) as pool:
        task = bar.add_task("", total=len(items))
        for start in range(0, len(items), _AT_ONCE * threads):
            chunk = items[start : start + _AT_ONCE * threads]
            for item, image in zip(chunk, pool.map(decode, chunk), strict=True):
                if isinstance(image, LeftOut):
                    left_out.append(image)
                else:
                    sink(image)
                    kept.append(item)
            bar.advance(task, len(chunk))
    for label in sorted({item.label for item in items} - {item.label for item in kept}):
        raise UserError(
            f"class {source.classes[label].wnid!r} is left without images: none of its files can be read, e.g. "
            f"{_first_of_class(items, left_out, label)}"
        )
    return kept, left_out


def _first_of_class(items: Sequence[Item], left_out: Sequence[LeftOut], label: int) -> str:
    keys = {item.key for item in items if item.label == label}
    return next(entry.reason for entry in left_out if entry.key in keys)


def report_left_out(left_out: Sequence[LeftOut], on_error: OnError, hint: str = "") -> None:
    """Say how many images were left out, and which.

    Raises:
        UnreadableImage: there are some, and `on_error` is "raise".
    """
    if not left_out:
        return
    if on_error == "raise":
        raise UnreadableImage(left_out[0].reason + hint)
    listed = "".join(f"\n  {entry.key}: {entry.reason}" for entry in left_out[:_LISTED])
    more = f"\n  and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
    rank_zero_warn(f"{len(left_out)} unreadable images are left out{hint}:{listed}{more}")
