"""Tables of text that a terminal of any width, a notebook and a page show whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

_BORDER, _PADDING = 1, 3  # columns: the first line, and what a column takes in addition to its text


@dataclass(frozen=True)
class PlainTable:
    """A table of text with a title above and a note below, for `rich.print`, a notebook or a page.

    Where the rows are wider than the terminal, columns are shown as rows, in several parts if need be: no cell is cut.

    Attributes:
        text: number of columns, from the left, that are text; the others are numbers.
        strong: places of the rows that sum up others.
    """

    title: str
    note: str
    head: tuple[str, ...]
    text: int
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()

    def without_constants(self, *keep: str) -> "PlainTable":
        """Return the table without columns of numbers that are the same in each row, which the note tells once."""
        dropped: dict[int, str] = {}
        for place, name in enumerate(self.head):
            cells = {row[place] for row in self.rows}
            if place >= self.text and len(self.rows) > 1 and len(cells) == 1 and name not in keep:
                dropped[place] = f"{name} {cells.pop() or 'unknown'}"
        if not dropped:
            return self
        rows = tuple(_without(row, dropped) for row in self.rows)
        note = "; ".join(filter(None, (f"in all rows: {', '.join(dropped.values())}", self.note)))
        return replace(self, head=_without(self.head, dropped), rows=rows, note=note)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Yield it as the terminal has room for it."""
        columns = [list(column) for column in zip(self.head, *self.rows, strict=True)]
        if _width(columns) <= options.max_width or not self.rows:
            yield self._drawn(columns, self.text, self.strong)
            return
        names = [" / ".join(row[: self.text]) for row in self.rows]
        turned = [
            [self.head[0], *self.head[self.text :]],
            *([name, *row[self.text :]] for name, row in zip(names, self.rows, strict=True)),
        ]
        parts = list(_parts(turned, options.max_width))
        for number, places in enumerate(parts):
            strong = frozenset(at for at, place in enumerate(places) if place - 1 in self.strong)
            first, last = number == 0, number == len(parts) - 1
            drawn = self._drawn([turned[place] for place in places], 1, strong, turned=True)
            drawn.title = drawn.title if first else None
            drawn.caption = drawn.caption if last else None
            yield drawn

    def _drawn(
        self, columns: Sequence[Sequence[str]], text: int, strong: frozenset[int], *, turned: bool = False
    ) -> Table:
        """Return a table of columns, each with its head; `strong` names rows, or columns if it is `turned`."""
        table = Table(title=Text(self.title, "table.title"), caption=Text(self.note, "table.caption"))
        for place, (name, *_) in enumerate(columns):
            bold = "bold" if turned and place in strong else None
            # Numbers are never broken; a name that is too long goes on below.
            side: Literal["left", "right"] = "left" if place < text else "right"
            table.add_column(Text(name), justify=side, no_wrap=place >= text, overflow="fold", style=bold)
        for number, row in enumerate(list(zip(*columns, strict=True))[1:]):
            summed = not turned and number in strong
            if summed:
                table.add_section()
            # Text: a name is not console markup.
            table.add_row(*map(Text, row), style="bold" if summed else None)
        return table

    def markdown(self) -> str:
        """Return it as Markdown: the title in bold, the table, the note."""
        cells = [[cell.replace("|", r"\|") for cell in row] for row in (self.head, *self.rows)]
        sides = ["---" if place < self.text else "---:" for place in range(len(self.head))]
        lines = [f"| {' | '.join(row)} |" for row in (cells[0], sides, *cells[1:])]
        return "\n".join([f"**{self.title}**", "", *lines, "", *[self.note, ""] * bool(self.note)])

    def _repr_html_(self) -> str:
        """Return HTML for a notebook."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.head)
        rows = []
        for number, row in enumerate(self.rows):
            side = ["left" if place < self.text else "right" for place in range(len(row))]
            cells = (f'<td style="text-align:{s}">{escape(c)}</td>' for s, c in zip(side, row, strict=True))
            style = ' style="font-weight:bold"' if number in self.strong else ""
            rows.append(f"<tr{style}>{''.join(cells)}</tr>")
        return (
            f"<table><caption>{escape(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table><p><small>{escape(self.note)}</small></p>"
        )


def of_runs(title: str, tables: Sequence[tuple[str, PlainTable]]) -> PlainTable:
    """Return the same table of several runs as one, with a column for the run; columns that a run lacks stay empty."""
    head = max((table.head for _, table in tables), key=len)
    rows = tuple(
        (name, *(dict(zip(table.head, row, strict=True)).get(column, "") for column in head))
        for name, table in tables
        for row in table.rows
    )
    notes = dict.fromkeys(table.note for _, table in tables)
    return PlainTable(title, " / ".join(notes), ("run", *head), 1 + tables[0][1].text, rows)


def facts_table(title: str, facts: dict[str, str]) -> PlainTable:
    """Return names and values, one below the other."""
    return PlainTable(title, "", ("", ""), 2, tuple(facts.items()))


def _without(cells: Sequence[str], dropped: Sequence[int] | dict[int, str]) -> tuple[str, ...]:
    return tuple(cell for place, cell in enumerate(cells) if place not in dropped)


def _parts(columns: Sequence[Sequence[str]], width: int) -> Iterator[list[int]]:
    """Yield places of columns that fit side by side, each time with the first, which names the rows."""
    part = [0]
    for place in range(1, len(columns)):
        if len(part) > 1 and _width([columns[at] for at in (*part, place)]) > width:
            yield part
            part = [0]
        part.append(place)
    yield part


def _width(columns: Sequence[Sequence[str]]) -> int:
    """Columns of a terminal that a table takes where no cell is broken."""
    return _BORDER + sum(max(map(cell_len, column)) + _PADDING for column in columns)
