"""What is in the package, found by name from anywhere: recipes, components, and the priors and sets `embedded:NAME`."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ldd
from ldd.disk.stores import fetched, is_url
from ldd.errors import UserError

IN_PACKAGE = "embedded:"
"""How the name of a prior or a set in the package begins."""

_SUFFIXES = (".yaml", ".yml")
_OF_RECIPES = ("config", "c", "base")
"""Options that name a recipe; any other takes components of a folder that is called like its last part."""


def configs_folder() -> Path:
    """Return where the shipped files are: inside an installed package, next to it in a checkout."""
    package = Path(ldd.__file__).parent
    return next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())


def shipped_names() -> list[str]:
    """Return the names of all shipped files: `quickstart`, `ablations/steps`, ..."""
    root = configs_folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def shipped_file(value: str, option: str) -> Path | None:
    """Return the shipped file that an option's value names; None where it names none, or a file that is here.

    The value is `configs/data/digits.yaml`, `data/digits.yaml`, `data/digits`, or, after `--data`, `digits`.
    """
    last = option.lstrip("-").rpartition(".")[2]
    stem = value.removeprefix("configs/")
    suffix = next(filter(stem.endswith, _SUFFIXES), "")
    parts = stem.removesuffix(suffix).split("/")
    if not all(part.replace("_", "").isalnum() for part in parts) or len(parts) > 2 or os.path.isfile(value):
        return None
    root = configs_folder()
    of_option = (root / last).is_dir()
    if not (suffix or of_option or last in _OF_RECIPES):
        return None
    file = Path(*parts).with_suffix(".yaml")
    return next((place for place in (root / last / file, root / file) if os.path.isfile(place)), None)


def with_shipped_files(words: Iterable[str]) -> list[str]:
    """Return a command's words with the path of each shipped file in the place of its name; `--out` names none.

    A recipe at a URL is fetched.
    """
    found, option = list[str](), ""
    for word in words:
        if word.startswith("-"):
            option, equals, value = word.partition("=")
        else:
            equals, value = "", word
        file = None
        if option == "--config" and is_url(value):
            file = fetched(value, option)
        elif value and option and option != "--out":
            file = shipped_file(value, option)
        found.append(word if file is None else f"{option}={file}" if equals else str(file))
        option = option if word.startswith("-") and not equals else ""
    return found


def with_shipped_settings(settings: Any, option: str = "") -> Any:  # noqa: ANN401 - any YAML
    """Return a recipe's settings with the path of each shipped file in the place of its name."""
    if isinstance(settings, dict):
        return {key: with_shipped_settings(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, str) and option:
        file = shipped_file(settings, option)
        return settings if file is None else str(file)
    return settings


def near(word: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    """Return a question that proposes the known word most like `word` (at least `cutoff`, of 0 to 1), or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {found[0]}?" if found else ""


def near_files(value: str) -> str:
    """Return a question that proposes the file whose name is nearest, here and in the package, or nothing."""
    folder = Path(value).parent
    here = [str(path) for path in folder.iterdir() if path.suffix in _SUFFIXES] if folder.is_dir() else []
    suffix = next(filter(value.endswith, _SUFFIXES), "")
    shipped = [name + suffix for name in shipped_names()]
    return near(value.removeprefix("configs/"), (*here, *shipped))


def embedded_folder(name: str, root: Path, mark: str, argument: str, kind: str) -> Path:
    """Return the folder in the package that `embedded:NAME` names.

    Args:
        name: as typed.
        root: where all of this kind lie, each in a folder of its own.
        mark: path of a file that each of them has.
        argument: that has this value, for the message.
        kind: of what is named, for the message.

    Raises:
        UserError: nothing is called so; the message lists all names and proposes the nearest.
    """
    known = [IN_PACKAGE + path.name for path in sorted(root.iterdir()) if (path / mark).is_file()]
    if name not in known:
        raise UserError(
            f"{argument}={name!r}: no such {kind} in the package; embedded {kind}s: {', '.join(known) or 'none'}"
            f"{near(name, known)}"
        )
    return root / name.removeprefix(IN_PACKAGE)
