"""A run's codes as an artefact: what it says of itself beside its images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ldd.distilled import DistilledSet
from ldd.evaluation.protocols import dotted_name

if TYPE_CHECKING:
    from ldd.distiller import Distiller


def describe(
    distiller: "Distiller", images: Tensor, prior: Mapping[str, Any], pruning: Mapping[str, Any] | None
) -> DistilledSet:
    """The set of a run as it is now, with the labels that the run gives and what it has cost.

    Args:
        distiller: its codes, decoder and settings.
        images: of its codes, (N, 3, H, W) uint8 on the CPU.
        prior: what `ldd.priors.identify` says of its frozen weights.
        pruning: what was left out of the real images, and by what, or None.
    """
    spec, codes = distiller.data_spec, distiller.codes
    factories = distiller.objective.matching_networks()
    seen = {type(factory(spec.num_classes, spec.image_size)) for factory in factories}
    described = DistilledSet.from_images(
        images,
        codes.labels.cpu(),
        spec.classes,
        mean=spec.mean,
        std=spec.std,
        codes=codes.tensors(),
        decoder=distiller.prior.trained() or None,
        seed=distiller.seed,
        test_split_fingerprint=spec.fingerprint,
        licences={"prior": distiller.prior.licence, "data": spec.licence},
        seen_networks=sorted(map(dotted_name, seen)),
        prior=prior,
    )
    described.manifest["step"] = int(distiller.num_steps_done)
    if pruning:
        described.manifest["pruning"] = pruning
    return distiller.ledger.written(described)
