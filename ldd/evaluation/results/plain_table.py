"""A table as text, which a terminal and a page both show."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class PlainTable:
    """Text, ready to be shown; `rich.print` takes it.

    Attributes:
        title: above it.
        note: below it.
        head: names of the columns.
        text: how many of the columns, from the left, are text; the others are numbers.
        rows: cells.
        strong: places of the rows that sum others up.
    """

    title: str
    note: str
    head: tuple[str, ...]
    text: int
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()

    def __rich__(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, caption=self.note)
        for place, name in enumerate(self.head):
            table.add_column(name, justify="left" if place < self.text else "right")
        for number, row in enumerate(self.rows):
            # Text: a name is no console markup.
            table.add_row(*map(Text, row), style="bold" if number in self.strong else None)
        return table


def of_runs(title: str, tables: Sequence[tuple[str, PlainTable]]) -> PlainTable:
    """The same table of several runs as one, with a column for the run; a column that one lacks is empty there.

    Args:
        title: of the whole.
        tables: name of the run and its table, at least one.
    """
    head = max((table.head for _, table in tables), key=len)
    rows = tuple(
        (name, *(dict(zip(table.head, row, strict=True)).get(column, "") for column in head))
        for name, table in tables
        for row in table.rows
    )
    notes = dict.fromkeys(table.note for _, table in tables)
    return PlainTable(title, " / ".join(notes), ("run", *head), 1 + tables[0][1].text, rows)
