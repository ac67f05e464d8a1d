"""Names of classes: what others wrote imports and calls nothing, what the user typed is checked before it is used."""

import sys

import pytest
from small_world import protocol_file, small_set

from ldd.errors import UserError
from ldd.evaluation.baselines.base import Baseline
from ldd.evaluation.baselines.equal import baselines_by_name
from ldd.networks import ConvNet
from ldd.networks.base import Network, find_network
from ldd.runtime.classes import canonical, imported_class, loaded_class
from ldd.students.protocol import Protocol

TRAP = """
from pathlib import Path
Path({mark!r}).touch()
from ldd.networks.base import Network
class Net(Network):
    embed = forward = None
def run():
    raise SystemExit(0)
"""
NAMES = (
    "trap", "trap:run", "trap.run", "trap.Net", "trap:Net", "this", "os.abort", "sys.exit", "antigravity.X",
    "trap.__doc__", "ldd.__main__.X", "ldd.networks.__path__", "ldd.networks.nothing.Net", "", ".", "..", "a..b", "é.X",
    "x" * 10_000,
)  # fmt: skip


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A module that could be imported, and the file that then appears."""
    (tmp_path / "trap.py").write_text(TRAP.format(mark=str(tmp_path / "imported")))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "imported"
    sys.modules.pop("trap", None)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_others_import_nothing(mark, tmp_path, name):
    before = set(sys.modules)
    assert loaded_class(name, object) is None
    assert canonical(name) == name
    with pytest.raises(UserError, match="network"):
        find_network(name)
    if name.startswith("ldd.networks."):
        with pytest.raises(UserError, match=r"protocol small: network_lr .* must name networks"):
            Protocol.load(protocol_file(tmp_path, network_lr={name: 0.1}))
    rates = {} if name.startswith("ldd.networks.") else {name: 0.1}
    content = {"networks": {"net": {"class_path": name}}, "network_lr": rates}
    protocol = Protocol.load(protocol_file(tmp_path, **content))
    assert protocol.peak_lr(ConvNet) == protocol.lr
    with pytest.raises(UserError, match="network"):
        protocol.factories()
    assert not mark.exists()
    assert {
        found for found in set(sys.modules) - before if not found.startswith(("ldd.", "encodings."))
    } == set()


def test_seen_networks_of_a_set_import_nothing(mark):
    made = small_set(seen_networks=list(NAMES[:5]))
    assert list(map(canonical, made.manifest.seen_networks)) == list(NAMES[:5])
    assert not mark.exists()


def test_what_is_imported_already_may_be_named(mark):
    import trap

    assert find_network("trap.Net") is trap.Net
    assert canonical("trap.Net") == "trap.Net"
    with pytest.raises(UserError, match="not a subclass"):
        find_network("pathlib.Path")


@pytest.mark.parametrize("name", ["trap:run", "trap.run", "trap", "os.abort", "sys.exit", "this"])
def test_typed_names_that_are_no_classes_are_not_imported(mark, name):
    with pytest.raises(UserError, match=r"baselines: .* is unknown"):
        baselines_by_name(name)
    assert not mark.exists()


def test_typed_classes_are_imported_and_checked(mark):
    assert imported_class("trap.Net", Baseline) is None
    assert mark.exists()
    assert imported_class("trap.Net", Network) is sys.modules["trap"].Net
    assert imported_class("ldd.evaluation.FullReal", Baseline).name == "full_real"
    with pytest.raises(ImportError):
        imported_class("nowhere.Net", Network)
