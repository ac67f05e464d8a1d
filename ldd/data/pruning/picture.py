"""What a score table looks like: how its values are spread, and the two ends of every class."""

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ldd.data.pruning.rows import ordered
from ldd.data.pruning.table import ScoreTable
from ldd.data.sources import Item, Source
from ldd.data.splits import fit_to_square
from ldd.images import ClassInfo

_CLASSES = 20  # rows; more would not be looked at
_ENDS = 6  # images of each end of a class
_CELL, _MARGIN, _NAME = 72, 2, 110  # pixels
_WIDTH = _NAME + 2 * _ENDS * (_CELL + _MARGIN) + 4 * _MARGIN
_BINS = 60


def draw_scores(table: ScoreTable, source: Source, classes: list[ClassInfo]) -> Image.Image:
    """A histogram of the criterion, kept images apart, above a row per class: its lowest and its highest images.

    Only the images that are shown are decoded; classes after the twentieth are left out, and a line says so.

    Args:
        table: scores, with a selection recorded.
        source: where the images are.
        classes: the K classes, ordered by label.
    """
    histogram = _histogram(table)
    shown = [info for info in classes if info.label in set(table.labels.tolist())][:_CLASSES]
    left = len(set(table.labels.tolist())) - len(shown)
    row = _CELL + 16 + _MARGIN
    canvas = Image.new("RGB", (_WIDTH, histogram.height + 20 + row * len(shown) + 16 * bool(left)), "white")
    canvas.paste(histogram, (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    order = ordered(table.rows, "label", table.facts.criterion, descending=False)
    starts = np.searchsorted(table.labels[order], np.arange(len(classes) + 1))
    top = histogram.height + 4
    name = table.facts.criterion
    draw.text((_NAME, top), f"lowest {name}", fill="black", font=font)
    draw.text((_WIDTH // 2 + _NAME // 2, top), f"highest {name}", fill="black", font=font)
    top += 16
    for info in shown:
        members = order[starts[info.label] : starts[info.label + 1]]
        half = min(_ENDS, -(-len(members) // 2))
        draw.text((_MARGIN, top + _CELL // 2), info.name[:18], fill="black", font=font)
        highest = members[half:][-_ENDS:]
        for place, member in enumerate(members[:half]):
            _paste(canvas, draw, source, table, int(member), _NAME + place * (_CELL + _MARGIN), top)
        for place, member in enumerate(highest):
            column = 2 * _ENDS - len(highest) + place
            _paste(
                canvas,
                draw,
                source,
                table,
                int(member),
                _NAME + column * (_CELL + _MARGIN) + 3 * _MARGIN,
                top,
            )
        top += row
    if left:
        draw.text((_MARGIN, top), f"{left} more classes are not shown", fill="black", font=font)
    return canvas


def _histogram(table: ScoreTable) -> Image.Image:
    kept = np.zeros(len(table), dtype=np.bool_)
    if table.kept is not None:
        kept[table.kept.numpy()] = True
    values = table.values
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(_WIDTH / 100, 3), dpi=100, layout="constrained")
        axes = figure.add_subplot(xlabel=table.facts.criterion, ylabel="images")
        edges = np.histogram_bin_edges(values, bins=_BINS)
        parts = [values[kept], values[~kept]]
        axes.hist(
            parts,
            bins=edges.tolist(),
            stacked=True,
            label=["kept", "left out"],
            color=["tab:blue", "lightgrey"],
        )
        axes.set_yscale("symlog")
        axes.legend()
        canvas = FigureCanvasAgg(figure)  # drawn without pyplot, whose global state and display are not ours
        canvas.draw()  # type: ignore[no-untyped-call]
        rgba = bytes(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return Image.frombytes("RGBA", canvas.get_width_height(), rgba).convert("RGB")


def _paste(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    source: Source,
    table: ScoreTable,
    row: int,
    left: int,
    top: int,
) -> None:
    item = Item(table.rows["path"][row].as_py(), int(table.labels[row]))
    pixels = fit_to_square(source.read(item), _CELL).permute(1, 2, 0).contiguous()
    canvas.paste(Image.fromarray(pixels.numpy()), (left, top))
    draw.text((left, top + _CELL), f"{table.values[row]:.3g}", fill="black", font=ImageFont.load_default(10))
