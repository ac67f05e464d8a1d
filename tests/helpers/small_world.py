"""A data set of striped noise, networks and protocols that train in milliseconds."""

from functools import partial

import torch
import yaml

from ldd.artefact.set import DistilledSet
from ldd.data.real import RealImages
from ldd.images import ClassInfo, DataSpec
from ldd.networks import ConvNet
from ldd.runtime.seeding import generator

SIZE = 32
CLASSES = [
    ClassInfo(label=i, id=10 + i, wnid=f"n{i}", name=name) for i, name in enumerate(("red", "green", "blue"))
]
SPEC = DataSpec(
    classes=CLASSES, image_size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), fingerprint="f" * 32
)
NARROW = partial(ConvNet, width=4, depth=2)


def striped(per_class, seed, strength=60):
    """Noise with a brighter band of rows that names the class: (3 per_class, 3, 32, 32) uint8 with labels."""
    labels = torch.arange(3).repeat_interleave(per_class)
    images = torch.randint(0, 150, (len(labels), 3, SIZE, SIZE), generator=generator(seed))
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 10 * label : 10 * label + 10] += strength
    return images.to(torch.uint8), labels


def real(per_class, seed):
    images, labels = striped(per_class, seed)
    return RealImages(images, labels, [str(i) for i in range(len(labels))], 3)


class SmallData:
    """What an evaluation asks of `DistillationData`."""

    spec = SPEC
    classes = CLASSES
    fingerprints = {"format": "2", "test": "e" * 32}  # noqa: RUF012

    def fingerprints_of(self, *splits):
        return {name: self.fingerprints[name] for name in ("format", *splits)}

    def __init__(self):
        super().__init__()
        self.train_images = real(8, 1)
        self.core_set = self.train_images
        self.selection_images = real(6, 5)
        self.test_images = real(10, 2)

    def setup(self, stage=None):
        """They are there."""


def small_set(per_class=1, seed=3, **facts):
    images, labels = striped(per_class, seed)
    return DistilledSet.from_images(images, labels, CLASSES, mean=SPEC.mean, std=SPEC.std, **facts)


def protocol_content(**changes):
    return {
        "id": "small",
        "epochs": 4,
        "full_data_epochs": 2,
        "batch_size": 16,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "augmentations": ["crop", "color"],
        "networks": {"narrow": {"class_path": "ldd.networks.ConvNet", "init_args": {"width": 4, "depth": 2}}},
        **changes,
    }


def protocol_file(folder, **changes):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(protocol_content(**changes)))
    return str(path)
