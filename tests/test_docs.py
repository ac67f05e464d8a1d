"""Docs, recipes and docstrings name only modules, names and files that are there."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "configs").rglob("*.yaml")),
    *sorted((ROOT / "ldd").rglob("*.py")),
    *sorted((ROOT / "ldd").rglob("*.yaml")),
]
DOTTED = re.compile(r"(?<![\w./-])ldd(?:\.[A-Za-z_]\w*)+")
FILES = re.compile(r"(?<![\w./-])(?:ldd|configs|tests|docs|benchmarks|cluster|docker)/[\w./-]*[\w/]")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_there(page):
    text = page.read_text()
    for name in sorted(set(DOTTED.findall(text))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{name}: {error}")
    if page.suffix == ".md":
        for name in sorted(set(FILES.findall(text))):
            assert (ROOT / name).exists(), name


BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_use_what_is_there(name):
    """Each imports; what it takes from the package it names as the package does."""
    importlib.import_module(f"benchmarks.{name}")
