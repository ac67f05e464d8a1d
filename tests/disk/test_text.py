import json
import os
import time
from itertools import pairwise

import pytest
import yaml

from ldd.cli import main
from ldd.disk import text as texts
from ldd.disk.files import read_json, read_yaml
from ldd.disk.text import parse_yaml, read_lines
from ldd.errors import UserError
from ldd.priors.folder import read_licence
from ldd.students.protocol import Protocol
from ldd.sweeps.file import Sweep

LETTERS = "abcdefghij"


def bomb(first, level):
    """Ten levels, each with nine aliases of the one before."""
    names = pairwise(LETTERS)
    return "\n".join(
        [f"a: &a {first}", *(f"{new}: &{new} {level(','.join([f'*{old}'] * 9))}" for old, new in names)]
    )


BOMBS = {
    "lists": bomb("[x]", lambda nine: f"[{nine}]"),
    "merge keys": bomb("{x: 1}", lambda nine: f"{{<<: [{nine}]}}"),
    "mappings": bomb(
        "{x: 1}", lambda nine: "{" + ",".join(f"k{i}: {one}" for i, one in enumerate(nine.split(","))) + "}"
    ),
    "long text": bomb("x", lambda nine: f"[{nine}]"),
    "itself": "a: &a [1, *a]",
    "itself, renamed": "a: &a [1]\nb: &a [2, *a]",
    "brackets": "[" * 5000 + "]" * 5000,
    "dashes": "- " * 30_000 + "x",
    "question marks": "? " * 30_000 + "x",
    "many values": "[" + "1," * 200_000 + "]",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_that_expands_is_refused_by_each_reader(tmp_path, capsys, bomb):
    path = tmp_path / "x.yaml"
    path.write_text(BOMBS[bomb])
    (tmp_path / "README.md").write_text(f"---\nlicense:\n{BOMBS[bomb]}\n---\n")
    started = time.process_time()
    for read in (read_yaml, Protocol.load, Sweep.load):
        with pytest.raises(UserError, match=r"x\.yaml"):
            read(path)
    assert read_licence(tmp_path) == "unknown"
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(path)])
    assert len(capsys.readouterr().err) < 20_000
    assert time.process_time() - started < 30  # a hang, not a measurement


def values_in(value):
    """Keys and values of a plain value, all levels."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(values_in, value.values()))
    return 1 + sum(map(values_in, value)) if isinstance(value, list) else 1


def test_aliases_are_counted_as_they_are_written_out(monkeypatch):
    merged = "base: &base {a: 1}\none: {<<: *base, b: 2}\n"
    assert parse_yaml(merged) == {"base": {"a": 1}, "one": {"a": 1, "b": 2}}
    ordinary = "base: &base {a: 1, b: [x, y]}\ntwo: [*base, &n 3, *n, *base]\n"
    count = values_in(yaml.safe_load(ordinary))
    monkeypatch.setattr(texts, "_MAX_NODES", count)
    assert parse_yaml(ordinary) == yaml.safe_load(ordinary)
    monkeypatch.setattr(texts, "_MAX_NODES", count - 1)
    with pytest.raises(ValueError, match=f"more than {count - 1} values"):
        parse_yaml(ordinary)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_text(tmp_path, mark):
    path = tmp_path / "x"
    path.write_bytes(mark + '{"ä": 1}\n'.encode())
    assert read_json(path) == read_yaml(path) == {"ä": 1}
    assert read_lines(path, "x", "") == ['{"ä": 1}']


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with open(tmp_path / "sparse", "wb") as opened:
        opened.truncate(2**40)
    for name in ("fifo", "folder", "latin", "sparse", "missing"):
        for read in (read_json, read_yaml, lambda path: read_lines(path, "names", "cure")):
            with pytest.raises(UserError, match=name):
                read(tmp_path / name)
    monkeypatch.setattr(texts, "MAX_BYTES", 4)
    (tmp_path / "x").write_text(json.dumps([1, 2]))
    with pytest.raises(UserError, match="more than the"):
        read_json(tmp_path / "x")


@pytest.mark.parametrize(
    ("licence", "right"),
    [("mit", "mit"), ("a\x1b[31mb", "a[31mb"), ("x" * 1000, "x" * 200), ("two\n  words", "two words")],
)
def test_the_licence_of_a_model_card_is_a_line_of_text(tmp_path, licence, right):
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'license': licence})}---\n", encoding="utf-8")
    assert read_licence(tmp_path) == right


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", 3),
        ('{"a": 1, "a": 2}', 1),
        ("- {x: 1}\n- y: {z: 1,\n  z: 2}", 3),
        ("a:\n  b: 1\n  c: [1, 2]\n  b: &x 3\nd: *x", 4),
    ],
)
def test_a_key_that_comes_twice_is_refused(text, line):
    with pytest.raises(ValueError, match=rf"line {line} names '[a-z]' again"):
        parse_yaml(text)


def test_keys_of_different_mappings_may_be_the_same():
    text = "a: &x {b: 1}\nc: {<<: *x, d: [1, {a: 2}, {a: 3}]}\n? [a, a]\n: a\n"
    with pytest.raises(yaml.YAMLError, match="unhashable"):
        parse_yaml(text)
    assert parse_yaml(text.partition("?")[0]) == {"a": {"b": 1}, "c": {"b": 1, "d": [1, {"a": 2}, {"a": 3}]}}
