"""The house: a room imports rooms below it, no modules import each other, files and functions stay short."""

import ast
import importlib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import ldd

ROOT = Path(ldd.__file__).parent
FLOORS = """
    errors images
    runtime disk imagenet augmentation
    networks codes priors artefact
    data importers
    experts students prior_training
    objectives labels
    initializers evaluation
    distiller
    callbacks
    runs
    federation sweeps planning report prior_comparison
    commands
    cli __main__
""".split()  # noqa: SIM905 - as in the tree: a room imports itself and those before it
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
LAZY = {name for name, path in MODULES.items() if path.with_suffix(".pyi").is_file()}


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(module):
    """Modules that a module imports, wherever it does: at its top, in a function, for its types only."""
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            if node.module.split(".")[0] == "ldd":
                yield from (home(node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ldd")


@cache
def home(module, name):
    """The module that `from module import name` reads, through the stub of a lazy package."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    for node in tree(MODULES[module].with_suffix(".pyi")).body if module in LAZY else ():
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return home(node.module, name)
    return module


def room(module):
    return module.split(".")[1]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "ldd"])
def test_imports_point_down(module):
    for imported in set(imports(module)) - {"ldd"}:  # `ldd` itself: its version
        own = room(imported) == room(module)
        assert own or FLOORS.index(room(imported)) < FLOORS.index(room(module)), imported


def test_no_modules_import_each_other():
    reached = {module: set(imports(module)) - LAZY for module in MODULES}
    for between in reached:  # Warshall's closure
        for onward in reached.values():
            onward |= reached[between] if between in onward else set()
    circle = {module for module, onward in reached.items() if module in onward}
    assert not circle


def test_at_most_nine_files_at_the_root():
    assert len(list(ROOT.glob("*.py"))) <= 9


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_no_family_of_names_stands_for_a_folder():
    for folder in {path.parent for path in MODULES.values()}:
        words = Counter(path.stem.split("_")[0] for path in folder.glob("[a-z]*.py"))
        assert max(words.values(), default=1) < 3, folder


def test_public_names():
    for package in map(importlib.import_module, LAZY):
        assert package.__all__
        for name in package.__all__:
            assert hasattr(package, name), name


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'Distillator'"):
        ldd.Distillator  # noqa: B018


def test_every_module_imports():
    for module in MODULES:
        if module != "ldd.__main__":
            importlib.import_module(module)
