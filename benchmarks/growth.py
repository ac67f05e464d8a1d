"""How time and memory of a step grow with S, images per class, classes and image size, ours and the two-pass scheme.

    python -m benchmarks.growth [--json] [--out docs/growth.svg] [--repetitions 3] [--device cpu]

One DM step at a time, of `benchmarks.step`, over noise and a small prior with random weights: S = 5, one image per
class, ten classes, 32 px and eight real images a class, of which one is changed. Seconds are medians over interleaved
repetitions, memory the most that tensors hold at one time. The two-pass scheme is that of the released code: chunks of
ten images, a checkpoint over each call of the network. Ours has the same checkpoints and chunks here, so that the
memory of both is compared at equal recomputation. With `--out` the four pictures are drawn as one.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import parser_of, show
from benchmarks.memory import peak_mib
from benchmarks.step import Setting, measure, two_pass_step
from benchmarks.worlds import noise_data, random_prior
from ldd.networks import ConvNet
from ldd.objectives import DistributionMatching

PLAIN = {"steps": 5, "ipc": 1, "classes": 10, "size": 32}
GROWN: dict[str, tuple[int, ...]] = {
    "steps": (5, 10, 20, 40),
    "ipc": (1, 3, 10),
    "classes": (10, 50, 200),
    "size": (32, 64, 128),
}
NAMES = {
    "steps": "S",
    "ipc": "images per class",
    "classes": "classes",
    "size": "image size (px)",
}
_REAL = 8


def step_at(repetitions: int, device: torch.device, work: dict[str, int], width: int) -> dict[str, float]:
    """Seconds and peak MiB of both."""
    data = noise_data(
        work["classes"], max(_REAL, work["ipc"]), work["size"]
    )  # codes start at different images
    with tempfile.TemporaryDirectory() as folder:
        prior = random_prior(Path(folder) / "prior", "small", data.classes, work["size"])
        setting = Setting(
            prior,
            work["steps"],
            _REAL,
            work["ipc"],
            device,
            data=data,
            objective=DistributionMatching(real_batch=_REAL, network=partial(ConvNet, width=width)),
            chunk_size=10,
            checkpointing="always",
        )
    ways = {"ours": setting.step, "two_pass": partial(two_pass_step, setting)}
    seconds = measure(ways, repetitions, device)
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **{f"{name}_peak_mib": peak_mib(way, device) for name, way in ways.items()},
    }


def measure_all(
    grown: dict[str, tuple[int, ...]], repetitions: int, device: torch.device, width: int
) -> dict[str, float]:
    """All figures, as `<what>_<value>_<figure>`."""
    figures: dict[str, float] = {}
    plain: dict[str, float] = {}  # is in every column
    for what, values in grown.items():
        for value in values:
            found = plain if value == PLAIN[what] and plain else {}
            found = found or step_at(repetitions, device, {**PLAIN, what: value}, width)
            plain = found if value == PLAIN[what] else plain
            figures |= {f"{what}_{value}_{name}": number for name, number in found.items()}
            print(f"{NAMES[what]} {value}: {', '.join(f'{k} {v:.3g}' for k, v in found.items())}", flush=True)
    return figures


def draw(figures: dict[str, float], grown: dict[str, tuple[int, ...]], path: str) -> None:
    """Draw time above and memory below, a column for each thing that grows."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "ldd", "font.size": 10}
    plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}
    pictures, axes = plt.subplots(2, len(grown), figsize=(2.7 * len(grown), 4.6), sharey="row", squeeze=False)
    for column, (what, values) in enumerate(grown.items()):
        for row, (unit, label) in enumerate((("seconds", "seconds a step"), ("peak_mib", "peak MiB"))):
            one: Any = axes[row][column]
            for way, name, colour in (("two_pass", "two passes", "#ef6c00"), ("ours", "ldd", "#3f51b5")):
                line = [figures[f"{what}_{value}_{way}_{unit}"] for value in values]
                one.plot(values, line, marker="o", color=colour, label=name)
            one.set(xscale="log", yscale="log")
            one.set_xticks(values, map(str, values))
            one.minorticks_off()
            if row:
                one.set_xlabel(NAMES[what])
            if not column:
                one.set_ylabel(label)
    axes[0][0].legend(frameon=False)
    pictures.tight_layout()
    pictures.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the figures, and draw them."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", default=None, help="the picture, an SVG file")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--width", type=int, default=32, help="of the matching network")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    figures = measure_all(GROWN, arguments.repetitions, torch.device(arguments.device), arguments.width)
    show(figures, arguments.json)
    if arguments.out:
        draw(figures, GROWN, arguments.out)


if __name__ == "__main__":
    main()
