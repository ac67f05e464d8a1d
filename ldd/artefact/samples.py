"""Plain samples of a prior, as a grid to look at or as a set to train networks on."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torchvision.transforms.v2.functional import InterpolationMode, resize

from ldd.artefact.picture import MAX_IMAGES, draw_grid
from ldd.artefact.set import DistilledSet
from ldd.disk.files import atomic_file
from ldd.errors import UserError
from ldd.images import ClassInfo, DataSpec
from ldd.priors.latent_diffusion import LatentDiffusionPrior
from ldd.priors.sampling import PriorSampler
from ldd.runtime.ledger import DECODES, SAMPLE, measured


def write_samples_grid(
    path: Path, prior: LatentDiffusionPrior, classes: Sequence[ClassInfo], sampler: PriorSampler
) -> None:
    """Draw a column of samples per class and write the picture as PNG."""
    if len(classes) * sampler.per_class > MAX_IMAGES:
        raise UserError(
            f"--classes names {len(classes)} classes, which at --per-class {sampler.per_class} is more than the "
            f"{MAX_IMAGES} images of a grid; choose fewer"
        )
    named = [replace(info, label=place) for place, info in enumerate(classes)]
    with atomic_file(path) as beside:  # opened first: an unwritable place shows before the sampling
        draw_grid(*sampler.of_classes(prior, classes), named).save(beside, format="PNG")


def sampled_set(
    prior: LatentDiffusionPrior, spec: DataSpec, sampler: PriorSampler, source: str
) -> DistilledSet:
    """Draw samples of the data's classes as a distilled set, resized to the data's image size as real images are."""
    started = time.perf_counter()
    images, labels = sampler.of_classes(prior, spec.classes)
    if images.shape[-1] != spec.image_size:
        images = resize(images, [spec.image_size] * 2, InterpolationMode.BILINEAR, antialias=True)
    cost = measured(time.perf_counter() - started, next(prior.parameters()).device)
    return DistilledSet.from_images(
        images,
        labels,
        spec.classes,
        mean=spec.mean,
        std=spec.std,
        config={"prior": source, "drawn_at": prior.image_size, **asdict(sampler)},
        seed=sampler.seed,
        test_split_fingerprint=spec.fingerprint,
        licences={"prior": prior.licence, "data": spec.licence},
        stages={SAMPLE: {**cost, DECODES: len(images)}},
    )
