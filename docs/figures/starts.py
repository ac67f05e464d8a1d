"""Draw the tables of starts, objectives and re-diffusion in docs/results/starts.md, read from that page."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PAGE = Path(__file__).parents[1] / "results" / "starts.md"
COLOURS = {"0 steps": "#616161", "DM": "#ef6c00", "MTT": "#3f51b5", "NCFM": "#2e7d32"}
STARTS = ("real", "k-means", "mode-guided", "joint guidance")
PREFIX = "re-diffused, "

Cells = dict[str, dict[str, tuple[float, float]]]


def table(first: str) -> Cells:
    """Return, by row and column, mean and deviation of the page's table of that first header cell with an `MTT`."""
    rows: list[list[str]] = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if cells[0] == first and "MTT" in cells:
            rows = [cells]
        elif rows and line.startswith("|"):
            rows.append(cells)
        elif rows:
            break
    names = rows[0][1:]
    figures = [[re.findall(r"\d+\.\d", cell) for cell in cells[1:]] for cells in rows]
    return {
        re.sub(r" \(.*\)|, repulsion.*", "", cells[0]): {
            name: (float(pair[0]), float(pair[1])) for name, pair in zip(names, found, strict=True) if pair
        }
        for cells, found in zip(rows, figures, strict=True)
        if cells[0] != first and not cells[0].startswith("---")
    }


def grid(first: str) -> Figure:
    """Draw one table: a group for each start, a point for each objective, re-diffused sets on the right."""
    cells = table(first)
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.3), layout="constrained", sharey=True)
    for place, prefix, title in zip(axes, ("", PREFIX), ("as it is", "re-diffused"), strict=True):
        _panel(place, cells, prefix)
        place.set_title(f"{first}, {title}", fontsize=11)
    axes[0].set_ylabel("accuracy of unseen networks, %")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, ncols=4, fontsize=9, loc="outside lower center", frameon=False)
    return figure


def _panel(axes: Axes, cells: Cells, prefix: str) -> None:
    for shift, (objective, colour) in zip((-0.24, -0.08, 0.08, 0.24), COLOURS.items(), strict=True):
        found = [(i, cells.get(prefix + start, {}).get(objective)) for i, start in enumerate(STARTS)]
        shown = [(i + shift, *cell) for i, cell in found if cell is not None]
        places, means, deviations = zip(*shown, strict=True) if shown else ((), (), ())
        axes.errorbar(places, means, deviations, fmt="o", color=colour, capsize=3, label=objective)
    axes.set_xticks(range(len(STARTS)), STARTS, fontsize=9)
    axes.set_xlim(-0.5, len(STARTS) - 0.5)


FIGURES = {
    "starts_digits_1": lambda: grid("one digit a class"),
    "starts_digits_10": lambda: grid("ten digits a class"),
    "starts_photographs_1": lambda: grid("one photograph a class"),
    "starts_photographs_10": lambda: grid("ten photographs a class"),
}
"""File name without ending -> what draws it."""
