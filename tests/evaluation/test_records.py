"""Students that were tested are found again, by all that their accuracy follows from and by nothing else."""

import importlib
import linecache
import sys
from functools import partial

import pytest
import torch
from small_world import NARROW, SmallData, protocol_content, protocol_file, small_set

from ldd.evaluation import Protocol, RandomReal, evaluate
from ldd.networks import ConvNet, Network, ViT
from ldd.students.training import Lesson

WIDER = partial(ConvNet, width=5, depth=2)


@pytest.fixture
def trained(monkeypatch):
    """(set, network, repeat) of each student that is trained."""
    names, run = [], Lesson.run

    def counted(self, student, *arguments):
        names.append((student.set, student.network, student.repeat))
        return run(self, student, *arguments)

    monkeypatch.setattr(Lesson, "run", counted)
    return names


@pytest.fixture
def call(tmp_path):
    """`evaluate` with records; accuracies of all rows."""
    protocol = Protocol.load(protocol_file(tmp_path))

    def evaluated(distilled=None, networks=None, **settings):
        settings = {"protocol": protocol, "repeats": 2, "baselines": [RandomReal()]} | settings
        settings = {"num_workers": 1, "progress": False, "records": tmp_path / "evaluated"} | settings
        networks = networks or {"narrow": NARROW, "wider": WIDER}
        report = evaluate(distilled or small_set(), networks, SmallData(), **settings)
        return [(row.set, row.network, row.repeat, row.accuracy, row.seconds) for row in report.rows]

    return evaluated


def accuracies(rows):
    return [row[:4] for row in rows]


def test_a_second_evaluation_trains_nobody(call, trained, tmp_path):
    first = call()
    assert len(trained) == 8
    assert call() == first  # the seconds too
    assert call(baselines=[]) == first[:4]
    assert len(trained) == 8
    assert len(list((tmp_path / "evaluated").iterdir())) == 1
    assert accuracies(call(records=None)) == accuracies(first)


def test_the_same_images_under_two_names_train_once(call, trained):
    rows = call(initial=small_set(), baselines=[])
    assert trained == [("distilled", name, repeat) for name in ("narrow", "wider") for repeat in (0, 1)]
    assert [row[1:] for row in rows[:4]] == [row[1:] for row in rows[4:]]
    assert [row[0] for row in rows] == ["distilled"] * 4 + ["initial"] * 4
    assert accuracies(rows) == accuracies(call(initial=small_set(), baselines=[], records=None))
    assert len(trained) == 4 + 8


def test_a_killed_evaluation_goes_on_where_it_was(call, trained, monkeypatch):
    expected = accuracies(call(records=None))
    trained.clear()
    with monkeypatch.context() as patch:
        run = Lesson.run

        def killed(self, student, *arguments):
            if len(trained) == 3:
                raise KeyboardInterrupt
            return run(self, student, *arguments)

        patch.setattr(Lesson, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            call()
    before = list(trained)
    assert accuracies(call()) == expected
    assert len(set(trained)) == len(trained) == 8
    assert trained[:3] == before


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"distilled": small_set(seed=4)}, 4),  # random real images stay
        ({"seed": 1}, 8),
        ({"repeats": 3}, 4),
        ({"networks": {"narrow": partial(ConvNet, width=4, depth=2, norm="batch"), "wider": WIDER}}, 4),
        ({"networks": {"renamed": NARROW, "wider": WIDER}}, 4),
    ],
    ids=["set", "seed", "repeats", "network", "name"],
)
def test_what_changes_is_trained_anew(call, trained, change, again):
    call()
    trained.clear()
    call(**change)
    assert len(trained) == again


class Dimmed(Network):
    """Its dropout acts in training alone, and shows nowhere."""

    def __init__(self, num_classes, image_size, share):
        super().__init__()
        self.share = share
        self.inner = NARROW(num_classes, image_size)

    def embed(self, x):
        return torch.nn.functional.dropout(self.inner.embed(x), self.share, self.training)

    def forward(self, x):
        return self.inner.classifier(self.embed(x))


@pytest.mark.parametrize(
    "network",
    [lambda n: partial(ViT, dim=8, depth=1, heads=n), lambda n: partial(Dimmed, share=n / 10)],
    ids=["ViT", "own"],
)
def test_other_arguments_of_a_network_are_trained_anew(call, trained, network):
    call(networks={"net": network(4)})
    call(networks={"net": network(4)})
    assert len(trained) == 4
    call(networks={"net": network(8)})
    assert len(trained) == 8


def test_code_in_any_file_of_a_network_counts(call, trained, tmp_path, monkeypatch):
    """Its blocks may be from another file than the network."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for number, text in enumerate(("", "", "# other code")):
        (tmp_path / "blocks_of_a_user.py").write_text(
            f"from torch import nn\nclass Block(nn.ReLU):\n    ...\n{text}\n"
        )
        monkeypatch.delitem(sys.modules, "blocks_of_a_user", raising=False)
        linecache.clearcache()
        block = importlib.import_module("blocks_of_a_user").Block

        def made(classes, size, block=block):
            network = NARROW(classes, size)
            network.add_module("unused", block())
            return network

        call(networks={"net": made})
        assert len(trained) == 4 * (1 + number // 2)


def test_another_protocol_or_precision_is_evaluated_anew(call, trained, tmp_path):
    call()
    (tmp_path / "other").mkdir()
    call(protocol=Protocol.load(protocol_file(tmp_path / "other", lr=protocol_content()["lr"] / 2)))
    assert len(trained) == 16
    torch.set_float32_matmul_precision("high")
    try:
        call()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(trained) == 24


def test_a_damaged_record_is_trained_again(call, trained, tmp_path):
    expected = accuracies(call())
    (path,) = (tmp_path / "evaluated").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=r"is damaged .* computed again"):
        assert accuracies(call()) == expected
    assert len(trained) == 16
