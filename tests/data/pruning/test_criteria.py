"""EL2N, GraNd, forgetting, herding, k-centre and stratified selection against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pruning_cases import NoiseSource, spec_of, table_of
from torch.nn import functional as F

from ldd.data import (
    EL2NPruner,
    ForgettingPruner,
    GraNdPruner,
    HerdingPruner,
    KCenterPruner,
    ScoringNetwork,
    StratifiedPruner,
)
from ldd.data.pruning.dynamics import error_lengths, forgetting_events, gradient_lengths
from ldd.data.pruning.stored import strata_of
from ldd.data.splits import decode
from ldd.errors import UserError
from ldd.networks import ConvNet


def tiny(classes, size):
    return ConvNet(classes, size, width=4)


ONCE = ScoringNetwork(tiny, epochs=1, device="cpu")
SOURCE = NoiseSource(6, 5)


def score(pruner, seed=0):
    return pruner.score(SOURCE, SOURCE.items("train"), spec_of(SOURCE), seed)


def test_el2n_is_the_length_of_the_error_vector():
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0], [100.0, 0.0]])
    found = error_lengths(logits, torch.tensor([0, 0, 1]))
    assert (found - torch.tensor([0.5**0.5, 0.0, 2**0.5])).abs().max() < 1e-6


def test_el2n_is_the_mean_over_networks():
    both = score(EL2NPruner(0.5, networks=2, training=ONCE, cache_dir=None))
    images = decode(SOURCE, SOURCE.items("train"), spec_of(SOURCE).image_size).images
    labels = torch.tensor([item.label for item in SOURCE.items("train")])
    each = [
        EL2NPruner(0.5, networks=2, training=ONCE, cache_dir=None).measure(
            piece, images, labels, spec_of(SOURCE), 0
        )
        for piece in range(2)
    ]
    assert not each[0].equal(each[1])
    assert (torch.tensor(both.values) - torch.cat(each, 1).double().mean(1)).abs().max() < 1e-6
    assert both.facts.criterion == "el2n"
    assert both.rows["loss"].null_count == len(both)


def test_gradient_lengths_equal_those_of_single_backward_passes():
    network = ONCE.build(spec_of(SOURCE), 3).eval()
    images, labels = (
        torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 0, 1, 1]),
    )
    found = gradient_lengths(network, images, labels)
    for image, label, length in zip(images, labels, found, strict=True):
        network.zero_grad()
        F.cross_entropy(network(image[None]), label[None]).backward()
        expected = torch.cat([value.grad.flatten() for value in network.parameters()]).norm()
        assert abs(length - expected) < 1e-4 * expected


def test_grand_scores_every_image_without_training(monkeypatch):
    monkeypatch.setattr(ScoringNetwork, "train", None)
    table = score(GraNdPruner(0.5, networks=2, training=ONCE, cache_dir=None))
    assert (table.values > 0).all()
    assert len(set(table.values)) == len(table)


def test_forgetting_events_are_counted():
    history = torch.tensor(
        [[1, 1, 0, 0, 1], [1, 0, 0, 1, 0], [1, 1, 0, 1, 1], [1, 0, 0, 1, 1]], dtype=torch.bool
    )
    assert forgetting_events(history).tolist() == [0, 2, 4, 0, 1]


def test_forgetting_looks_after_every_epoch(monkeypatch):
    looks = []
    judged = ScoringNetwork.judged

    def look(self, *arguments):
        looks.append(judged(self, *arguments[:-1], lambda logits, _: logits))
        return judged(self, *arguments)

    monkeypatch.setattr(ScoringNetwork, "judged", look)
    table = score(
        ForgettingPruner(0.5, training=ScoringNetwork(tiny, epochs=3, device="cpu"), cache_dir=None)
    )
    labels = torch.tensor([item.label for item in SOURCE.items("train")])
    history = torch.stack([logits.argmax(1) == labels for logits in looks])
    assert len(history) == 3
    assert table.values.tolist() == forgetting_events(history).tolist()


def features(n, seed):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(0, 99))
def test_herding_picks_what_keeps_the_mean(n, seed):
    points, picks = features(n, seed), []
    for _ in range(n):
        free = [i for i in range(n) if i not in picks]
        picks.append(min(free, key=lambda i: (points[[*picks, i]].mean(0) - points.mean(0)).norm()))
    assert HerdingPruner.order(points).tolist() == picks


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(0, 99))
def test_k_centre_picks_the_farthest(n, seed):
    points = features(n, seed)
    picks = [int((points - points.mean(0)).norm(dim=1).argmin())]
    while len(picks) < n:
        free = [i for i in range(n) if i not in picks]
        picks.append(max(free, key=lambda i: min(float((points[i] - points[j]).norm()) for j in picks)))
    assert KCenterPruner.order(points).tolist() == picks


@pytest.mark.parametrize("kind", [HerdingPruner, KCenterPruner])
def test_greedy_picks_are_nested_and_per_class(kind):
    small, large = kind(0.4, ONCE, cache_dir=None), kind(0.8, ONCE, cache_dir=None)
    table = score(small)
    assert sorted(table.values[table.labels == 0].tolist()) == list(range(6))
    assert sorted(table.values[table.labels == 1].tolist()) == list(range(5))
    assert set(small.keep(table).tolist()) < set(large.keep(table).tolist())
    assert len(small.keep(table)) == 2 + 2


def test_strata_are_equal_stretches_of_the_range():
    values = np.array([0.0, 0.1, 0.5, 0.74, 0.75, 1.0])
    assert [group.tolist() for group in strata_of(values, 4)] == [[0, 1], [], [2, 3], [4, 5]]
    assert [group.tolist() for group in strata_of(np.ones(3), 4)][-1] == [
        0,
        1,
        2,
    ]


@pytest.fixture
def saved(tmp_path):
    """A class with 90 easy and 10 spread-out images, and one with equal losses."""
    losses = [*np.linspace(0.0, 0.9, 90), *np.linspace(1.0, 10.0, 10)]
    table_of(losses, [1.0] * 20).save(tmp_path / "scores.parquet")
    return str(tmp_path / "scores.parquet")


def test_stratified_selection_covers_the_range(saved):
    table = table_of([*np.linspace(0.0, 0.9, 90), *np.linspace(1.0, 10.0, 10)], [1.0] * 20)
    pruner = StratifiedPruner(saved, 0.2, strata=10, cache_dir=None)
    kept = pruner.keep(table)
    values = table.values[kept.numpy()]
    first = table.labels[kept.numpy()] == 0
    assert (first.sum(), (~first).sum()) == (20, 4)
    # Ten stretches of 0 to 10: the nine upper ones hold one image each (the last two), so all of these are kept.
    assert (values[first] >= 1.0).sum() == 10
    assert kept.equal(pruner.keep(table))
    assert not kept.equal(StratifiedPruner(saved, 0.2, strata=10, seed=1, cache_dir=None).keep(table))
    easier = StratifiedPruner(saved, 0.2, strata=10, skip_hardest=0.1, cache_dir=None).keep(table)
    assert table.values[easier.numpy()][table.labels[easier.numpy()] == 0].max() < 1.0


@settings(max_examples=25, deadline=None)
@given(
    groups=st.lists(st.lists(st.floats(0, 9, width=16), min_size=4, max_size=30), min_size=1, max_size=3),
    keep=st.integers(25, 100),
    skip=st.integers(0, 40),
    strata=st.integers(1, 12),
)
def test_stratified_selection_keeps_exact_counts(tmp_path_factory, groups, keep, skip, strata):
    skip = min(skip, 100 - keep)
    path = tmp_path_factory.getbasetemp() / "stratified.parquet"
    table = table_of(*groups)
    table.save(path)
    pruner = StratifiedPruner(str(path), keep / 100, strata, skip / 100, cache_dir=None)
    kept = pruner.keep(table).tolist()
    assert kept == sorted(set(kept))
    assert np.bincount(table.labels[kept]).tolist() == [keep * len(group) // 100 for group in groups]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: EL2NPruner(0.5, networks=0), r"pruner.networks \(0\) must be at least 1"),
        (lambda path: GraNdPruner(0.5, networks=0), r"pruner.networks \(0\) must be at least 1"),
        (
            lambda path: ForgettingPruner(0.5, training=ONCE),
            r"training\.epochs=1: nothing can be forgotten in fewer",
        ),
        (lambda path: HerdingPruner(0.0), "keep=0.0 is not a share"),
        (lambda path: StratifiedPruner(path, 0.5, strata=0), r"pruner.strata \(0\) must be at least 1"),
        (
            lambda path: StratifiedPruner(path, 0.5, skip_hardest=0.6),
            "skip_hardest=0.6 and keep=0.5 are more than there",
        ),
    ],
)
def test_bad_settings_are_refused(make, message, saved):
    with pytest.raises(UserError, match=message):
        make(saved)
