"""The score table: columns and ranks, Parquet there and back, and files that are none."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pruning_cases import class_infos, table_of

from ldd.data import Item
from ldd.data.pruning import ScoreFacts, ScoreTable
from ldd.errors import UserError

FACTS = ScoreFacts("loss", "torchvision resnet18", "resize 256", 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "scores.parquet"
    return table_of([0.5, 0.1], [3.0, 2.0, 1.0], facts=FACTS).with_kept(torch.tensor([1, 4])).save(path)


def test_columns_and_metadata_are_as_documented(saved):
    table = pq.read_table(saved)
    assert table.column_names == ["path", "sha256", "label", "wnid", "loss", "margin", "rank", "kept"]
    assert table["rank"].to_pylist() == [1, 0, 2, 1, 0]
    assert table["kept"].to_pylist() == [False, True, False, False, True]
    assert table["wnid"].to_pylist() == ["c0", "c0", "c1", "c1", "c1"]
    metadata = table.schema.metadata
    assert metadata[b"classifier"] == b"torchvision resnet18"
    assert metadata[b"preprocessing"] == b"resize 256"
    assert metadata[b"criterion"] == b"loss"
    lines = sorted(
        f"{row['wnid']}\t{row['path']}\t{row['sha256']}" for row in table.select([0, 1, 3]).to_pylist()
    )
    digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:32]
    assert metadata[b"data_fingerprint"].decode() == digest


def test_a_saved_table_comes_back_and_is_written_alike(saved, tmp_path):
    table = ScoreTable.load(saved)
    assert table.facts == FACTS
    assert table.values.tolist() == [0.5, 0.1, 3.0, 2.0, 1.0]
    assert table.kept.tolist() == [1, 4]
    assert table.counts == [2, 3]
    assert table.save(tmp_path / "again.parquet").read_bytes() == saved.read_bytes()


def test_another_criterion_has_its_own_column():
    items = [Item("a/1", 0), Item("a/0", 0)]
    table = ScoreTable.build(items, None, class_infos(1), ScoreFacts("el2n"), np.array([2.0, 2.0]))
    assert table.rows.column_names[-1] == "el2n"
    assert table.rows["rank"].to_pylist() == [1, 0]  # ties by path
    assert table.rows["loss"].null_count == table.rows["sha256"].null_count == 2
    assert table.kept is None


def test_rows_taken_are_ranked_among_themselves():
    table = table_of([0.5, 0.1, 0.3], [2.0, 1.0])
    part = table.take(np.array([4, 0, 2]), np.array([0, 1, 1]))
    assert part.paths == [table.paths[i] for i in (4, 0, 2)]
    assert part.rows["rank"].to_pylist() == [0, 1, 0]
    assert part.labels.tolist() == [0, 1, 1]


def test_the_fingerprint_follows_images_not_order():
    table = table_of([0.5, 0.1], [2.0])
    again = table.take(np.array([2, 1, 0]), np.array([1, 0, 0]))
    assert table.fingerprint == again.fingerprint
    assert table.fingerprint != table.take(np.array([0, 1]), np.array([0, 0])).fingerprint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(value):
    with pytest.raises(
        UserError, match=r"loss of 1 images is NaN or infinite, first train/c0/0001\.png; check the"
    ):
        table_of([0.5, value])


def _edited(file, columns):
    table = pq.read_table(file)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = (
            table.remove_column(place) if values is None else table.set_column(place, name, pa.array(values))
        )
    pq.write_table(table, file)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sha256": None}, "the score table has no column 'sha256'; it has path, label"),
        ({"label": ["0"] * 5}, "column 'label' of the score table is string, not int64"),
        ({"loss": [1.0, None, 1.0, 1.0, 1.0]}, "column 'loss' of the score table has 1 empty fields"),
        ({"path": list("aabcd")}, "the score table names some path twice"),
        (
            {"path": ["/data/a", *"bcde"]},
            "path '/data/a' of the score table is not a path relative to the data's root",
        ),
        ({"path": ["../a", *"bcde"]}, r"path '\.\./a' of the score table is not a path relative"),
        ({"label": [0, 0, 1, 1, 99]}, r"labels that are not class numbers 0\.\.K-1"),
        ({"sha256": ["x"] * 5}, r"sha256 'x' of the score table is not a hash \(64 hexadecimal digits\)"),
        (
            {"wnid": list("abcde")},
            "was edited: its rows have the data fingerprint [0-9a-f]{32}, its metadata say",
        ),
    ],
)
def test_an_edited_table_is_refused(saved, tmp_path, columns, message):
    path = tmp_path / "edited.parquet"
    path.write_bytes(saved.read_bytes())
    _edited(path, columns)
    with pytest.raises(UserError, match=message):
        ScoreTable.load(path)


def test_files_that_are_no_score_tables(tmp_path, saved):
    with pytest.raises(UserError, match=r"does not exist; `latentdd prune --out .*scores.parquet` makes one"):
        ScoreTable.load(tmp_path / "scores.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"is not a score table of format 1 \(it says None\)"):
        ScoreTable.load(tmp_path / "other.parquet")
    (tmp_path / "cut.parquet").write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged or not a Parquet file"):
        ScoreTable.load(tmp_path / "cut.parquet")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_byte_never_passes(saved, tmp_path_factory, place, value):
    whole = saved.read_bytes()
    data = bytearray(whole)
    data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.parquet"
    path.write_bytes(data)
    try:
        table = ScoreTable.load(path)
    except UserError:
        return
    assert table.rows.equals(ScoreTable.load(saved).rows)


def test_the_network_that_scored_is_kept_and_older_tables_say_none(tmp_path):
    facts = ScoreFacts("loss", "torchvision resnet18", "resize 256", 3, "torchvision.models.resnet18")
    path = table_of([0.5, 0.1], facts=facts).save(tmp_path / "scores.parquet")
    assert ScoreTable.load(path).facts == facts
    rows = pq.read_table(path)
    metadata = {name: value for name, value in rows.schema.metadata.items() if name != b"network"}
    pq.write_table(rows.replace_schema_metadata(metadata), path)
    assert ScoreTable.load(path).facts == ScoreFacts("loss", "torchvision resnet18", "resize 256", 3)
