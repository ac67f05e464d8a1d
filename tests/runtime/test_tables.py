"""Tables on terminals of every width: no cell is cut, and no number is broken."""

from io import StringIO
from itertools import product

import pytest
from rich.console import Console

from ldd.runtime.tables import PlainTable

SETS = ("distilled", "initial", "random_real", "full_real_steps")
HEAD = ("set", "bytes", "IPC", "epochs", "images", "steps", "decodes", "seconds", "accuracy", "of full data")
ROWS = tuple(
    (name, f"{3_307_000 + n:,}", f"{n}.25", "1,000", f"{n},008", "100", "0", f"5{n}.4", "96.3", f"{n}9.5 %")
    for n, name in enumerate(SETS)
)
TABLE = PlainTable("Storage and cost", "a note", HEAD, 1, ROWS, frozenset({3}))


def shown(table, width):
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("table", "width"), [*product([TABLE, TABLE.without_constants()], [40, 80, 100, 200])]
)
def test_every_cell_is_there_as_it_is(table, width):
    lines = shown(table, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in {*table.head, *(cell for row in table.rows for cell in row)}:
        assert word in text, word
    assert "…" not in text
    assert text.count("Storage and cost") == 1


def test_rows_stay_rows_where_there_is_room():
    assert any(line.startswith("│ distilled") and "96.3" in line for line in shown(TABLE, 200))
    (accuracy,) = [line for line in shown(TABLE, 80) if line.startswith("│ accuracy")]
    assert accuracy.count("96.3") == 4


def test_constants_are_said_once():
    found = TABLE.without_constants("accuracy")
    assert found.head == ("set", "bytes", "IPC", "images", "seconds", "accuracy", "of full data")
    assert found.note == "in all rows: epochs 1,000, steps 100, decodes 0; a note"
    assert [row[:2] for row in found.rows] == [row[:2] for row in ROWS]
    one = PlainTable("", "", HEAD, 1, ROWS[:1])
    assert one.without_constants() is one


def test_two_columns_of_text_and_names_that_are_not_markup():
    rows = (("[red]a[/red]", "ConvNet", "1.0"), ("b", "ViT", "2.0"))
    table = PlainTable("a title", "", ("run", "network", "a long name of a column"), 2, rows)
    text = "\n".join(shown(table, 30))
    assert "b / ViT" in text
    assert "[red]" in "".join(text.split())
    assert '<td style="text-align:left">[red]a[/red]</td>' in table._repr_html_()


def test_html_is_escaped():
    table = PlainTable("<b>", "&", ("<i>",), 0, (("<script>",),), frozenset({0}))
    assert "<script>" not in table._repr_html_()
    assert "&lt;script&gt;" in table._repr_html_()


def test_as_markdown():
    table = PlainTable("Two", "a note", ("name", "x|y"), 1, (("a", "1"), ("b|c", "2")))
    lines = [
        "**Two**",
        "",
        "| name | x\\|y |",
        "| --- | ---: |",
        "| a | 1 |",
        "| b\\|c | 2 |",
        "",
        "a note",
        "",
    ]
    assert table.markdown() == "\n".join(lines)
    assert PlainTable("Two", "", ("name",), 1, ()).markdown() == "**Two**\n\n| name |\n| --- |\n"
