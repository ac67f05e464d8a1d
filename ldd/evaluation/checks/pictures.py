"""Pictures of the checks: images with their nearest real ones, and confusion matrices."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldd.artefact.picture import shown_cell
from ldd.evaluation.checks.confusion import Confusion
from ldd.evaluation.checks.neighbours import Neighbours
from ldd.images import ClassInfo
from ldd.runtime.plain import in_chart

_MOST_FIGURES = 20  # classes whose cells have room for a figure
MAX_IMAGES = 100  # rows that a person still looks at
_LETTERS = 14  # of a class's name
_CELL, _TEXT, _MARGIN, _HEADER, _ACROSS = 64, 90, 4, 18, 5


def draw_neighbours(
    images: Tensor,
    real_images: Tensor,
    measures: Mapping[str, Neighbours],
    copy_ratio: float,
    names: Sequence[str],
) -> Image.Image:
    """Draw each image, its nearest real one by each measure, the ratios to the usual distances, and its class's name.

    The images nearest to a real one come first, by the first measure, and at most 100 are shown. Ratios below
    `copy_ratio` are red.
    """
    order = next(iter(measures.values())).ratios.argsort(stable=True)[:MAX_IMAGES].tolist()
    width = (1 + len(measures)) * (_CELL + _MARGIN) + _TEXT
    rows = -(-len(order) // _ACROSS)
    across = min(_ACROSS, len(order))
    left_out = len(images) - len(order)
    size = (across * width, _HEADER + rows * (_CELL + _MARGIN) + _HEADER * bool(left_out))
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    draw.text((2, 2), "image, nearest real by " + ", by ".join(measures), fill="black", font=font)
    for place, row in enumerate(order):
        left, top = place % _ACROSS * width, _HEADER + place // _ACROSS * (_CELL + _MARGIN)
        canvas.paste(shown_cell(images[row], _CELL), (left, top))
        for column, (name, neighbours) in enumerate(measures.items(), start=1):
            there = left + column * (_CELL + _MARGIN)
            canvas.paste(shown_cell(real_images[int(neighbours.rows[row])], _CELL), (there, top))
            ratio = float(neighbours.ratios[row])
            text = (left + (1 + len(measures)) * (_CELL + _MARGIN), top + 14 * column - 8)
            draw.text(text, f"{name} {ratio:.2f}", fill="red" if ratio < copy_ratio else "black", font=font)
        draw.text((text[0], text[1] + 16), names[row][:_LETTERS], fill="black", font=font)
    if left_out:
        draw.text((2, size[1] - _HEADER), f"{left_out} more are not shown", fill="black", font=font)
    return canvas


def draw_confusions(found: Sequence[Confusion], classes: Sequence[ClassInfo]) -> Figure:
    """Draw a matrix for each network, with shares of each class in %."""
    with matplotlib.rc_context({"font.size": 8}):
        side = max(3.0, 0.32 * len(classes) + 1.2)
        figure = Figure(figsize=(side * len(found), side), layout="constrained")
        for place, confusion in enumerate(found, start=1):
            plane = figure.add_subplot(1, len(found), place)
            shares = confusion.counts.double() / confusion.counts.sum(1, keepdim=True).clamp(min=1)
            drawn = plane.imshow(np.asarray(100 * shares), vmin=0, vmax=100, cmap="Blues")
            figure.colorbar(drawn, ax=plane, shrink=0.8, label="% of the class")
            for (true, answer), share in np.ndenumerate(np.asarray(100 * shares)):
                if len(classes) <= _MOST_FIGURES and round(share):
                    colour = "white" if share > 50 else "black"
                    plane.text(answer, true, f"{share:.0f}", ha="center", va="center", color=colour, size=6)
            names = [in_chart(info.name[:18]) for info in classes]
            plane.set_xticks(range(len(names)), names, rotation=90)
            plane.set_yticks(range(len(names)), names)
            plane.set_xlabel("taken for")
            plane.set_title(f"{in_chart(confusion.network)}: {100 * confusion.accuracy:.1f} %")
    return figure
