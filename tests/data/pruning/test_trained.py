"""Scores of networks trained on the data: no image is judged by a network that saw it, and work is kept."""

import pytest
import torch
from pruning_cases import NoiseSource, spec_of
from torch.nn import functional as F

from ldd.data import CrossFittedLossPruner, DigitsSource, DistillationData, ScoringNetwork
from ldd.data.pruning.cross_fitted import fold_numbers
from ldd.data.splits import decode
from ldd.errors import UserError
from ldd.networks import ConvNet, scoring

TINY = ScoringNetwork(network=lambda classes, size: ConvNet(classes, size, width=8), epochs=1, device="cpu")


def score(pruner, source, seed=0):
    return pruner.score(source, source.items("train"), spec_of(source), seed)


@pytest.fixture
def trained(monkeypatch):
    """Images of each training, as a list of tensors."""
    seen = []
    train = scoring.train_classifier

    def record(network, images, labels, **settings):
        seen.append(torch.cat([*images.split(64)]))
        return train(network, images, labels, **settings)

    monkeypatch.setattr(scoring, "train_classifier", record)
    return seen


def test_no_image_is_scored_by_a_network_that_saw_it(trained):
    source = NoiseSource(6, 7, 8)
    pruner = CrossFittedLossPruner(0.5, folds=3, training=TINY, cache_dir=None)
    score(pruner, source)
    images = decode(source, source.items("train"), spec_of(source).image_size).images
    labels = torch.tensor([item.label for item in source.items("train")])
    folds = fold_numbers(labels, 3, spec_of(source), 0)
    assert len(trained) == 3
    for fold, seen in enumerate(trained):
        known = {image.numpy().tobytes() for image in seen}
        assert [image.numpy().tobytes() not in known for image in images] == (folds == fold).tolist()
    assert torch.stack([torch.bincount(labels[folds == fold]) for fold in range(3)]).tolist() == [
        [2, 3, 3],
        [2, 2, 3],
        [2, 2, 2],
    ]


def test_losses_are_those_of_the_fold_s_network():
    source = NoiseSource(4, 4)
    spec, items = spec_of(source), source.items("train")
    table = score(CrossFittedLossPruner(0.5, folds=2, training=TINY, cache_dir=None), source)
    images = decode(source, items, spec.image_size).images
    labels = torch.tensor([item.label for item in items])
    held_out = fold_numbers(labels, 2, spec, 0) == 1
    network = TINY.build(spec, 0, "cross-fitted", 1)
    TINY.train(network, images[~held_out], labels[~held_out], spec, 0, "cross-fitted", 1)
    with torch.no_grad():
        logits = network.eval()(spec.as_input(images[held_out]))
    expected = F.cross_entropy(logits, labels[held_out], reduction="none")
    assert torch.tensor(table.values)[held_out].sub(expected).abs().max() < 1e-5


def test_scores_do_not_depend_on_the_order_of_the_items(tmp_path):
    source = NoiseSource(5, 5)
    pruner = CrossFittedLossPruner(0.5, folds=2, training=TINY, cache_dir=None)
    items = source.items("train")
    turned = pruner.score(source, items[::-1], spec_of(source), 0)
    table = pruner.score(source, items, spec_of(source), 0)
    assert turned.paths == table.paths[::-1]
    assert turned.values[::-1].tolist() == table.values.tolist()
    assert turned.fingerprint == table.fingerprint


def test_finished_networks_are_not_trained_again(trained, tmp_path):
    source = NoiseSource(6, 6)
    pruner = CrossFittedLossPruner(0.5, folds=3, training=TINY, cache_dir=str(tmp_path))
    measure, calls = pruner.measure, []

    def killed(piece, *arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(piece)
        return measure(piece, *arguments)

    pruner.measure = killed
    with pytest.raises(KeyboardInterrupt):
        score(pruner, source)
    del pruner.measure
    table = score(pruner, source)
    assert len(trained) == 3
    again = score(pruner, source)
    assert len(trained) == 3
    assert again.rows.equals(table.rows)
    alone = score(CrossFittedLossPruner(0.5, folds=3, training=TINY, cache_dir=None), source)
    assert alone.rows.equals(table.rows)


def test_scores_are_kept_apart_by_what_they_follow_from(trained, tmp_path):
    source, other = NoiseSource(4, 4), NoiseSource(4, 4, size=41)
    settings = {"folds": 2, "cache_dir": str(tmp_path)}
    first = score(CrossFittedLossPruner(0.5, training=TINY, **settings), source)
    for pruner, data, seed in (
        (CrossFittedLossPruner(0.5, training=TINY, **settings), source, 1),
        (CrossFittedLossPruner(0.5, training=TINY, **settings), other, 0),
        (CrossFittedLossPruner(0.5, training=ScoringNetwork(TINY.network, epochs=2), **settings), source, 0),
    ):
        before = len(trained)
        assert score(pruner, data, seed).values.tolist() != first.values.tolist()
        assert len(trained) == before + 2


def test_mislabelled_digits_come_out_hardest():
    class Mislabelled(DigitsSource):
        """Ten threes sit among the ones."""

        def class_items(self, split, label):
            items = super().class_items(split, label)
            if split == "train" and label == 1:
                items = items + [type(item)(item.key, 1) for item in super().class_items("train", 3)[:10]]
            return items[10:] if split == "train" and label == 3 else items

    source = Mislabelled()
    items = [item for label in (1, 3) for item in source.class_items("train", label)]
    training = ScoringNetwork(TINY.network, epochs=4, batch_size=16, learning_rate=0.05, device="cpu")
    pruner = CrossFittedLossPruner(0.5, folds=2, training=training, cache_dir=None)
    table = pruner.score(source, items, spec_of(source), 0)
    ones = table.labels == 1
    wrong = {item.key for item in DigitsSource().class_items("train", 3)[:10]}
    hardest = [table.paths[i] for i in sorted(ones.nonzero()[0], key=lambda i: -table.values[i])[:12]]
    assert len(wrong & set(hardest)) >= 8
    assert (table.rows["margin"].to_numpy() > 0).mean() > 0.85


def test_the_data_module_prunes_by_them(tmp_path):
    pruner = CrossFittedLossPruner(0.2, folds=2, training=TINY, cache_dir=str(tmp_path))
    data = DistillationData(source=lambda root: NoiseSource(10, 12), pruner=pruner)
    data.setup()
    assert data.core_set.counts == [2, 2]
    assert data.prune_table.kept.tolist() == pruner.keep(data.prune_table).tolist()
    kept = [data.prune_table.paths[i] for i in data.prune_table.kept.tolist()]
    assert data.core_set.keys == kept
    assert len(data.test_images) == 22


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossFittedLossPruner(0.5, folds=1), "folds=1: at least 2 are needed"),
        (lambda: ScoringNetwork(epochs=0), r"training.epochs \(0\) must be at least 1"),
        (
            lambda: ScoringNetwork(learning_rate=0.0),
            r"training.learning_rate \(0.0\) must be a number above 0",
        ),
        (
            lambda: score(
                CrossFittedLossPruner(0.5, folds=4, training=TINY, cache_dir=None), NoiseSource(5, 3)
            ),
            "folds=4, but class 'c1' has 3 images; use at most as many folds",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
