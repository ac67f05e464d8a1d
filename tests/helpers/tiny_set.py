"""A small distilled set of random images."""

import torch

from ldd.artefact.set import DistilledSet
from ldd.images import ClassInfo


def classes_of(wnids):
    return [ClassInfo(label, 100 + label, wnid, f"name {wnid}") for label, wnid in enumerate(wnids)]


def random_images(n, size=8, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def tiny_set(wnids=("n03", "n01", "n02"), images_per_class=2, size=8, **facts):
    """Class-major; the wnids are out of the alphabet's order on purpose."""
    labels = torch.arange(len(wnids)).repeat_interleave(images_per_class)
    images = random_images(len(labels), size)
    return DistilledSet.from_images(images, labels, classes_of(wnids), **facts)


def full_set():
    """With everything that a set may hold."""
    return tiny_set(
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        soft_labels=torch.full((6, 3), 1 / 3).half(),
        weights=torch.arange(6.0),
        codes={"latents": torch.linspace(-3, 3, 96).view(6, 4, 2, 2), "labels": torch.arange(6)},
        decoder={"0.weight": torch.linspace(-1, 1, 25).view(5, 5).bfloat16()},
        config={"model": {"lr": 0.1, "sizes": (1, 2)}, "data": None},
        seed=7,
        test_split_fingerprint="abc123",
        licences={"prior": "MIT", "data": "CC BY 4.0"},
        seen_networks=["ldd.networks.ConvNet"],
        stages={
            "distil": {"seconds": 1.5, "peak_memory_mib": 900.0},
            "prune": {"seconds": 2, "decodes": None},
        },
    )
