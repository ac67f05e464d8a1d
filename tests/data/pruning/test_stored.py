"""Pruning by saved tables and by lists in the released code's format: there and back, and of other data."""

import json
import shutil

import numpy as np
import pytest
from pruning_cases import NoiseSource, spec_of, table_of, write_folder

from ldd.data import FolderSource, ListPruner, RandomPruner, Subset, TablePruner
from ldd.data.pruning import ScoreFacts, ScoreTable, Selection, write_lists
from ldd.data.pruning.base import hash_items
from ldd.errors import UserError
from ldd.images import ClassInfo


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "data", {"a": 12, "b": 8, "c": 4}, size=8)


def scored(source, seed=0):
    """A table of random losses with the images' hashes."""
    items = source.items("train")
    losses = np.random.default_rng(seed).random(len(items))
    return ScoreTable.build(
        items, hash_items(source, items, None), source.classes, ScoreFacts(), losses, loss=losses
    )


def apply(pruner, source):
    return pruner.score(source, source.items("train"), spec_of(source), seed=0)


def test_a_saved_table_selects_on_a_moved_root(root, tmp_path):
    source = FolderSource(str(root))
    table = scored(source)
    table.save(tmp_path / "scores.parquet")
    shutil.move(root, tmp_path / "moved")
    pruner = TablePruner(str(tmp_path / "scores.parquet"), 0.5, "hard", cache_dir=str(tmp_path / "cache"))
    again = apply(pruner, FolderSource(str(tmp_path / "moved")))
    assert again.rows.equals(table.rows)
    assert pruner.keep(again).equal(Selection(0.5, "hard")(table))


def test_a_table_of_all_classes_serves_a_subset(root, tmp_path):
    source = FolderSource(str(root))
    scored(source).save(tmp_path / "scores.parquet")
    subset = Subset(source, ["c", "a"])
    part = apply(TablePruner(str(tmp_path / "scores.parquet"), 0.5, cache_dir=None), subset)
    assert part.paths == [item.key for item in subset.items("train")]
    assert part.counts == [3, 11]
    whole = dict(zip(scored(source).paths, scored(source).values, strict=True))
    assert part.values.tolist() == [whole[path] for path in part.paths]


def test_a_table_of_other_data_is_refused_with_both_fingerprints(root, tmp_path):
    source = FolderSource(str(root))
    table = scored(source)
    table.save(tmp_path / "scores.parquet")
    pruner = TablePruner(str(tmp_path / "scores.parquet"), 0.5, cache_dir=None)
    first, second = source.items("train")[:2]
    shutil.copyfile(root / second.key, root / first.key)
    changed = scored(FolderSource(str(root)))
    message = (
        rf"scores='.*scores.parquet' are of other data: fingerprint {table.fingerprint} \({len(table)} images\), and "
        rf"the data's is {changed.fingerprint}; of its {len(table)} images 1 have other contents, e.g. {first.key}; run"
    )
    with pytest.raises(UserError, match=message):
        apply(pruner, FolderSource(str(root)))
    other = NoiseSource(5, 5)
    with pytest.raises(
        UserError, match=r"of its 10 images 10 are not in it, e\.g\. train/c0/000; run `latentdd prune`"
    ):
        apply(pruner, other)


def test_a_table_without_hashes_is_known_by_its_paths(root, tmp_path):
    source = FolderSource(str(root))
    table = apply(RandomPruner(0.5), source)
    table.save(tmp_path / "random.parquet")
    again = apply(TablePruner(str(tmp_path / "random.parquet"), 0.5, cache_dir=None), source)
    assert again.rows.equals(table.rows)


@pytest.mark.parametrize(("order", "keep"), [("easy", 0.6), ("hard", 0.625), ("easy", 0.58)])
@pytest.mark.parametrize("prefix", ["", "/ds/imagenet/", "C:\\data\\"])
def test_lists_come_back_as_what_was_kept(root, tmp_path, order, keep, prefix):
    source = FolderSource(str(root))
    table = scored(source)
    selection = Selection(keep, order)
    table = table.with_kept(selection(table))
    files = write_lists(tmp_path / "lists", table, source.classes, selection, prefix)
    assert [file.name for file in files] == [
        f"class_{i}_top_{selection.keep * 100:g}_{'asc' if order == 'easy' else 'desc'}.json"
        for i in range(3)
    ]
    pruner = ListPruner(str(tmp_path / "lists"), selection.keep, order)
    assert pruner.keep(apply(pruner, source)).equal(table.kept)
    paths = json.loads(files[0].read_text())
    losses = [table.values[table.paths.index(path.removeprefix(prefix))] for path in paths]
    assert losses == sorted(losses, reverse=order == "hard")
    assert all(path.startswith(prefix) for path in paths)


def test_lists_are_numbered_by_the_class_ids(tmp_path):
    classes = [ClassInfo(0, 217, "c0", "x"), ClassInfo(1, 0, "c1", "y")]
    table, selection = table_of([0.1, 0.2], [0.3, 0.4]), Selection(0.5)
    table = table.with_kept(selection(table))
    files = write_lists(tmp_path, table, classes, selection)
    assert [file.name for file in files] == ["class_217_top_50_asc.json", "class_0_top_50_asc.json"]
    assert json.loads(files[1].read_text()) == ["train/c1/0002.png"]


def test_published_lists_of_another_machine_and_layout_are_read(root, tmp_path):
    # As released: absolute paths under another mount, without `train`, for more classes than the data have.
    source = FolderSource(str(root))
    wanted = [item.key for item in source.items("train")][::3]
    for i, wnid in enumerate(["zz", "a", "b", "c"]):
        mine = [f"/ds-sds/images/imagenet/{wnid}/gone.png"]
        mine += [
            f"/ds-sds/images/imagenet/{key.removeprefix('train/')}" for key in wanted if f"/{wnid}/" in key
        ]
        (tmp_path / f"class_{i}_top_60_asc.json").write_text(json.dumps(mine))
    pruner = ListPruner(str(tmp_path), 0.6)
    table = apply(pruner, source)
    assert [table.paths[i] for i in pruner.keep(table).tolist()] == wanted


def test_lists_that_match_no_image_are_an_error(root, tmp_path):
    source = FolderSource(str(root))
    names = [item.key for item in source.items("train") if item.label != 1]
    (tmp_path / "class_0_top_60_asc.json").write_text(json.dumps([*names, "/mnt/x/b/unknown.png"]))
    message = r"lists class_\*_top_60_asc\.json match none of the 7 images of class 'b' \(the data have e\.g\. train/b"
    with pytest.raises(UserError, match=message):
        apply(ListPruner(str(tmp_path), 0.6), source)


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path):
    class Nested(NoiseSource):
        def class_items(self, split, label):
            items = super().class_items(split, label)
            return [type(item)(f"train/c{label}/same/{i}.png", label) for i, item in enumerate(items)]

    source = Nested(2, 2)
    (tmp_path / "class_0_top_50_asc.json").write_text('["/x/c0/same/1.png", "/x/c1/same/0.png"]')
    pruner = ListPruner(str(tmp_path), 0.5)
    assert pruner.keep(apply(pruner, source)).tolist() == [1, 2]


def test_bad_lists_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no files class_\*_top_60_asc\.json; it has no lists at all"):
        ListPruner(str(tmp_path), 0.6)
    (tmp_path / "class_0_top_20_desc.json").write_text("[1]")
    with pytest.raises(
        UserError, match=r"has no files class_\*_top_60_asc\.json; it has class_\*_top_20_desc\.json"
    ):
        ListPruner(str(tmp_path), 0.6)
    with pytest.raises(UserError, match=r"class_0_top_20_desc\.json is not a list of paths; make it again"):
        apply(ListPruner(str(tmp_path), 0.2, "hard"), NoiseSource(2))
    (tmp_path / "class_0_top_20_desc.json").write_text("[")
    with pytest.raises(
        UserError, match=r"class_0_top_20_desc\.json cannot be read as JSON \(Expecting value"
    ):
        apply(ListPruner(str(tmp_path), 0.2, "hard"), NoiseSource(2))
    with pytest.raises(UserError, match=r"keep=0 is not a share"):
        ListPruner(str(tmp_path), 0)
