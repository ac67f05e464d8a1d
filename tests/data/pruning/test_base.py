"""Selection: exact counts and order against a ten-line reference, windows, scopes, size."""

import resource
import sys
import time
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pruning_cases import class_infos, table_of

from ldd.data import Item, RandomPruner
from ldd.data.pruning import ScoreFacts, ScoreTable, Selection, exact_floor, smallest_keep
from ldd.errors import UserError


def reference(table, keep, order, scope, skip):
    """Plain loops: sort each group by (loss, path), skip, keep the floor of the share."""
    groups, kept = {}, []
    for row, label in enumerate(table.labels):
        groups.setdefault(label if scope == "class" else 0, []).append(row)
    for rows in groups.values():
        sign = 1 if order == "easy" else -1
        ranked = sorted(rows, key=lambda row: (sign * table.values[row], table.paths[row]))
        start, count = (int(Decimal(str(share)) * len(rows)) for share in (skip, keep))
        kept += ranked[start : start + count]
    return sorted(kept)


@settings(max_examples=200, deadline=None)
@given(
    groups=st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5]), min_size=1, max_size=12), min_size=1, max_size=4
    ),
    keep=st.integers(1, 100),
    order=st.sampled_from(["easy", "hard"]),
    scope=st.sampled_from(["class", "global"]),
    skip=st.integers(0, 60),
    data=st.data(),
)
def test_selection_agrees_with_the_reference(groups, keep, order, scope, skip, data):
    keep, skip = keep / 100, (skip / 100 if order == "easy" and keep + skip <= 100 else 0.0)
    total = sum(map(len, groups))
    names = data.draw(st.permutations([f"c/{i:03d}" for i in range(total)]))
    table = table_of(*groups, paths=names)
    expected = reference(table, keep, order, scope, skip)
    selection = Selection(keep, order, scope, skip)
    if len({table.labels[row] for row in expected}) < len(groups):
        with pytest.raises(UserError, match="would leave class"):
            selection(table)
        works = selection.smallest_keep(table, 1)
        if works is not None and works + skip <= 1:
            Selection(works, order, scope, skip)(table)
    else:
        assert selection(table).tolist() == expected


@pytest.mark.parametrize(
    ("share", "count", "kept"),
    [(0.29, 100, 29), (0.57, 100, 57), (1.0, 7, 7), (0.1, 9, 0), (1e-05, 100000, 1), (1, 3, 3)],
)
def test_the_share_is_the_decimal_that_was_written(share, count, kept):
    assert exact_floor(share, count) == kept


def test_ties_go_by_path_in_both_orders():
    table = table_of([1.0, 1.0, 0.5, 1.0], paths=["d", "c", "b", "a"])
    assert Selection(0.5)(table).tolist() == [2, 3]
    assert Selection(0.5, "hard")(table).tolist() == [1, 3]


def test_windows_and_scopes():
    table = table_of([0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0])
    assert Selection(0.5, skip_easiest=0.25)(table).tolist() == [1, 2, 5, 6]
    assert Selection(0.75, scope="global")(table).tolist() == [0, 1, 2, 3, 4, 5]
    assert Selection(0.75, "hard", "global")(table).tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan"), 60])
def test_a_share_outside_its_range_is_refused(keep):
    with pytest.raises(UserError, match=f"keep={keep} is not a share; use a number above 0 and at most 1"):
        RandomPruner(keep)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.5, "skip_easiest": 0.6}, "skip_easiest=0.6 and keep=0.5 are more than there is"),
        ({"keep": 0.5, "skip_easiest": -0.1}, "skip_easiest=-0.1 and keep=0.5 are more than there is"),
        (
            {"keep": 0.5, "skip_easiest": 0.1, "order": "hard"},
            "skip_easiest=0.1 has no effect with order=hard",
        ),
        ({"keep": 0.5, "order": "asc"}, "order='asc', scope='class': order is easy or hard"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Selection(**settings)


def test_an_empty_class_is_refused_with_the_share_that_works():
    table = table_of([0.0] * 100, [0.0] * 3)
    message = r"keep=0\.3 would leave class 'c1' \(label 1, 3 images\) empty; use at least keep=0\.3334$"
    with pytest.raises(UserError, match=message):
        Selection(0.3)(table)
    assert len(Selection(0.3334)(table)) == 34
    with pytest.raises(UserError, match=r"empty; use at least keep=0\.9806, or scope=class"):
        Selection(0.5, scope="global")(table_of([0.0] * 100, [1.0] * 3))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5), st.integers(1, 300))
def test_the_smallest_keep_is_the_smallest(counts, needed):
    keep = smallest_keep(counts, needed)
    if keep is None:
        assert min(counts) < needed
        return
    assert all(exact_floor(keep, count) >= needed for count in counts)
    assert keep <= 1e-4 or any(exact_floor(round(keep - 1e-4, 4), count) < needed for count in counts)


def test_the_share_that_works_leaves_room_for_what_is_skipped():
    """Ten images a class: a half of them after the easiest half, but not seven."""
    table = table_of([0.0] * 10, [1.0] * 10)
    window = Selection(0.2, skip_easiest=0.5)
    assert window.smallest_keep(table, 5) == 0.5
    assert window.smallest_keep(table, 7) is None
    assert Selection(0.2, scope="global").smallest_keep(table, 5) == 0.75


def test_random_choice_follows_from_the_seed():
    items = [Item(f"{label}/{i}", label) for label in range(2) for i in range(50)]
    pruner, spec = RandomPruner(0.5), type("Spec", (), {"classes": class_infos(2)})
    first, again, other = (pruner.keep(pruner.score(None, items, spec, seed)) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.bincount(torch.tensor([item.label for item in items])[first]).tolist() == [25, 25]


def test_a_whole_imagenet_is_selected_in_seconds_with_flat_memory():
    rows = 1_281_167
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 1000, rows))
    losses = rng.random(rows).astype(np.float32).astype(np.float64)
    wnids = pc.binary_join_element_wise("n", pa.array(labels).cast(pa.string()), "")
    paths = pc.binary_join_element_wise(wnids, pa.array(range(rows)).cast(pa.string()), "/")
    columns = {"path": paths, "label": labels, "wnid": wnids, "loss": losses}
    table = ScoreTable(pa.table(columns), ScoreFacts())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    kept = Selection(0.29)(table)
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (
        2**20 if sys.platform == "darwin" else 2**10
    )
    assert seconds < 10
    assert grown < 200, "MiB; the table itself takes about 120"
    counts = np.bincount(labels)
    assert np.bincount(labels[kept.numpy()]).tolist() == [29 * count // 100 for count in counts]
    cut = np.array(
        [np.sort(losses[labels == label])[29 * counts[label] // 100 - 1] for label in (0, 500, 999)]
    )
    for label, highest in zip((0, 500, 999), cut, strict=True):
        mine = kept.numpy()[labels[kept.numpy()] == label]
        assert losses[mine].max() == highest
