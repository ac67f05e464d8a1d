"""A file imports from lower layers or its own package; the public names are what `ldd` says."""

import ast
import importlib
from pathlib import Path

import pytest

import ldd

ROOT = Path(ldd.__file__).parent
LAYERS = [
    "lazy errors classes cores seeding files sharing ranks store parent memory memory_plans".split()  # noqa: SIM905
    + "preview manifest contents networks priors augment views distilled".split()  # noqa: SIM905
    + "storage soft_labels formats ledger".split(),  # noqa: SIM905
    "codes trajectories quirks".split()  # noqa: SIM905
    + [f"data.{name}" for name in ("sources", "subsets", "cache", "real", "decoding", "folders", "imagenet")]
    + ["data.pruning.classifier", "data.pruning.preprocessing"],
    "objectives data evaluation sampling importers".split(),  # noqa: SIM905
    ["initializers"],
    "distiller description step experts expert_costs charges".split(),  # noqa: SIM905
    "callbacks federation cli".split(),  # noqa: SIM905
    ["report"],
    "commands".split(),  # noqa: SIM905
    ["__main__"],
]


def layer_of(module: str) -> int:
    """The longest matching prefix decides (`data.real` before `data`)."""
    name = module.removeprefix("ldd").lstrip(".")
    matches = [
        (len(prefix), level)
        for level, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if name == prefix or name.startswith(prefix + ".")
    ]
    assert matches, f"{module} has no layer"
    return max(matches)[1]


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ldd":
            found |= {node.module} if node.module != "ldd" else {f"ldd.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("ldd.")}
    return {module for module in found if not module.endswith("__version__")}


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    module = "ldd." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    package = module.split(".")[1]
    upward = ("ldd.distiller.step", "ldd.distiller.record", "ldd.distiller.record")
    type_only = {"ldd.distiller.module"} if module in upward else set()  # under TYPE_CHECKING
    for imported in imports_of(path) - type_only:
        same = imported.split(".")[1] == package
        assert (
            same
            or layer_of(imported) < layer_of(module)
            or (layer_of(imported) == layer_of(module) and layer_of(module) in (0, 4))
        ), f"{module} imports {imported}"


def test_public_names():
    declared = imports_of_type_checking()
    assert declared == set(ldd.__all__)
    for name in ldd.__all__:
        assert getattr(ldd, name).__module__.startswith("ldd.") or name == "NetworkFactory"


def imports_of_type_checking() -> set[str]:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {alias.asname for node in block.body for alias in node.names}


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'Distillator'"):
        ldd.Distillator  # noqa: B018


def test_every_module_imports():
    for path in FILES:
        if path.name != "__main__.py":
            importlib.import_module(".".join(path.relative_to(ROOT.parent).with_suffix("").parts))
