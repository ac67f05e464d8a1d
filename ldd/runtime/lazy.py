"""Packages whose names are imported when they are first asked for: a process pays only for what it uses."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path


def attach(package: str, file: str) -> tuple[list[str], Callable[[str], object]]:
    """Return `__all__` and `__getattr__` (PEP 562) of a package whose `__init__.pyi` names what it offers.

    Type checkers read the same stub, so each public name stands in one place.

    Args:
        package: name of the package.
        file: its `__init__.py`; the stub next to it holds lines `from HOME import NAME as NAME`.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    home_of = {
        alias.name: str(node.module)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def __getattr__(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home_of[name]), name)

    return sorted(home_of), __getattr__
