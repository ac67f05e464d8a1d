"""Where a distilled set lies: its files, and the names of sets in the package and on a data-set hub."""

from pathlib import Path

from ldd.disk.hub import fetch, is_address, plain_copy
from ldd.disk.shipped import IN_PACKAGE, embedded_folder
from ldd.disk.stores import fetched, is_url
from ldd.errors import UserError

MANIFEST = "manifest.json"
IMAGES = "images.safetensors"
OPTIONAL = {"codes": "codes.safetensors", "decoder": "decoder.safetensors"}
PREVIEW = "preview.png"
FOLDER = "distilled"
"""Of the set, in the folder of a run, and in a repository."""

EMBEDDED = Path(__file__).parent / "embedded"
"""Runs whose sets are in the package."""


def is_name(path: Path | str) -> bool:
    """Tell whether a set lies in the package, on a hub or in a store, where nothing is written next to it."""
    return str(path).startswith(IN_PACKAGE) or is_address(path) or is_url(path)


def located(path: Path | str, argument: str = "path") -> Path:
    """Return the folder that a path, `embedded:NAME` (in the package), `hf://user/name[@revision]` or a URL names.

    A repository is one that `latentdd export --push-to-hub` has filled. Its set is fetched and lies then in the cache.

    Args:
        path: as typed.
        argument: that has this value, for messages.

    Raises:
        UserError: no such name, no such repository, or one without a set.
    """
    name = str(path)
    if name.startswith(IN_PACKAGE):
        return embedded_folder(name, EMBEDDED, f"{FOLDER}/{MANIFEST}", argument, "set")
    if is_address(name):
        files = [f"{FOLDER}/{file}" for file in (MANIFEST, IMAGES, *OPTIONAL.values(), PREVIEW)]
        return plain_copy(fetch(name, "dataset", files, argument), name, argument)
    return fetched(name, argument) if is_url(name) else Path(path)


def refuse_name(path: Path | str) -> None:
    """Raise where results would be written next to a set that is not in a folder of the user's."""
    if is_name(path):
        place = "in the package" if str(path).startswith(IN_PACKAGE) else "on another machine"
        raise UserError(f"out: {path} is {place}, where nothing is written; name a folder with --out")
