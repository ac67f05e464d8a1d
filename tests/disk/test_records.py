"""Records: what is written comes back, and every value of a wrong kind is refused by name."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ldd.disk.files import write_json
from ldd.disk.records import REST, parse, read_record, to_json
from ldd.errors import UserError


@dataclass(frozen=True)
class Inner:
    size: int
    name: str = "unnamed"

    def __post_init__(self):
        if self.size < 0:
            raise UserError(f"size must be at least 0, got {self.size}")


@dataclass(frozen=True)
class Outer:
    text: str
    number: float
    flag: bool
    pair: tuple[float, float]
    names: tuple[str, ...]
    parts: list[Inner]
    figures: dict[str, dict[str, float | None]]
    seed: int | None
    inner: Inner | None = None
    facts: dict[str, Any] | None = None
    others: dict[str, Any] = field(default_factory=dict, metadata=REST)


PLAIN = {
    "text": "a\nb",
    "number": 2,
    "flag": True,
    "pair": [0.5, 1],
    "names": ["x", "y"],
    "parts": [{"size": 3, "name": "z"}],
    "figures": {"distil": {"seconds": 1.5, "peak": None}},
    "seed": None,
}


def test_round_trip(tmp_path):
    whole = {**PLAIN, "inner": {"size": 1, "name": "i"}, "facts": {"a": [1, {"b": None}]}, "later": [1]}
    for plain in (PLAIN, whole):
        write_json(tmp_path / "record.json", plain)
        record = read_record(tmp_path / "record.json", Outer)
        assert json.dumps(to_json(record)) == json.dumps(plain)  # numbers as they were, keys in order
        assert parse(Outer, to_json(record)) == record
    assert record.names == ("x", "y")
    assert record.parts == [Inner(3, "z")]
    assert record.others == {"later": [1]}
    assert parse(Outer, {**PLAIN, "names": ("x", "y"), "inner": Inner(1), "facts": {"t": (1,)}}).facts == {
        "t": [1]
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": 1}, "text must be text without control characters, got 1"),
        ({"text": "\x1b[2J"}, r"text must be text without .*, got '\\x1b\[2J'"),
        ({"text": "\ud800"}, "text must be text without"),
        ({"number": True}, "number must be a number, got True"),
        ({"number": float("inf")}, "number must be a number, got inf"),
        ({"number": 10**30}, "number must be a number, got 1000"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"seed": 1.0}, "seed must be a whole number or null, got 1.0"),
        ({"seed": False}, "seed must be a whole number or null, got False"),
        ({"pair": [1.0]}, r"pair must be a list of 2 values, got \[1.0\]"),
        ({"names": "xy"}, "names must be a list, got 'xy'"),
        ({"names": ["x", 2]}, r"names\[1\] must be text"),
        ({"parts": [{"size": 1}, {"size": "1"}]}, r"parts\[1\]\.size must be a whole number, got '1'"),
        ({"parts": [{"name": "x"}]}, r"parts\[0\]: missing size"),
        ({"parts": [{"size": 1, "colour": 2}]}, r"parts\[0\]: unknown 'colour'; known are size, name"),
        ({"parts": [{"size": -1}]}, r"parts\[0\]: size must be at least 0, got -1"),
        ({"parts": [4]}, r"parts\[0\] must be a mapping with size, name, got 4"),
        ({"figures": None}, "figures must be a mapping, got None"),
        ({"names": None}, "names must be a list, got None"),
        ({"figures": []}, r"figures must be a mapping, got \[\]"),
        ({"figures": {"a": {"b": "c"}}}, r"figures\['a'\]\['b'\] must be a number or null, got 'c'"),
        ({"figures": {"\0": {}}}, "figures must be a mapping, got"),
        ({"inner": 3}, "inner must be a mapping with size, name or null, got 3"),
        ({"facts": {"a": object()}}, "facts must be plain JSON values: Object of type object"),
        ({"facts": {"a": float("nan")}}, "facts must be plain JSON values"),
        ({"facts": [1]}, r"facts must be a mapping or null, got \[1\]"),
        ({"later": object()}, "the record must be plain JSON values"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(UserError, match=message):
        parse(Outer, PLAIN | changes)


def test_messages_of_files(tmp_path):
    file = tmp_path / "record.json"
    for text, message in (
        ("{", r"cannot be read as JSON \(.*\); make it anew"),
        ("[1]", r": the record must be a mapping with text, .*, got \[1\]; make it anew"),
        ("{}", ": missing text, number, flag, pair, names, parts, figures, seed; make it anew"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            read_record(file, Outer, "make it anew")
        assert str(file) in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(key=st.sampled_from([*PLAIN, "inner", "facts", "later"]), value=JSON)
def test_anything_in_any_place(key, value):
    """Refused, or a record that is written as it was read."""
    try:
        record = parse(Outer, {**PLAIN, key: value})
    except UserError:
        return
    json.dumps(to_json(record), allow_nan=False)
    assert parse(Outer, to_json(record)) == record
