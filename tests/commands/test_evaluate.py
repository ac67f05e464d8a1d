"""`latentdd evaluate` and `latentdd train` as functions."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_world import NARROW, SIZE, SPEC, SmallData, protocol_file, small_set, striped

from ldd.commands.evaluate import evaluate
from ldd.commands.train import train
from ldd.errors import UserError
from ldd.evaluation import Report
from ldd.images import to_unit_range
from ldd.networks import ConvNet


@pytest.fixture
def artefact(tmp_path):
    return small_set(2).save(tmp_path / "run" / "distilled")


@pytest.fixture
def compare(tmp_path, artefact):
    def call(path=artefact, **settings):
        evaluate(
            str(path),
            SmallData(),
            str(tmp_path / "out"),
            **{"protocol": protocol_file(tmp_path, epochs=2), "repeats": 1, "num_workers": 1}
            | {"baselines": "random_real,full_real"}
            | settings,
        )
        return Report.read(tmp_path / "out")

    return call


def test_evaluate_an_artefact_or_its_run(compare, tmp_path, capsys):
    small_set(2, seed=8).save(tmp_path / "run" / "initial")
    by_artefact = compare()
    assert [r.set for r in by_artefact.rows] == ["distilled", "initial", "random_real", "full_real"]
    assert "random_real" in capsys.readouterr().out
    by_run = compare(tmp_path / "run")
    assert [(r.set, r.accuracy) for r in by_run.rows] == [(r.set, r.accuracy) for r in by_artefact.rows]
    with pytest.raises(
        UserError, match=r"holds the results of another distilled set of step 0 .* another folder"
    ):
        compare(tmp_path / "run" / "initial")
    assert Report.read(tmp_path / "out") == by_run


def test_another_set_of_another_step_stands_beside_the_first(compare, tmp_path):
    first = compare(baselines="")
    later = small_set(2, seed=4).with_facts(step=7)
    both = compare(later.save(tmp_path / "later"), baselines="")
    assert [row.step for row in both.rows] == [0, 7]
    assert both.rows[0] == first.rows[0]
    assert len(both.facts["sets"]) == 2
    with pytest.raises(UserError, match="another distilled set of step 0"):
        compare(small_set(2, seed=5).save(tmp_path / "other"), baselines="")


def test_a_set_is_tested_beside_its_own_data_only(compare, tmp_path):
    """Both fingerprints are shown; on purpose it may be tested elsewhere."""
    path = small_set(2, test_split_fingerprint="e" * 32).save(tmp_path / "elsewhere")
    text = (
        f"made with the test split {'e' * 32}, and --data has the test split {'f' * 32}: .* --other_data true"
    )
    with pytest.raises(UserError, match=text):
        compare(path, baselines="")
    assert not (tmp_path / "out").exists()
    assert [row.set for row in compare(path, baselines="", other_data=True).rows] == ["distilled"]
    own = small_set(2, test_split_fingerprint=SPEC.fingerprint).save(tmp_path / "own")
    assert compare(own, baselines="").rows  # the same images and labels


def test_evaluate_with_chosen_networks_and_baselines(compare):
    report = compare(networks={"mine": NARROW}, baselines="random_real")
    assert [(r.set, r.network) for r in report.rows] == [("distilled", "mine"), ("random_real", "mine")]


def test_evaluate_refuses_an_unwritable_folder_before_any_work(compare, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("a file")
    monkeypatch.setattr("ldd.commands.evaluate.compare", None)
    with pytest.raises(UserError, match=r"out \(.*\): .*; choose a writable folder"):
        compare()


def test_evaluate_refuses_a_folder_without_a_set(compare, tmp_path):
    with pytest.raises(UserError, match="empty"):
        compare(tmp_path / "empty")


def test_train_saves_what_can_be_rebuilt(artefact, tmp_path, capsys):
    out = tmp_path / "models" / "net.safetensors"
    network = partial(ConvNet, width=4, depth=2)
    train(
        str(artefact), network, str(out), protocol=protocol_file(tmp_path, augmentations=[]), data=SmallData()
    )
    printed = capsys.readouterr().out
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata["class_path"] == "ldd.networks.convnet.ConvNet"
    rebuilt = ConvNet(
        int(metadata["num_classes"]), int(metadata["image_size"]), **json.loads(metadata["init_args"])
    )
    rebuilt.load_state_dict(state)
    assert json.loads(metadata["mean"]) == list(SPEC.mean)
    assert [c["name"] for c in json.loads(metadata["classes"])] == ["red", "green", "blue"]
    assert int(metadata["image_size"]) == SIZE
    images, labels = striped(10, 2)
    correct = (
        (rebuilt.eval()(SPEC.normalise(to_unit_range(images))).argmax(1) == labels).float().mean().item()
    )
    assert f"accuracy on 30 test images: {100 * correct:.1f} %" in printed


def test_train_refuses_labels_without_use_and_test_images_of_others(artefact, tmp_path):
    out = str(tmp_path / "net.safetensors")
    with pytest.raises(UserError, match="small takes the labels of the set"):
        train(str(artefact), NARROW, out, protocol=protocol_file(tmp_path), labels=object(), data=SmallData())
    other = SmallData()
    other.spec = replace(SPEC, fingerprint="e" * 32)
    known = small_set(test_split_fingerprint="f" * 32).save(tmp_path / "known")
    with pytest.raises(UserError, match=r"was made with the test split f+"):
        train(str(known), NARROW, out, protocol=protocol_file(tmp_path), data=other)
    assert not (tmp_path / "net.safetensors").exists()


def test_train_is_repeatable(artefact, tmp_path):
    protocol = protocol_file(tmp_path)
    for name in ("a", "b"):
        torch.manual_seed(len(name))
        train(str(artefact), NARROW, str(tmp_path / f"{name}.safetensors"), protocol=protocol)
    train(str(artefact), NARROW, str(tmp_path / "c.safetensors"), protocol=protocol, seed=1)
    # The library writes metadata in no fixed order, so tensors are compared rather than bytes.
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_train_refuses_another_kind_of_file(artefact, tmp_path):
    with pytest.raises(UserError, match=r"out \(net.pt\) must name a file that ends in .safetensors"):
        train(str(artefact), NARROW, "net.pt")
