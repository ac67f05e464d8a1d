"""Score tables and image folders that the pruning tests share."""

import hashlib

import numpy as np
import torch
from PIL import Image

from ldd.data import Item, Source
from ldd.data.pruning import ScoreFacts, ScoreTable
from ldd.images import ClassInfo, DataSpec


def class_infos(count):
    return [ClassInfo(label=i, id=i, wnid=f"c{i}", name=f"class {i}") for i in range(count)]


def spec_of(source, image_size=32):
    return DataSpec(source.classes, image_size, (0.5,) * 3, (0.5,) * 3, source.fingerprint("test"))


def table_of(*losses, paths=None, facts=None):
    """A table with the losses of each class."""
    labels = [label for label, group in enumerate(losses) for _ in group]
    paths = paths or [f"train/c{label}/{i:04d}.png" for i, label in enumerate(labels)]
    items = [Item(path, label) for path, label in zip(paths, labels, strict=True)]
    hashes = [hashlib.sha256(path.encode()).hexdigest() for path in paths]
    values = np.array([value for group in losses for value in group], dtype=np.float64)
    return ScoreTable.build(
        items, hashes, class_infos(len(losses)), facts or ScoreFacts(), values, loss=values, margin=-values
    )


class NoiseSource(Source):
    """Images of noise, a class each in its own colour, without files."""

    licence = "none"

    def __init__(self, *counts, size=40):
        self.classes = class_infos(len(counts))
        self.counts = counts
        self.size = size

    def class_items(self, split, label):
        return [Item(f"{split}/c{label}/{i:03d}", label) for i in range(self.counts[label])]

    def read(self, item):
        seed = int.from_bytes(hashlib.sha256(item.key.encode()).digest()[:6], "little")
        noise = torch.randint(
            0, 128, (3, self.size, self.size), generator=torch.Generator().manual_seed(seed)
        )
        noise[item.label % 3] += 100
        return noise.to(torch.uint8)

    def stamp(self, item):
        return f"{item.key} {self.size}"


def write_folder(root, counts, size=40):
    """`train` and `val` folders of PNG files with these class folders and numbers of images."""
    source = NoiseSource(*counts.values(), size=size)
    for split in ("train", "val"):
        for label, wnid in enumerate(counts):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i, item in enumerate(source.class_items(split, label)):
                Image.fromarray(source.read(item).permute(1, 2, 0).numpy()).save(folder / f"{wnid}_{i}.png")
    return root
