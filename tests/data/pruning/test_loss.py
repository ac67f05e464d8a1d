"""Scoring by a pre-trained classifier: against a plain loop, cached by contents, resumed after a kill."""

import logging
import os
import re
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from pruning_cases import NoiseSource, class_infos, spec_of, write_folder
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.transforms import v2

from ldd.data import FolderSource, Subset
from ldd.data.pruning import LossPruner, TablePruner, base, scoring
from ldd.data.pruning.base import hash_items
from ldd.data.pruning.scoring import losses_and_margins
from ldd.disk.table import Store
from ldd.errors import UserError
from ldd.imagenet import tables as imagenet
from ldd.images import ClassInfo
from ldd.networks.pretrained import Classifier, class_outputs
from ldd.runtime import progress
from ldd.runtime.seeding import seeded

SHARED = Path(os.environ.get("LDD_SHARED", "../shared"))
ROUNDING = 1e-3  # batch norms are folded; float32 on logits of about 10
SMALL = {"classifier": "mobilenet_v3_small", "resize": 36, "crop": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of a three-way classifier, with batch statistics of the images it is to see."""
    with seeded(0):
        network = get_model("mobilenet_v3_small", num_classes=3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # plain average
    source = NoiseSource(10, 10, 10, size=32)
    with torch.no_grad():
        network(torch.stack([source.read(item) for item in source.items("train")]) / 127.5 - 1)
        network.classifier[-1].weight.mul_(0.1)
    folder = tmp_path_factory.mktemp("weights")
    save_file(network.state_dict(), folder / "small.safetensors")
    torch.save(network.state_dict(), folder / "small.pt")
    return folder


@pytest.fixture
def pruner(weights, tmp_path):
    return LossPruner(
        0.5, weights=str(weights / "small.safetensors"), cache_dir=str(tmp_path / "cache"), **SMALL
    )


@pytest.fixture
def counted(monkeypatch):
    """Number of images that went through a network."""
    seen = []
    measure = scoring.Scorer.measure

    def count(self, pixels, targets, filled):
        seen.extend(targets)
        return measure(self, pixels, targets, filled)

    monkeypatch.setattr(scoring.Scorer, "measure", count)
    return seen


def score(pruner, source, items=None):
    return pruner.score(source, items or source.items("train"), spec_of(source), seed=0)


@pytest.mark.parametrize("resize", [36, (40, 32)])
def test_losses_equal_a_plain_loop(weights, resize):
    source = NoiseSource(5, 4, 3, size=50)
    options = {**SMALL, "resize": resize, "batch_size": 5, "precision": "float32"}
    table = score(LossPruner(0.5, weights=str(weights / "small.pt"), cache_dir=None, **options), source)
    network = get_model("mobilenet_v3_small", num_classes=3)
    network.load_state_dict(torch.load(weights / "small.pt", weights_only=True))
    steps = [v2.Resize(resize), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*steps, v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    for row, item in enumerate(source.items("train")):
        logits = network.eval()(transform(source.read(item))[None])
        expected = F.cross_entropy(logits, torch.tensor([item.label])).item()
        others = max(value for label, value in enumerate(logits[0].tolist()) if label != item.label)
        assert table.values[row] == pytest.approx(expected, abs=ROUNDING)
        assert table.rows["margin"][row].as_py() == pytest.approx(
            logits[0, item.label].item() - others, abs=ROUNDING
        )
    assert table.values.std() > 0.1


def test_margin_and_loss_of_known_logits():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    found = losses_and_margins(logits, torch.tensor([0, 0]))
    expected = torch.tensor([[0.126928, 2.0], [3.048587, -3.0]], dtype=torch.float64)
    assert (found - expected).abs().max() < 1e-6


def test_both_kinds_of_files_give_the_same(weights, pruner):
    source = NoiseSource(2, 2, 2)
    other = LossPruner(0.5, weights=str(weights / "small.pt"), cache_dir=None, **SMALL)
    assert score(pruner, source).rows["loss"].equals(score(other, source).rows["loss"])


def test_a_second_run_on_moved_and_renamed_data_scores_nothing(pruner, counted, tmp_path):
    root = write_folder(tmp_path / "here", {"a": 4, "b": 3, "c": 4})
    first = score(pruner, FolderSource(str(root)))
    assert len(counted) == len(first)
    shutil.move(root, tmp_path / "there")
    again = score(pruner, FolderSource(str(tmp_path / "there")))
    assert len(counted) == len(first)
    assert again.rows.equals(first.rows)
    assert again.fingerprint == first.fingerprint


def test_a_changed_image_is_scored_anew_and_alone(pruner, counted, tmp_path):
    root = write_folder(tmp_path / "data", {"a": 4, "b": 3, "c": 4})
    source = FolderSource(str(root))
    first = score(pruner, source)
    before = len(counted)
    changed = source.items("train")[2].key
    shutil.copyfile(root / "val" / "a" / "a_1.png", root / changed)
    again = score(pruner, source)
    assert len(counted) == before + 1
    assert again.fingerprint != first.fingerprint
    differ = [a != b for a, b in zip(first.rows["sha256"], again.rows["sha256"], strict=True)]
    assert [path for path, other in zip(first.paths, differ, strict=True) if other] == [changed]


def test_a_subset_and_other_preprocessing_know_what_is_theirs(weights, counted, tmp_path):
    root = str(write_folder(tmp_path / "data", {"a": 2, "b": 2, "c": 2}))
    cache = str(tmp_path / "cache")
    options = {"weights": str(weights / "small.safetensors"), "cache_dir": cache}
    score(LossPruner(0.5, **options, **SMALL), FolderSource(root))
    done = len(counted)
    score(LossPruner(0.5, **options, **SMALL), Subset(FolderSource(root), ["c", "a"]))
    assert len(counted) == done
    score(LossPruner(0.5, **options, **{**SMALL, "resize": 40}), FolderSource(root))
    assert len(counted) == 2 * done


def test_a_killed_run_goes_on_where_it_was(pruner, counted, monkeypatch):
    source = NoiseSource(20, 20, 20)
    expected = score(LossPruner(0.5, weights=pruner.classifier.weights, cache_dir=None, **SMALL), source)
    counted.clear()
    monkeypatch.setattr(base, "_SAVE_EVERY", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    saves = []
    add = Store.add

    def killed(store, keys, **columns):
        if len(saves) >= 2:  # as if the process were gone: nothing is written any more
            raise SystemExit(137)
        add(store, keys, **columns)
        if "loss" in columns:
            saves.append(len(keys))

    monkeypatch.setattr(Store, "add", killed)
    with pytest.raises(SystemExit):
        score(pruner, source)
    assert saves == [16, 16]
    monkeypatch.setattr(Store, "add", add)
    counted.clear()
    assert score(pruner, source).rows.equals(expected.rows)
    assert len(counted) == 60 - 32
    folders = [folder for folder in pruner.cache_dir.iterdir() if folder.name != "hashes"]
    assert len(list(folders[0].glob("*.parquet"))) == 1  # merged


def test_an_unreadable_image_is_named_and_nothing_is_lost(pruner, counted, tmp_path):
    root = write_folder(tmp_path / "data", {"a": 12, "b": 12, "c": 12})
    source = FolderSource(str(root))
    broken = root / source.items("train")[-1].key
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    with pytest.raises(UserError, match=f"cannot read image {broken}"):
        score(pruner, source)
    assert len(counted) >= 16
    broken.write_bytes(whole)
    score(pruner, source)
    assert len(counted) == len(source.items("train"))


def test_the_speed_is_reported(pruner, monkeypatch, caplog):
    monkeypatch.setattr(progress, "_MANY_IMAGES", 5)
    with caplog.at_level(logging.INFO):
        score(pruner, NoiseSource(2, 2, 2))
    assert re.search(r"scoring images: 6 in \d+ s \([0-9.]+ images/s\)", caplog.text)


def test_a_damaged_cache_is_computed_again(pruner, counted, tmp_path):
    source = NoiseSource(3, 3, 3)
    first = score(pruner, source)
    for file in pruner.cache_dir.rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="is damaged .* what it held is computed again"):
        again = score(pruner, source)
    assert again.rows.equals(first.rows)
    assert len(counted) == 18


def test_a_cache_that_cannot_be_written_is_an_error(weights, tmp_path):
    (tmp_path / "file").write_text("")
    pruner = LossPruner(
        0.5, weights=str(weights / "small.pt"), cache_dir=str(tmp_path / "file" / "x"), **SMALL
    )
    with pytest.raises(UserError, match=r"cannot write .*file"):
        score(pruner, NoiseSource(2, 2, 2))


def test_outputs_of_imagenet_of_own_classes_and_of_subsets():
    wnids = ["n02102040", "n01440764"]
    nette = [ClassInfo(i, imagenet.indices()[w], w, w) for i, w in enumerate(wnids)]
    assert class_outputs(nette, 1000, "x").tolist() == [217, 0]
    assert class_outputs(class_infos(3), 3, "x").tolist() == [0, 1, 2]
    some = [ClassInfo(0, 7, "c7", "c7"), ClassInfo(1, 2, "c2", "c2")]
    assert class_outputs(some, 10, "x").tolist() == [7, 2]
    with pytest.raises(
        UserError, match=r"classifier x has 1000 outputs and the data 2 classes, e\.g\. 'c7' is not an Im"
    ):
        class_outputs(some, 1000, "x")
    with pytest.raises(
        UserError, match="classifier x has 10 outputs and the data 2 classes: which is which cannot be"
    ):
        class_outputs(nette, 10, "x")


def test_settings_come_from_the_published_weights():
    own = Classifier("resnet50", "IMAGENET1K_V2").preprocessing(None, None, None, None)
    assert (own.resize, own.crop, own.mean) == (232, 224, (0.485, 0.456, 0.406))
    assert LossPruner(0.5).preprocessing.resize == 256
    squashed = LossPruner(0.5, resize=(224, 224)).preprocessing
    assert str(squashed).startswith(
        "resize 224x224 (bilinear, antialiased, on bytes), centre crop 224, mean [0.485"
    )
    assert (
        Classifier("resnet18", "ResNet18_Weights.IMAGENET1K_V1").published
        is Classifier("resnet18", "DEFAULT").published
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"classifier": "resnet19"},
            "classifier='resnet19' is not a classification model of torchvision; nearest: resnet1",
        ),
        (
            {"weights": "IMAGENET1K_V9"},
            r"weights='IMAGENET1K_V9' are neither published weights of resnet18 \(IMAGENET1K_",
        ),
        ({"crop": 300}, "crop=300 is larger than resize=256; crop at most 256"),
        ({"resize": 0}, "resize=0, crop=224: sizes are pixels"),
        ({"std": (1.0, 0.0, 1.0)}, "every std above 0"),
        ({"batch_size": 0}, "batch_size=0 must be auto or at least 1"),
        ({"device": "gpu"}, "device='gpu' is unknown; use auto, cpu, cuda"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        LossPruner(0.5, **settings)


def test_weights_that_do_not_fit_are_refused(weights, tmp_path):
    source = NoiseSource(2, 2, 2)

    def refused(message, **settings):
        with pytest.raises(UserError, match=message):
            score(LossPruner(0.5, cache_dir=None, **{**SMALL, **settings}), source)

    small = str(weights / "small.pt")
    refused("are not of resnet18: 1 keys are missing", classifier="resnet18", weights=small)
    refused(
        "are of another shape than mobilenet_v3_large|are not of mobilenet_v3_large",
        classifier="mobilenet_v3_large",
        weights=small,
    )
    torch.save(get_model("mobilenet_v3_small"), tmp_path / "whole.pt")
    refused("cannot be loaded as tensors only", weights=str(tmp_path / "whole.pt"))
    torch.save([1], tmp_path / "list.pt")
    refused("are not a state dict", weights=str(tmp_path / "list.pt"))
    (tmp_path / "cut.safetensors").write_bytes((weights / "small.safetensors").read_bytes()[:1000])
    refused("truncated or no safetensors", weights=str(tmp_path / "cut.safetensors"))


def test_published_weights_out_of_reach_are_explained(monkeypatch, tmp_path):
    def unreachable(*arguments, **settings):
        raise URLError("no route to host")

    monkeypatch.setattr("ldd.networks.pretrained.get_model", unreachable)
    with pytest.raises(
        UserError, match=r"cannot fetch https://.*resnet18.*no route to host.*; download it where there"
    ):
        Classifier("resnet18", "DEFAULT").load()


@pytest.mark.skipif(not (SHARED / "weights" / "mobilenet_v2").is_dir(), reason="no shared weights")
def test_a_real_classifier_knows_real_photographs(monkeypatch):
    source = FolderSource(str(SHARED / "data" / "imagenette"))
    items = [item for label in range(10) for item in source.class_items("test", label)[::80]]
    outputs, right = class_outputs(source.classes, 1000, ""), []

    def of_the_ten(logits, targets):
        right.extend((logits[:, outputs].argmax(1) == torch.searchsorted(outputs, targets)).tolist())
        return losses_and_margins(logits, targets)

    monkeypatch.setattr(scoring, "losses_and_margins", of_the_ten)
    weights = str(SHARED / "weights" / "mobilenet_v2" / "model.safetensors")
    constants = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "cache_dir": None, "device": "cpu"}
    table = score(LossPruner(0.5, classifier="mobilenet_v2", weights=weights, **constants), source, items)
    assert len(right) == len(items) >= 45
    assert sum(right) / len(right) > 0.9
    assert 0.4 < (table.rows["margin"].to_numpy() > 0).mean() < 0.8  # of 1,000 classes


def test_a_classifier_that_only_guesses_is_reported(weights, tmp_path):
    state = torch.load(weights / "small.pt", weights_only=True)
    torch.save(
        {**state, "classifier.3.weight": torch.zeros(3, 1024), "classifier.3.bias": torch.zeros(3)},
        tmp_path / "x",
    )
    pruner = LossPruner(0.5, weights=str(tmp_path / "x"), cache_dir=None, **SMALL)
    with pytest.warns(
        UserWarning, match=r"mobilenet_v3_small gets 0\.00% of these images right, no more than guessing"
    ):
        score(pruner, NoiseSource(34, 34, 34))


def test_a_killed_run_does_not_read_hashed_files_again(pruner, tmp_path, monkeypatch):
    source = FolderSource(str(write_folder(tmp_path / "data", {"a": 12, "b": 12, "c": 12})))
    items, read = source.items("train"), []
    expected = hash_items(source, items, None)
    monkeypatch.setattr(base, "_SAVE_EVERY", 8)
    plain = FolderSource.sha256

    def hashed(self, item):
        if len(read) > 20:
            raise KeyboardInterrupt
        read.append(item.key)
        return plain(self, item)

    monkeypatch.setattr(FolderSource, "sha256", hashed)
    monkeypatch.setattr(base, "_THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        hash_items(source, items, pruner.cache_dir)
    monkeypatch.setattr(FolderSource, "sha256", lambda self, item: read.append(item.key) or plain(self, item))
    assert hash_items(source, items, pruner.cache_dir) == expected
    assert sorted(read) == sorted(item.key for item in items)  # each once


def test_the_classifier_counts_as_seen_also_by_a_saved_table(pruner, tmp_path):
    source = NoiseSource(4, 4, 4, size=32)
    items = source.items("train")
    table = pruner.score(source, items, spec_of(source), 0)
    assert table.facts.network == "torchvision.models.mobilenet_v3_small"
    table.save(tmp_path / "scores.parquet")
    stored = TablePruner(str(tmp_path / "scores.parquet"), 0.5, cache_dir=None)
    assert stored.score(source, items, spec_of(source), 0).facts.network == table.facts.network
