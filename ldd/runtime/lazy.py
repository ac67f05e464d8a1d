"""Packages whose names are imported when first asked for, so that a process pays only for what it uses."""

import importlib
from collections.abc import Callable, Mapping, Sequence


def attach(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """A package's `__getattr__` (PEP 562).

    Args:
        package: its name.
        homes: module -> the names that it defines and the package offers.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home_of[name]), name)

    return __getattr__
