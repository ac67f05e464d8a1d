"""Losses of images under a classifier: `LossPruner` against a loop as published, same images and network, in one run.

    python -m benchmarks.scoring --root ROOT --weights FILE [--json] [--classifier mobilenet_v2] [--images 400]

The loop is that of the released scoring script: one image at a time, decoded by Pillow, resized to 224 x 224 and
normalised by torchvision's transforms, a forward pass that records gradients, cross-entropy. Both take turns on the
same slices of the images, and both rates are totals over all turns. `--threads` is torch's for the loop, and the number
of threads of the scorer; files are in the page cache for both.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from ldd.data import FolderSource, Item, LossPruner
from ldd.data.pruning.classifier import class_outputs
from ldd.data.pruning.scoring import Scorer, find_device


def published_loop(network: nn.Module, transform: Compose, paths: list[Path], targets: list[int]) -> Tensor:
    """Losses (N,) one by one."""
    losses = []
    device = next(network.parameters()).device
    for path, target in zip(paths, targets, strict=True):
        with Image.open(path) as image:
            pixels = transform(image.convert("RGB"))
        logits = network(pixels[None].to(device))
        losses.append(F.cross_entropy(logits, torch.tensor([target], device=device)).item())
    return torch.tensor(losses, dtype=torch.float64)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder with train/<wnid>/ and val/<wnid>/")
    parser.add_argument("--weights", required=True, help="published weights by name, or a state dict")
    parser.add_argument("--classifier", default="mobilenet_v2")
    parser.add_argument("--mean", type=float, nargs=3, default=[0.5, 0.5, 0.5])
    parser.add_argument("--std", type=float, nargs=3, default=[0.5, 0.5, 0.5])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = find_device(arguments.device)

    source = FolderSource(arguments.root)
    items = source.items("train")
    items = items[:: max(1, len(items) // arguments.images)][: arguments.images]
    pruner = LossPruner(
        0.5,
        classifier=arguments.classifier,
        weights=arguments.weights,
        resize=(224, 224),
        crop=224,
        mean=tuple(arguments.mean),
        std=tuple(arguments.std),
        cache_dir=None,
    )
    outputs = class_outputs(source.classes, pruner.classifier.outputs, arguments.classifier)
    targets = [int(outputs[item.label]) for item in items]
    batch_size = arguments.batch_size if arguments.batch_size == "auto" else int(arguments.batch_size)
    scorer = Scorer.on(
        device, pruner.classifier.load(), pruner.preprocessing, batch_size, arguments.precision
    )
    network = pruner.classifier.load().to(device)
    transform = Compose([Resize((224, 224)), ToTensor(), Normalize(arguments.mean, arguments.std)])

    def slow(part: list[Item], wanted: list[int]) -> Tensor:
        return published_loop(network, transform, [Path(arguments.root) / item.key for item in part], wanted)

    def fast(part: list[Item], wanted: list[int]) -> Tensor:
        return torch.cat([batch[:, 0] for batch in scorer(source, part, wanted)])

    seconds = {"published": 0.0, "ldd": 0.0}
    losses: dict[str, list[Tensor]] = {"published": [], "ldd": []}
    slow(items[:4], targets[:4])
    fast(items[:32], targets[:32])
    for turn in range(arguments.turns):
        part, wanted = items[turn :: arguments.turns], targets[turn :: arguments.turns]
        for name, score in (("published", slow), ("ldd", fast)):
            started = time.perf_counter()
            losses[name].append(score(part, wanted))
            seconds[name] += time.perf_counter() - started
    one, other = torch.cat(losses["published"]), torch.cat(losses["ldd"])
    figures = {
        "published_images_per_second": len(items) / seconds["published"],
        "images_per_second": len(items) / seconds["ldd"],
        "scoring_speedup": seconds["published"] / seconds["ldd"],
        "rank_correlation": float(
            torch.corrcoef(torch.stack([one.argsort().argsort(), other.argsort().argsort()]))[0, 1]
        ),
        "largest_difference": float((one - other).abs().max()),
        "images": len(items),
        "threads": arguments.threads,
    }
    for name, value in figures.items():
        print(f"{name:<30}{value:.4g}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
