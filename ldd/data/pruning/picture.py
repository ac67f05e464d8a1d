"""What a score table looks like: how its values are spread, and the two ends of every class."""

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ldd.data.pictures import fit_to_square
from ldd.data.pruning.table import ScoreTable, ordered
from ldd.data.sources import Item, Source
from ldd.images import ClassInfo
from ldd.runtime.plain import in_chart

_CLASSES = 20  # rows of the picture; more would not be looked at
_ENDS = 6  # images of each end of a class
_CELL, _MARGIN, _NAME = 72, 2, 110  # pixels
_ROW = _CELL + 16 + _MARGIN
_WIDTH = _NAME + 2 * _ENDS * (_CELL + _MARGIN) + 4 * _MARGIN
_BINS = 60


def draw_scores(table: ScoreTable, source: Source, classes: list[ClassInfo]) -> Image.Image:
    """Draw a histogram of the criterion above a row for each class: its lowest and its highest images.

    Only the images that are shown are decoded; classes after the twentieth are left out, and a line says so.
    """
    name = table.facts.criterion
    histogram = _histogram(table)
    there = [info for info in classes if info.label in set(table.labels.tolist())]
    shown, left = there[:_CLASSES], len(there) - len(there[:_CLASSES])
    height = histogram.height + 20 + _ROW * len(shown) + 16 * bool(left)
    canvas = Image.new("RGB", (_WIDTH, height), "white")
    canvas.paste(histogram, (0, 0))
    draw, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(11), ImageFont.load_default(10)
    top = histogram.height + 4
    draw.text((_NAME, top), f"lowest {name}", fill="black", font=font)
    draw.text((_WIDTH // 2 + _NAME // 2, top), f"highest {name}", fill="black", font=font)
    top += 16
    order = ordered(table.rows, "label", name, descending=False)
    for info in shown:
        draw.text((_MARGIN, top + _CELL // 2), info.name[:18], fill="black", font=font)
        for column, row in _ends(order[table.labels[order] == info.label]):
            x = _NAME + column * (_CELL + _MARGIN) + 3 * _MARGIN * (column >= _ENDS)
            item = Item(table.rows["path"][row].as_py(), info.label)
            pixels = fit_to_square(source.read(item), _CELL).permute(1, 2, 0).contiguous()
            canvas.paste(Image.fromarray(pixels.numpy()), (x, top))
            draw.text((x, top + _CELL), f"{table.values[row]:.3g}", fill="black", font=small)
        top += _ROW
    if left:
        draw.text((_MARGIN, top), f"{left} more classes are not shown", fill="black", font=font)
    return canvas


def _ends(members: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Column and row number of the images shown of a class, of which `members` are the rows in order."""
    half = min(_ENDS, -(-len(members) // 2))
    highest = members[half:][-_ENDS:].tolist()
    return [*enumerate(members[:half].tolist()), *enumerate(highest, 2 * _ENDS - len(highest))]


def _histogram(table: ScoreTable) -> Image.Image:
    kept, values = table.is_kept, table.values
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(_WIDTH / 100, 3), dpi=100, layout="constrained")
        axes = figure.add_subplot(xlabel=in_chart(table.facts.criterion), ylabel="images")
        axes.hist(
            [values[kept], values[~kept]],
            bins=np.histogram_bin_edges(values, bins=_BINS).tolist(),
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
