"""What a data set of ImageNet-1K's size asks of each stage: memory and CPU seconds, and how both grow with its images.

    python -m benchmarks.thousand_classes [--images 10000,100000,1000000] [--stages all] [--folder FOLDER] [--json]

The images are synthetic: `--images` training images of `--classes` classes, a twentieth as many more for the selection
split and a twenty-fifth for the test, 32 x 32 pixels that follow from their names. Listing, decoding into a cache,
hashes, scores, pruning, draws, experts and evaluation are those of every run. `tree` lists a real tree of folders: hard
links of a few JPEG files, as many as images.

Each stage is a process of its own. Seconds are of its CPUs, set-up left out. Memory is the most of it that belongs to
no file (`RssAnon`, read every 5 ms from outside), less that of the process when it starts, with its imports done. The
exponent of a power law is fitted to both by least squares of the logarithms: 1 is linear growth. A busy machine changes
no CPU seconds but those that caches of the processor cost. `--stages` chooses some; a million images take 4 GB of disk.
"""

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import islice
from math import log
from pathlib import Path
from statistics import linear_regression
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import get_model

from benchmarks.figures import parser_of, show
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData, FolderSource, Item
from ldd.data.fingerprints import content_hashes, fingerprint as fingerprint_of
from ldd.data.pruning import LossPruner
from ldd.data.sources import Source, Split
from ldd.data.splits import pixels_key
from ldd.disk.files import write_tensors
from ldd.evaluation import Protocol, evaluate
from ldd.evaluation.baselines.equal import baselines_by_name
from ldd.experts.recording import record_experts
from ldd.images import ClassInfo
from ldd.networks import ConvNet

SIZE = 32  # pixels
_MIB = 2**20
_ORIGINALS = 30  # files of which a tree has links: a file system allows some 65,000 of each


def synthetic_source(num_classes: int, per_class: int) -> Callable[[str | None], Source]:
    """Return a factory of a source with so many training images in each class."""

    class Synthetic(Source):
        licence = "none: made of numbers"

        def __init__(self, root: str | None) -> None:
            self.classes = [ClassInfo(k, k, f"class-{k:04d}", f"class {k}") for k in range(num_classes)]
            self._counts = {
                "train": per_class,
                "selection": max(1, per_class // 20),
                "test": max(1, per_class // 25),
            }
            rows = np.random.default_rng(0).integers(0, 192, (num_classes, 3 * SIZE * SIZE))
            self._patterns = rows.astype(np.uint8)

        def class_items(self, split: Split, label: int) -> list[Item]:
            folder = f"{split}/class-{label:04d}/image_"
            return [Item(f"{folder}{i:08d}.JPEG", label) for i in range(self._counts[split])]

        def read(self, item: Item) -> Tensor:
            number = int(item.key[-13:-5])
            own = number.to_bytes(8, "little")[:3] + item.key[:3].encode()  # no two are equal
            pixels = self._patterns[item.label].copy()
            pixels[: len(own)] = np.frombuffer(own, np.uint8)
            return torch.from_numpy(pixels.reshape(3, SIZE, SIZE))

        def stamp(self, item: Item) -> str:
            return "3072"

    return Synthetic


class World:
    """What stages share: the folder of caches, and the data in it."""

    def __init__(self, folder: Path, images: int, num_classes: int) -> None:
        self.folder, self.images, self.num_classes = folder, images, num_classes
        self.source = synthetic_source(num_classes, images // num_classes)

    def data(self, keep: float | None = None) -> DistillationData:
        """Return the data, not set up, with half of the training images kept or all."""
        pruner = None if keep is None else self.pruner(keep)
        return DistillationData(
            self.source, image_size=SIZE, cache_dir=str(self.folder / "cache"), pruner=pruner
        )

    def pruner(self, keep: float) -> LossPruner:
        """Return a pruner by the loss of torchvision's smallest network, with random weights."""
        weights = self.folder / "classifier.safetensors"
        if not weights.exists():
            torch.manual_seed(0)
            network = get_model("shufflenet_v2_x0_5", num_classes=self.num_classes)
            write_tensors(weights, dict(network.state_dict()))
        scores = str(self.folder / "scores")
        return LossPruner(
            keep, classifier="shufflenet_v2_x0_5", weights=str(weights), resize=SIZE, crop=SIZE, batch_size=256,
            precision="float32", cache_dir=scores,
        )  # fmt: skip


Stage = Callable[[World], Iterator[None]]
"""Sets up, yields where the measured part begins, and does it."""


def listing(world: World) -> Iterator[None]:
    """List all splits once."""
    source = world.source(None)
    yield
    for split in ("train", "selection", "test"):
        source.items(split)


def decode(world: World) -> Iterator[None]:
    """Decode all splits into the cache."""
    yield
    world.data().prepare_data()


def fingerprint(world: World) -> Iterator[None]:
    """Hash the contents of all images."""
    data = world.data()
    data.setup()
    yield
    data.fingerprints  # noqa: B018


def start(world: World) -> Iterator[None]:
    """Start a run on a warm cache: list, find and map the images, and compare fingerprints."""
    yield
    world.data().setup("fit")


def score(world: World) -> Iterator[None]:
    """Score the training images by a classifier."""
    data = world.data()
    data.setup()
    items = data.source.items("train")
    yield
    world.pruner(0.5).score(data.source, items, data.spec, 0)


def prune(world: World) -> Iterator[None]:
    """Start a run that keeps half of the training images, with their scores known."""
    yield
    world.data(0.5).setup("fit")


def draw(world: World) -> Iterator[None]:
    """Draw ten images of each class of what is kept, ten times."""
    data = world.data(0.5)
    data.setup()
    yield
    for step in range(10):
        labels = range(world.num_classes)
        some = min(10, min(data.core_set.counts))
        draws = [torch.Generator().manual_seed(step * world.num_classes + label) for label in labels]
        data.core_set.gathered(data.core_set.draw_places(labels, some, draws))


def experts(world: World) -> Iterator[None]:
    """Record one expert of one epoch on what is kept."""
    data = world.data(0.5)
    data.setup()
    yield
    record_experts(
        data, partial(ConvNet, width=8), 1, epochs=1, batch_size=512, out=str(world.folder / "experts"),
        progress=False,
    )  # fmt: skip


def evaluation(world: World, *names: str) -> Iterator[None]:
    """Evaluate a set of one image a class, with the full training split and random images as baselines."""
    data = world.data()
    data.setup()
    images, labels = data.train_images.draw_set([1] * world.num_classes, "one a class", 0, "benchmark")
    one = DistilledSet.from_images(images, labels, data.classes, mean=data.spec.mean, std=data.spec.std)
    protocol = Protocol("benchmark", 2, 2, 512, 0.01, 0.9, 0.0, (), {})
    yield
    evaluate(
        one, {"ConvNet": partial(ConvNet, width=8)}, data, protocol, 1,
        baselines=baselines_by_name(",".join(names or ("random_real", "full_real"))),
        records=world.folder / "evaluated", num_workers=1, device=torch.device("cpu"), progress=False,
    )  # fmt: skip


def chosen(world: World) -> Iterator[None]:
    """Evaluate it against the images of least loss and those nearest to the centres of their classes."""
    yield from evaluation(world, "easy_real", "nearest_real")


def tree(world: World) -> Iterator[None]:
    """List a real tree of folders, in natural order, and find the key of its cache."""
    root = _grown(world)
    yield
    source = FolderSource(str(root))
    for split in ("train", "selection", "test"):
        pixels_key(source, source.items(split), SIZE)


def tree_hashes(world: World) -> Iterator[None]:
    """Hash all files of that tree: each is read once."""
    yield from _tree_fingerprint(world)


def tree_again(world: World) -> Iterator[None]:
    """Find the hashes of that tree again: no file is read."""
    yield from _tree_fingerprint(world)


def _tree_fingerprint(world: World) -> Iterator[None]:
    source = FolderSource(str(_grown(world)))
    items = source.items("train")
    yield
    fingerprint_of(items, content_hashes(source, items))


def _grown(world: World) -> Path:
    """Make the tree, of hard links, unless it is there."""
    root = world.folder / "tree"
    if (root / "done").exists():
        return root
    root.mkdir()
    originals = [root / f"{number}.jpg" for number in range(_ORIGINALS)]
    for number, path in enumerate(originals):
        Image.new("RGB", (16, 16), (number, 255 - number, 128)).save(path)
    each = world.images // world.num_classes
    for part, count in (("train", each), ("val", max(1, each // 25))):
        for label in range(world.num_classes):
            folder = root / part / f"class-{label:04d}"
            folder.mkdir(parents=True)
            for i in range(count):
                os.link(originals[(label * count + i) % _ORIGINALS], folder / f"image_{i:08d}.jpg")
    (root / "done").touch()
    return root


STAGES: dict[str, Stage] = {
    stage.__name__: stage
    for stage in (
        listing, decode, fingerprint, start, score, prune, draw, experts, evaluation, chosen, tree, tree_hashes,
        tree_again,
    )
}  # fmt: skip


def _run(stage: str, world: World, pipe: Any) -> None:  # noqa: ANN401
    """Do one stage in this process, and send its CPU seconds."""
    home = world.folder / ("home-of-tree" if stage.startswith("tree") else "home")  # where hashes are kept
    home.mkdir(exist_ok=True)
    os.environ["HOME"] = str(home)
    pipe.recv()
    with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
        steps = STAGES[stage](world)
        next(steps)
        before = time.process_time()
        for _ in steps:
            pass
    pipe.send(time.process_time() - before)


def anonymous_bytes(process: int) -> int:
    """Return the resident memory of a process that belongs to no file, shared memory included."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return sum(int(facts[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in facts)


def measure(stage: str, world: World) -> tuple[float, float]:
    """Return the CPU seconds and the peak MiB of a stage."""
    context = multiprocessing.get_context("fork")  # of a process that has imported all, and done nothing
    pipe, theirs = context.Pipe()
    process = context.Process(target=_run, args=(stage, world, theirs))
    process.start()
    theirs.close()
    assert process.pid is not None
    base = most = anonymous_bytes(process.pid)
    pipe.send("go")
    while not pipe.poll(0.005):
        most = max(most, anonymous_bytes(process.pid))
    try:
        return pipe.recv(), (most - base) / _MIB
    except EOFError:
        raise SystemExit(f"{stage} of {world.images:,} images failed") from None
    finally:
        process.join()


def exponent(sizes: list[int], values: list[float]) -> float:
    """Return the slope of the logarithms: b of values that grow as sizes ** b."""
    return linear_regression([log(size) for size in sizes], [log(max(value, 1e-3)) for value in values]).slope


def fitted(table: dict[str, dict[int, tuple[float, float]]]) -> dict[str, float]:
    """Return all figures by name: of each size, per million images at the largest, and the exponents."""
    figures: dict[str, float] = {}
    for stage, by_size in table.items():
        sizes = sorted(by_size)
        for what, place in (("cpu_seconds", 0), ("peak_mib", 1)):
            values = [by_size[size][place] for size in sizes]
            figures |= {f"{stage}_{what}_{size}": value for size, value in zip(sizes, values, strict=True)}
            figures[f"{stage}_{what}_per_million"] = values[-1] * 1e6 / sizes[-1]
            for first, second in zip(sizes, islice(sizes, 1, None), strict=False):
                pair = [by_size[size][place] for size in (first, second)]
                figures[f"{stage}_{what}_exponent_{first}_to_{second}"] = exponent([first, second], pair)
            if len(sizes) > 1:
                figures[f"{stage}_{what}_exponent"] = exponent(sizes, values)
    return figures


def main() -> None:
    """Measure, size by size."""
    parser = parser_of(__doc__)
    parser.add_argument("--images", default="10000,100000,1000000", help="training images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument(
        "--stages", default="all", help=f"some of {', '.join(STAGES)}; those after decode need it"
    )
    parser.add_argument(
        "--folder", type=Path, help="where caches are made, and stay; a temporary folder if none"
    )
    options = parser.parse_args()
    stages = list(STAGES) if options.stages == "all" else options.stages.split(",")
    table: dict[str, dict[int, tuple[float, float]]] = {stage: {} for stage in stages}
    for images in map(int, options.images.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if options.folder is None else options.folder / str(images)
            folder.mkdir(parents=True, exist_ok=True)
            world = World(folder, images, options.classes)
            for stage in stages:
                table[stage][images] = measure(stage, world)
                seconds, peak = table[stage][images]
                print(f"{images:>9,} {stage:<12} {seconds:9.2f} CPU s {peak:9.1f} MiB", flush=True)
    figures = fitted(table)
    if options.json:
        print(json.dumps(figures))
    else:
        show({name: value for name, value in figures.items() if "exponent" in name}, False)


if __name__ == "__main__":
    main()
