"""Splitting classes: every class once, blocks of equal size, near classes together."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny_set import classes_of

from ldd.errors import UserError
from ldd.federation import ClassPartition
from ldd.federation.partition import balanced_k_means

CLASSES = classes_of([f"n{i:02d}" for i in range(10)])
WNIDS = [info.wnid for info in CLASSES]


def features(seed=0, width=6):
    return torch.randn(10, width, generator=torch.Generator().manual_seed(seed))


def made(rule, subtasks, seed=0):
    if rule == "contiguous":
        return ClassPartition.contiguous(CLASSES, subtasks)
    if rule == "random":
        return ClassPartition.random(CLASSES, subtasks, seed)
    return ClassPartition.semantic(CLASSES, subtasks, features(), seed)


@settings(max_examples=30, deadline=None)
@given(
    rule=st.sampled_from(["contiguous", "random", "semantic"]),
    subtasks=st.integers(1, 10),
    seed=st.integers(0, 3),
)
def test_each_class_once_in_blocks_of_equal_size(rule, subtasks, seed):
    partition = made(rule, subtasks, seed)
    assert sorted(wnid for block in partition.blocks for wnid in block) == WNIDS
    sizes = [len(block) for block in partition.blocks]
    assert len(sizes) == subtasks
    assert max(sizes) - min(sizes) <= 1
    assert all(list(block) == sorted(block) for block in partition.blocks), "the order of the labels"
    partition.check(CLASSES)
    assert made(rule, subtasks, seed) == partition, "repeatable"


def test_contiguous_blocks():
    assert ClassPartition.contiguous(CLASSES, 3).blocks == (
        tuple(WNIDS[:4]),
        tuple(WNIDS[4:7]),
        tuple(WNIDS[7:]),
    )


@settings(max_examples=20, deadline=None)
@given(subtasks=st.integers(2, 5), data=st.data(), seed=st.integers(0, 3))
def test_others_lie_outside_of_a_block(subtasks, data, seed, tmp_path_factory):
    partition = made("random", subtasks, seed)
    most = 10 - max(map(len, partition.blocks))
    count = data.draw(st.integers(0, most))
    overlapping = partition.overlapping(CLASSES, count, seed)
    assert (overlapping.blocks, overlapping.overlap) == (partition.blocks, count)
    for number, block in enumerate(partition.blocks):
        learned = overlapping.learned(number)
        assert learned[: len(block)] == block
        assert len({*learned}) == len(learned) == len(block) + count
    path = tmp_path_factory.mktemp("partition") / "partition.json"
    overlapping.save(path)
    assert ClassPartition.load(path) == overlapping == partition.overlapping(CLASSES, count, seed)
    with pytest.raises(UserError, match=rf"--overlap \({most + 1}\) must lie in 0..{most}"):
        partition.overlapping(CLASSES, most + 1, seed)


def test_random_blocks_follow_the_seed():
    assert len({made("random", 2, seed).blocks for seed in range(6)}) > 1


def test_semantic_blocks_keep_clusters_together():
    """Three clusters of 4, 3 and 3 far apart, in a mixed order."""
    cluster = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    points = 100.0 * torch.eye(3)[cluster] + 0.1 * features(width=3)
    blocks = ClassPartition.semantic(CLASSES, 3, points, seed=1).blocks
    expected = {tuple(WNIDS[i] for i in range(10) if cluster[i] == c) for c in range(3)}
    assert set(blocks) == expected
    assert blocks[0][0] == "n00"


def cost(points, members):
    return sum(((points[members == c] - points[members == c].mean(0)) ** 2).sum() for c in np.unique(members))


@pytest.mark.parametrize("seed", range(3))
def test_balanced_k_means_against_all_partitions(seed):
    """Eight points in two blocks of four: the least sum of squares of all 35 partitions."""
    points = features(seed, 3)[:8].double().numpy()
    best = np.inf
    for block in combinations(range(8), 4):
        members = np.isin(np.arange(8), block).astype(int)
        best = min(best, cost(points, members))
    found = balanced_k_means(points, [4, 4], seed)
    assert np.bincount(found).tolist() == [4, 4]
    assert cost(points, found) == pytest.approx(best, abs=1e-9)


def test_equal_features_are_no_obstacle():
    found = balanced_k_means(np.zeros((5, 2)), [2, 2, 1], 0)
    assert np.bincount(found).tolist() == [2, 2, 1]


def test_saved_and_read(tmp_path):
    partition = made("semantic", 3)
    partition.save(tmp_path / "partition.json")
    assert ClassPartition.load(tmp_path / "partition.json") == partition
    (tmp_path / "partition.json").write_text('{"blocks": 3}')
    with pytest.raises(UserError, match=r"partition.json: blocks must be a list, got 3; make it anew"):
        ClassPartition.load(tmp_path / "partition.json")
    with pytest.raises(UserError, match=r"none.json cannot be read .*; make it anew"):
        ClassPartition.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((WNIDS[:6], WNIDS[5:]), r"n05 \(sub-tasks 0, 1\): in more than one sub-task"),
        ((WNIDS[:5], WNIDS[6:]), "n05: in none"),
        ((WNIDS, ("dog",)), "dog: not in the task"),
        ((), r"n00, n01, n02, n03, n04 and 5 more: in none"),
    ],
)
def test_other_classes_are_refused(blocks, message):
    with pytest.raises(UserError, match=message):
        ClassPartition(tuple(map(tuple, blocks))).check(CLASSES)


@pytest.mark.parametrize("subtasks", [0, 11])
def test_number_of_subtasks(subtasks):
    with pytest.raises(UserError, match=rf"--subtasks \({subtasks}\) must lie in 1..10"):
        made("contiguous", subtasks)
