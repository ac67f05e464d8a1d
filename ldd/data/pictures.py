"""Pictures in folders: which folders and files are data, and how a file becomes pixels, whoever made it."""

import os
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from unicodedata import category

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldd.data.sources import UnreadableImage
from ldd.errors import UserError
from ldd.images import SUFFIXES, ClassInfo

# Decoders that are part of Pillow. Others would read a file of such a name too: EPS starts Ghostscript from the PATH.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# What systems keep with the data; hidden folders (.ipynb_checkpoints, .thumbnails, .Trash) are left out by their dot.
_SYSTEM = {
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
}
_MOST_PIXELS = 120_000_000  # of a picture: 0.9 GiB while it is decoded
_THIN = 100  # long side by short side from which a picture is cropped before it is resized
_LONGEST = 255  # bytes of a class's name
_CURE = "or leave out such images with data.on_error: skip"


def is_data(name: str) -> bool:
    """Tell whether a file or folder of this name is the user's: neither hidden nor the system's."""
    return not name.startswith(".") and name not in _SYSTEM


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder` that hold data, sorted; links to folders count."""
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry.stat() for entry in entries if is_data(entry.name) and entry.is_dir()}
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; name a folder of class folders") from error
    names = sorted(found)
    check_text(names, folder)
    places: dict[tuple[int, int], str] = {}
    for name in names:
        other = places.setdefault((found[name].st_dev, found[name].st_ino), name)
        if other != name:
            raise UserError(
                f"{folder / other} and {folder / name} are one folder (a link); remove one of them"
            )
    return names


def picture_files(folder: str) -> list[str]:
    """Return the paths of all pictures below a folder as text, sorted: path objects cost ten times the system call."""
    return sorted(path for path in files_below(folder) if path.lower().endswith(SUFFIXES))


def files_below(folder: str) -> list[str]:
    """Return the paths of all files below a folder that are data, in any order.

    A folder to which several links lead is listed once, under its own path where that lies below `folder`.
    """
    seen: set[tuple[int, int]] = set()
    found: list[str] = []
    waiting = [folder]
    while waiting:
        links: list[str] = []
        for start in sorted(waiting):
            for parent, folders, names in os.walk(start, onerror=_refuse_folder):
                status = os.stat(parent)
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                folders[:] = filter(is_data, folders)
                links += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
                found += [os.path.join(parent, name) for name in names if is_data(name)]
        waiting = links  # after all that lies here itself
    check_text(found, Path(folder))
    return found


def _refuse_folder(error: OSError) -> None:
    """Raise where `os.walk` would take a class folder that it cannot list for an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise UserError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error


def check_text(names: Iterable[str], folder: Path) -> None:
    """Raise for a name that is not UTF-8 on disk: it can be neither stored nor shown."""
    for name in names:
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            raise UserError(
                f"a name in {folder} is not UTF-8: {os.fsencode(name)!r}; rename it (convmv -r --notest -f latin1 -t "
                f"utf8 {folder} does so for names of older systems)"
            )


def check_class_names(classes: Sequence[ClassInfo], place: Path) -> None:
    """Raise for class names that no table could show: control characters, or longer than 255 bytes."""
    for info in classes:
        for name in (info.wnid, info.name):
            if any(category(c) in ("Cc", "Cs") for c in name):
                raise UserError(f"class name {name!r} in {place} holds control characters; rename it")
            if len(name.encode()) > _LONGEST:
                raise UserError(
                    f"class name {name[:40]!r}... in {place} has over {_LONGEST} bytes; shorten it"
                )
        if abs(info.id) >= 2**63:
            raise UserError(
                f"id {info.id} of class {info.wnid!r} in {place} does not fit into 64 bits; give another"
            )


def read_file(path: Path) -> Tensor:
    """Read one image file as (3, h, w) uint8 RGB, at its native size and upright.

    Grey, palette and CMYK images are converted, transparency is dropped (as torchvision's `ImageFolder` does), of
    an animation the first picture is taken. JPEG is decoded at full size: the decoder's own downscaling ("draft") is
    a quarter faster and moves pixels by 2.5 grey levels on average (from 160 to 64 px).
    """
    if path.exists() and not path.is_file():
        raise UnreadableImage(f"{path} is not a file; remove it from the folder, {_CURE}")
    return _read(path, str(path))


def read_bytes(content: bytes, name: str) -> Tensor:
    """Read an encoded image as `read_file` does; `name` is for messages."""
    return _read(BytesIO(content), name)


def _read(source: Path | BytesIO, name: str) -> Tensor:
    try:
        return _decode(source, name)
    except UnreadableImage:
        raise
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        raise UnreadableImage(
            f"cannot read image {name}: {error}; repair it or remove it from the folder, {_CURE}"
        ) from error


def _decode(source: Path | BytesIO, name: str) -> Tensor:
    with Image.open(source, formats=_FORMATS) as image:
        if _is_deep(image):  # Pillow would clip grey ones to white and cut colours to 8 bits, without a word
            raise UnreadableImage(f"{name} has more than 8 bits per channel; convert it to 8 bits, {_CURE}")
        if image.width * image.height > _MOST_PIXELS:
            raise UnreadableImage(
                f"{name} has {image.width} x {image.height} px, over {_MOST_PIXELS / 1e6:g} million; resize it, {_CURE}"
            )
        ImageOps.exif_transpose(image, in_place=True)
        upright: Image.Image = image
        if "transparency" in upright.info:
            upright = upright.convert("RGBA")  # the way Pillow wants palettes with transparency taken
        pixels = np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)


def _is_deep(image: Image.Image) -> bool:
    """Tell from the header whether a channel has more than 8 bits."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "TIFF":
        bits: tuple[int, ...] = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]  # BitsPerSample
        return max(bits) > 8
    arguments = [tile[3] for tile in getattr(image, "tile", [])]
    if image.format == "PNG":
        return any(";16" in str(mode) for mode in arguments)
    if image.format == "PPM":
        return any(isinstance(of, tuple) and isinstance(of[-1], int) and of[-1] > 255 for of in arguments)
    return False


def fit_to_square(image: Tensor, size: int) -> Tensor:
    """Return (3, h, w) uint8 as (3, size, size): short side resized (bilinear, antialiased), centre cropped."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import center_crop, resize

    short, long = sorted(image.shape[1:])
    if long > _THIN * short:  # resized whole it would be size x (size x long / short)
        image = center_crop(image, [short, short])
    resized = resize(image, [size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    square: Tensor = center_crop(resized, [size, size])
    return square
