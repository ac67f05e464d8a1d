"""Classes by dotted name: checked before they are used, and imported only where the user named them."""

import importlib
import re
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any

from ldd.errors import UserError

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.[A-Z]\w*", re.ASCII)


def dotted_name(kind: type) -> str:
    """Return where a class is defined, e.g. `ldd.networks.vgg.VGG11`."""
    return f"{kind.__module__}.{kind.__qualname__}"


def canonical(class_path: str) -> str:
    """Return where a class is defined, given any name it goes by; unchanged where nothing imported so far has it."""
    found = loaded_class(class_path, object)
    return class_path if found is None else dotted_name(found)


def loaded_class(name: str, base: type[Any]) -> type[Any] | None:
    """Return the subclass of `base` of a dotted name; None where no module imported so far holds it.

    For names in the files of others: nothing is imported or called.
    """
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        found: object = sys.modules.get(".".join(parts[:length]))
        if found is None:
            continue
        for part in parts[length:]:
            with suppress(Exception):  # of modules that look up their attributes
                found = getattr(found, part) if isinstance(found, ModuleType | type) else None
                continue
            return None
        return found if isinstance(found, type) and issubclass(found, base) else None
    return None


def imported_class(name: str, base: type[Any]) -> type[Any] | None:
    """Return the same, its module imported where it is not yet; None for what does not look like a class's name.

    For names that the user typed.
    """
    if not _NAME.fullmatch(name):
        return None
    found = loaded_class(name, base)
    if found is None:
        importlib.import_module(name.rpartition(".")[0])
        found = loaded_class(name, base)
    return found


def check_text(name: str, text: str, kind: Any) -> None:  # noqa: ANN401 - a type of any form
    """Raise for text that was meant as a list or a mapping: a command line that takes `kind` or text could not read it.

    Raises:
        UserError: why it could not be read, under the setting's `name`.
    """
    if not text.lstrip().startswith(("[", "{")):
        return
    from jsonargparse import ArgumentError, ArgumentParser  # here: worker processes import this file

    key = name.rpartition(".")[2]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{key}", type=kind)
    try:
        parser.parse_args([f"--{key}={text}"])
    except ArgumentError as error:
        why = " ".join(
            line.strip() for line in str(error).removeprefix(f'Parser key "{key}":').splitlines()
        ).strip()
        raise UserError(f"{name}: {why}") from error
    raise UserError(f"{name} ({text}) is text; give what is written in it")
