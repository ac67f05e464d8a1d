"""Draw the schematic pictures of the site: `python docs/figures/draw.py` writes them beside this file as SVG.

Figures with numbers take them from docs/results (its tables are named at each).
"""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from starts import FIGURES as STARTS

BLUE, GREEN, ORANGE, RED, GREY, PALE = "#3f51b5", "#2e7d32", "#ef6c00", "#c62828", "#616161", "#eceff6"
plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "ldd", "font.size": 11, "axes.spines.top": False}
plt.rcParams |= {"axes.spines.right": False}


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1)
    return figure, axes


def _box(axes: Axes, x: float, y: float, text: str, colour: str = BLUE, width: float = 1.5) -> None:
    patch = FancyBboxPatch(
        (x, y), width, 0.8, boxstyle="round,pad=0.05", facecolor=PALE, edgecolor=colour, linewidth=1.5
    )
    axes.add_patch(patch)
    axes.text(x + width / 2, y + 0.4, text, ha="center", va="center", fontsize=10.5)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY, bend: float = 0
) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=13,
            color=colour,
            connectionstyle=style,
            linewidth=1.4,
        )
    )


def chain() -> Figure:
    """Draw one training step: what is learned, what is frozen, where the gradient goes."""
    figure, axes = _canvas(9.4, 3.5)
    steps = ("codes\nZ, c", "reverse\nprocess, S steps", "decode", "augment", "match")
    for number, text in enumerate(steps):
        learned = number == 0
        _box(axes, 0.2 + 1.85 * number, 1.35, text, GREEN if learned else BLUE)
        if number:
            _arrow(axes, (1.85 * number - 0.07, 1.75), (1.85 * number + 0.12, 1.75))
    _box(axes, 7.6, 2.55, "real images", ORANGE)
    _arrow(axes, (8.35, 2.5), (8.35, 2.25), ORANGE)
    _box(axes, 0.2, 2.55, "noise n (fixed)", GREY)
    _arrow(axes, (1.75, 2.7), (2.3, 2.32))
    _arrow(axes, (8.3, 1.25), (1.0, 1.25), RED, bend=-0.16)
    axes.text(4.7, 0.35, "gradient of the loss: through all of it, to Z and c alone", ha="center", color=RED)
    axes.text(1.0, 1.05, "learned", ha="center", color=GREEN)
    axes.text(4.4, 2.4, "frozen latent diffusion model", ha="center", color=BLUE)
    axes.plot([2.1, 5.4], [2.28, 2.28], color=BLUE, linewidth=1)
    return figure


def headlines() -> Figure:
    """Draw what photographs and their sets teach (docs/results, "Photographs"): by images, and by bytes."""
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 3.4), layout="constrained", width_ratios=(1, 0.8, 1.3))
    sets = {
        "one image a class": {
            "random real": (14.2, 2.2, GREY),
            "pixel DM": (21.0, 0.8, ORANGE),
            "LD3M DM": (21.2, 1.2, BLUE),
            "LD3M DC": (24.4, 0.5, BLUE),
            "pixel MTT": (26.5, 0.8, ORANGE),
            "autoencoder MTT": (26.6, 0.3, GREEN),
            "LD3M MTT": (26.7, 0.5, BLUE),
        },
        "ten images a class": {
            "random real": (29.2, 1.4, GREY),
            "plain samples": (31.6, 1.3, GREY),
            "pixel MTT": (30.9, 1.0, ORANGE),
            "autoencoder MTT": (32.9, 0.4, GREEN),
            "LD3M MTT": (33.8, 1.1, BLUE),
            "pixel*": (33.2, 0.5, ORANGE),
            "autoencoder*": (34.8, 0.9, GREEN),
            "LD3M*": (35.6, 1.2, BLUE),
        },
    }
    for place, (title, rows) in zip(axes[:2], sets.items(), strict=True):
        means, deviations, colours = zip(*rows.values(), strict=True)
        bars = place.barh(list(rows), means, xerr=deviations, color=colours, capsize=3)
        place.bar_label(bars, fmt="%.1f", fontsize=9, label_type="center", color="white")
        place.set_title(title, fontsize=11)
        place.set_xlim(0, 42)
    axes[1].set_xlabel("* MTT, experts with momentum", fontsize=9)
    _by_bytes(axes[2])
    figure.supxlabel("accuracy of three unseen networks, %; five seeds", fontsize=11)
    return figure


def _by_bytes(axes: Axes) -> None:
    points = {
        "LD3M, 1 code": (0.686, 26.4, 1.2, BLUE, (-4, -24)),
        "LD3M, 10 codes": (4.296, 33.7, 1.0, BLUE, (7, 3)),
        "without *": (2.885, 32.9, 0.3, GREEN, (-46, -3)),
        "autoencoder,\n10 codes*": (2.877, 35.2, 1.1, GREEN, (-14, 12)),
        "D3": (3.575, 31.0, 0.8, GREEN, (14, -1)),
        "8 WebP": (2.873, 25.9, 1.8, GREY, (7, -7)),
        "16 latents": (4.352, 30.5, 0.9, GREY, (5, -13)),
        "46 latents": (12.426, 40.5, 0.3, GREY, (8, 1)),
        "35 WebP": (12.43, 37.9, 1.2, GREY, (8, -7)),
        "D3, 32 bits": (12.576, 31.1, 0.8, GREEN, (8, 1)),
        "packed pixel MTT": (12.288, 30.4, 0.8, ORANGE, (8, -11)),
        "pixel MTT": (12.288, 26.5, 0.8, ORANGE, (8, -4)),
        "1 random": (12.288, 14.2, 2.2, GREY, (8, -4)),
    }
    for name, (size, mean, deviation, colour, offset) in points.items():
        axes.errorbar(size, mean, deviation, fmt="o", color=colour, capsize=3)
        axes.annotate(name, (size, mean), offset, textcoords="offset points", fontsize=8.5, color=colour)
    axes.set_xlim(-4, 22)
    axes.set_xticks((0, 5, 10, 15))
    axes.set_ylim(10, 46)
    axes.set_xlabel("kB a class", fontsize=9)
    axes.set_ylabel("accuracy, %", fontsize=9)
    axes.set_title("by bytes", fontsize=11)


def skip() -> Figure:
    """Draw the weight of the skip by step, and what it is worth (docs/results, "What is learned, and the skip")."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.3), layout="constrained")
    last = 9
    left.bar(range(last + 1), [(last - i) / last for i in range(last + 1)], color=BLUE, label="Z, the code")
    left.bar(
        range(last + 1),
        [i / last for i in range(last + 1)],
        bottom=[(last - i) / last for i in range(last + 1)],
        color="#c5cae9",
        label="the denoiser's estimate",
    )
    left.set_xticks(range(last + 1), [str(last - i) for i in range(last + 1)])
    left.set_xlabel("k, counted down (S = 10)")
    left.set_title("what the predicted clean latent is made of", fontsize=11)
    left.legend(loc="upper right", fontsize=9)
    names = ("c", "Z", "c and Z")
    for shift, label, colour, rows in (
        (-0.2, "without skip", GREY, ((23.8, 0.7), (24.9, 0.7), (24.2, 0.3))),
        (0.2, "skip: clean", BLUE, ((17.4, 1.7), (25.8, 0.6), (26.1, 0.4))),
    ):
        places = [i + shift for i in range(3)]
        right.bar(
            places,
            [m for m, _ in rows],
            0.38,
            yerr=[s for _, s in rows],
            color=colour,
            label=label,
            capsize=3,
        )
    right.set_xticks(range(3), names)
    right.set_ylim(14, 29)
    right.set_ylabel("accuracy, %")
    right.set_title("what is learned (ImageNette, 64 px, MTT)", fontsize=11)
    right.legend(fontsize=9, ncols=2)
    return figure


def protocols() -> Figure:
    """Draw one set under four protocols (docs/results, "LD3M on handwritten digits" and "Protocols on the digits")."""
    figure, axes = plt.subplots(figsize=(9.4, 3.3), layout="constrained")
    rows = {"quick": (86.9, 63.7), "idc-hard-small": (82.4, 66.9)}
    rows |= {"ddranking-small": (85.9, 68.2), "rded-soft-small": (87.7, 84.4)}
    for shift, index, label, colour in ((-0.2, 0, "distilled", BLUE), (0.2, 1, "random real", ORANGE)):
        bars = axes.bar(
            [i + shift for i in range(4)],
            [row[index] for row in rows.values()],
            0.38,
            color=colour,
            label=label,
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=9)
    axes.set_xticks(range(4), list(rows))
    axes.set_ylabel("accuracy of ConvNet, %")
    axes.set_ylim(40, 100)
    axes.legend(ncols=2, fontsize=9)
    axes.set_title("the same ten digits, the same network, four protocols", fontsize=11)
    return figure


def storage() -> Figure:
    """Draw what is charged for four sets of about the same bytes (docs/results, "D3 on the digits")."""
    figure, axes = plt.subplots(figsize=(9.4, 2.9), layout="constrained")
    parts = (("images", BLUE), ("codes", GREEN), ("decoder", ORANGE), ("labels", RED))
    sets = {
        "LD3M, 4 images per class": (40 * 3072, 0, 0, 40 * 8),
        "D3, hard labels": (0, 80 * 2 * 64 * 4, 19_535 * 4, 80 * 8),
        "D3, soft labels": (0, 80 * 2 * 64 * 4, 19_535 * 4, 80 * 8 + 1_600),
        "39 random real images": (39 * 3072, 0, 0, 39 * 8),
    }
    for row, amounts in enumerate(reversed(sets.values())):
        left = 0
        for (name, colour), amount in zip(parts, amounts, strict=True):
            axes.barh(row, amount, left=left, color=colour, label=name if row == 0 else None)
            left += amount
        axes.text(left + 1500, row, f"{left:,}", va="center", fontsize=10)
    axes.set_yticks(range(len(sets)), list(reversed(sets)))
    axes.set_xlim(0, 142_000)
    axes.set_xlabel("bytes that a user downloads to train")
    axes.legend(ncols=4, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.2), frameon=False)
    return figure


def uploads() -> Figure:
    """Draw what merging costs, and accuracy against bytes of uploads (docs/results, "Federation")."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.1), layout="constrained")
    merged = {"digits, one step": (0.0, 1.4), "digits, ten steps": (-0.3, 3.1)}
    merged |= {"photographs, DM": (1.1, 1.8), "photographs, MTT": (-0.6, 1.1)}
    for row, (mean, interval) in enumerate(reversed(merged.values())):
        left.errorbar([mean], [row], xerr=[interval], fmt="o", color=BLUE, capsize=4)
    left.axvline(0, color=GREY, linewidth=1)
    left.set_yticks(range(len(merged)), list(reversed(merged)))
    left.set_ylim(-0.6, len(merged) - 0.4)
    left.set_xlabel("merged minus whole, points (95 %)")
    sent = {
        "codes, uint8": (8.1, 76.7, 1.6, BLUE, (6, -12)),
        "60 real, WebP": (8.2, 78.7, 3.0, GREY, (6, 6)),
        "codes, float32": (17.3, 76.3, 1.3, BLUE, (6, 6)),
        "images, uint8": (30.7, 76.3, 1.3, ORANGE, (6, 6)),
        "real, PNG": (11.3, 51.6, 2.1, GREY, (6, 6)),
        "real, uint8": (30.7, 51.6, 2.1, GREY, (6, 6)),
    }
    for name, (amount, mean, deviation, colour, offset) in sent.items():
        right.errorbar([amount], [mean], yerr=[deviation], fmt="o", color=colour, capsize=4)
        right.annotate(name, (amount, mean), offset, textcoords="offset points", fontsize=9)
    right.set_xlim(5, 40)
    right.set_xlabel("kB that two clients send (ten digits)")
    right.set_ylabel("accuracy, %")
    return figure


def distribution() -> Figure:
    """Draw a distribution as a set: Gaussians, a decoder that is trained with them, means and draws."""
    figure, axes = _canvas(9.4, 2.9)
    for number, (x, y) in enumerate(((0.9, 2.1), (1.5, 1.2), (0.8, 0.6))):
        for size in (2600, 1300, 400):
            axes.scatter([x], [y], s=size, color=(BLUE, ORANGE, GREEN)[number], alpha=0.22, linewidths=0)
        axes.scatter([x], [y], s=18, color="black")
    axes.text(1.1, 2.65, "per class a few Gaussians", ha="center")
    _box(axes, 3.2, 1.05, "decoder", GREEN)
    axes.text(3.95, 2.1, "trained with them", ha="center", color=GREEN)
    _arrow(axes, (2.2, 1.45), (3.1, 1.45))
    _box(axes, 6.0, 1.75, "means: the images that are stored", BLUE, 3.1)
    _box(axes, 6.0, 0.45, "draws: fresh images in every epoch", BLUE, 3.1)
    _arrow(axes, (4.8, 1.6), (5.9, 2.15))
    _arrow(axes, (4.8, 1.35), (5.9, 0.85))
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "chain": chain,
    "headlines": headlines,
    "skip": skip,
    "protocols": protocols,
    "bytes": storage,
    "uploads": uploads,
    "distribution": distribution,
    **STARTS,
}
"""File name without ending -> what draws it."""


def main(folder: Path) -> None:
    """Write all figures to a folder; the same bytes for the same version of Matplotlib."""
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
