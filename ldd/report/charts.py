"""Charts as SVG. Text and axes are drawn in the colour of the page's text, whether it is light or dark."""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import cycle, islice

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldd.evaluation.results.rows import Score
from ldd.report.runs import Curve
from ldd.runtime.plain import in_chart

# People who are colour-blind can tell them apart, on white and on black (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("", "6 3", "2 2", "8 3 2 3")

_INK = "#010203"  # stands for the colour of the page's text until the SVG is written
_MOST_POINTS = 400  # of a line; neighbours are averaged
# Inches: hardly wider than a phone, so that the text stays readable there.
_WIDTH, _HEIGHT, _ROW = 3.9, 2.7, 0.3
_NAME = 24  # characters of a run's name next to its bar


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return colour and dashes by name; the first six names differ by colour, later ones by dashes as well."""
    pairs = [(colour, dash) for dash in DASHES for colour in COLOURS]
    return dict(zip(names, islice(cycle(pairs), len(names)), strict=True))


def line_chart(key: str, curves: Mapping[str, Curve], looks: Mapping[str, tuple[str, str]], y: str) -> str:
    """Draw values over training steps, a line for each name; `key` is unique on the page, `y` names the axis."""
    figure, axes = _figure(_HEIGHT)
    for name, curve in curves.items():
        colour, dash = looks[name]
        steps, values = zip(*_thinned(curve), strict=True)
        (line,) = axes.plot(
            steps, values, color=colour, linewidth=1.5, marker="o" if len(steps) == 1 else None
        )
        if dash:
            line.set_dashes([float(part) for part in dash.split()])
    axes.set(xlabel="training step", ylabel=y)
    axes.grid(alpha=0.25, color=_INK)
    return _svg(key, figure)


def bar_chart(
    key: str, rows: Sequence[tuple[str, Mapping[str, Score]]], looks: Mapping[str, tuple[str, str]], x: str
) -> str:
    """Draw scores with error bars of one standard deviation, a row for each run and a mark for each set."""
    figure, axes = _figure(1.1 + _ROW * len(rows))
    for place, (_, scores) in enumerate(rows):
        for number, (name, score) in enumerate(scores.items()):
            axes.errorbar(
                100 * score.mean,
                place + 0.12 * (number - (len(scores) - 1) / 2),
                xerr=100 * score.std if score.n > 1 else None,
                fmt="o",
                markersize=5,
                capsize=3,
                color=looks[name][0],
            )
    axes.set_yticks(range(len(rows)), [_cut(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(x)
    axes.grid(alpha=0.25, color=_INK, axis="x")
    return _svg(key, figure)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_INK)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(_INK)
    for name, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(name in ("left", "bottom"))
    return figure, axes


def _svg(key: str, figure: Figure) -> str:
    """Return the drawing alone, its identifiers unique on the page, as wide as there is room."""
    out = StringIO()
    # Text stays text: it can be searched and read aloud. The salt makes the same chart the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # A style inside would apply to the whole page.
    drawn = re.sub(r"<(metadata|style)\b.*?</\1>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\bid="', f'id="{key}-', drawn)
    drawn = re.sub(r'href="#', f'href="#{key}-', drawn)
    drawn = drawn.replace("url(#", f"url(#{key}-").replace(_INK, "currentColor")
    drawn = re.sub(r'font-family: [^;"]*', "font-family: inherit", drawn)
    return re.sub(r' (?:width|height)="[^"]*pt"', "", drawn, count=2)


def _thinned(curve: Curve) -> Curve:
    size = -(-len(curve) // _MOST_POINTS)
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _cut(name: str) -> str:
    return in_chart(name if len(name) <= _NAME else "..." + name[3 - _NAME :])
