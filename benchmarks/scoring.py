"""Losses of images under a classifier: `LossPruner` against a loop as published, same images and network, in one run.

    python -m benchmarks.scoring --root ROOT --weights FILE [--json] [--classifier mobilenet_v2] [--images 400]

The loop is that of the released scoring script: torchvision's `ImageFolder` resizes to 224 x 224 and normalises, a
`DataLoader` without workers gives one image at a time, a forward pass that records gradients, cross-entropy. Both take
turns on the same slices of the images, and both rates are totals over all turns. `--threads` is torch's for the loop,
and the number of threads of the scorer; files are in the page cache for both. `--weights random` measures without
trained weights: the times are the same, the losses mean nothing.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.models import get_model
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from benchmarks.figures import show
from ldd.data import FolderSource, Item, LossPruner
from ldd.data.pruning.scoring import Scorer
from ldd.networks.pretrained import class_outputs
from ldd.runtime.devices import find_device


def published_loop(network: nn.Module, images: Dataset[tuple[Tensor, int]], targets: list[int]) -> Tensor:
    """Losses (N,) one by one."""
    losses = []
    device = next(network.parameters()).device
    for (pixels, _), target in zip(DataLoader(images, batch_size=1), targets, strict=True):
        logits = network(pixels.to(device))
        losses.append(F.cross_entropy(logits, torch.tensor([target], device=device)).item())
    return torch.tensor(losses, dtype=torch.float64)


def weights_file(classifier: str, weights: str, folder: str) -> str:
    """`weights`, or for "random" a state dict with random values in `folder`."""
    if weights != "random":
        return weights
    torch.manual_seed(0)
    path = Path(folder) / f"{classifier}.pt"
    torch.save(get_model(classifier, weights=None).state_dict(), path)
    return str(path)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder with train/<wnid>/ and val/<wnid>/")
    parser.add_argument("--weights", required=True, help="published by name, a state dict, or random")
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
    source = FolderSource(arguments.root)
    items = source.items("train")
    items = items[:: max(1, len(items) // arguments.images)][: arguments.images]
    with TemporaryDirectory() as folder:
        pruner = LossPruner(
            0.5,
            classifier=arguments.classifier,
            weights=weights_file(arguments.classifier, arguments.weights, folder),
            resize=(224, 224),
            crop=224,
            mean=tuple(arguments.mean),
            std=tuple(arguments.std),
            cache_dir=None,
        )
        show(compare(arguments, source, items, pruner), arguments.json)


def _scorer(
    arguments: argparse.Namespace, source: FolderSource, items: list[Item], pruner: LossPruner
) -> tuple[Scorer, list[int]]:
    """A scorer, and the images' classes as its network numbers them."""
    outputs = class_outputs(source.classes, pruner.classifier.outputs, arguments.classifier)
    batch_size = arguments.batch_size if arguments.batch_size == "auto" else int(arguments.batch_size)
    network, device = pruner.classifier.load(), find_device(arguments.device)
    scorer = Scorer(device, network, pruner.preprocessing, batch_size, arguments.precision)
    return scorer, [int(outputs[item.label]) for item in items]


def rate(
    arguments: argparse.Namespace, source: FolderSource, items: list[Item], pruner: LossPruner
) -> dict[str, float]:
    """Images a second of ours alone, over all images."""
    scorer, targets = _scorer(arguments, source, items, pruner)
    started = time.perf_counter()
    count = sum(len(batch) for batch in scorer(source, items, targets))
    return {"images_per_second": count / (time.perf_counter() - started)}


def compare(
    arguments: argparse.Namespace, source: FolderSource, items: list[Item], pruner: LossPruner
) -> dict[str, float]:
    """Figures of both on the same images."""
    device = find_device(arguments.device)
    scorer, targets = _scorer(arguments, source, items, pruner)
    network = pruner.classifier.load().to(device)
    transform = Compose([Resize((224, 224)), ToTensor(), Normalize(arguments.mean, arguments.std)])
    images = ImageFolder(str(Path(arguments.root) / "train"), transform)
    places = {
        str(Path(path).relative_to(arguments.root)): place for place, (path, _) in enumerate(images.samples)
    }

    def slow(part: list[Item], wanted: list[int]) -> Tensor:
        return published_loop(network, Subset(images, [places[item.key] for item in part]), wanted)

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
    return {
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


if __name__ == "__main__":
    main()
