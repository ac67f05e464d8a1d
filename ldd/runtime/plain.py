"""Names that users chose, as text alone: neither formulas of matplotlib nor markup of rich."""

from rich.text import Text


def in_chart(name: str) -> str:
    """Return a name for any text of a chart; dollars would begin a formula, control characters have no picture."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name).replace("$", r"\$")


def on_terminal(*parts: str, bold: str = "") -> Text:
    """Return words for `rich.print`, those in `bold` first; no `[red]` and no `:smile:` is taken for anything."""
    return Text.assemble((bold, "bold"), *parts)
