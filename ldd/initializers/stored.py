"""Codes that start where another run left them."""

from dataclasses import replace
from typing import final

import torch

from ldd.artefact.classes import of_classes
from ldd.artefact.identity import identify
from ldd.artefact.manifest import NAME, Manifest, find_artefact
from ldd.artefact.set import DistilledSet
from ldd.codes import Codes
from ldd.data.real import RealImages
from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.initializers.base import Initializer, spec_of
from ldd.priors import Prior


@final
class StoredCodes(Initializer):
    """Starts from the codes of an artefact and the decoder trained with them, so that distilling goes on.

    A run of some of the set's classes, as a sub-task is one, takes the codes of these: sub-tasks that start from a
    run over all classes begin with one decoder, and keep it where the objective's `lr_decoder` is 0. Of a set
    that `latentdd federate` merged, the codes of all sub-tasks are optimised together: the optional global step.
    Decoders of the sub-tasks that have gone their own ways cannot be continued as one.

    Args:
        path: folder of a distilled set or of a run, `embedded:NAME`, or `hf://user/name`.

    Raises:
        UserError: no set there; codes, prior or decoder that are not this run's, or classes that the set lacks.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Take over codes and decoder; nothing is drawn."""
        stored = DistilledSet.load(self.path)
        if len(stored.manifest.decoders(stored.decoder)) > 1:
            raise UserError(
                f"initializer.path ({self.path}) holds a decoder of each sub-task, which one prior cannot continue; "
                "federate with a frozen prior or one decoder, or continue the sub-tasks"
            )
        wnids = [info.wnid for info in spec_of(real).classes]
        if not {*wnids} <= {info.wnid for info in stored.classes}:
            raise self._refusal("classes")
        stored = of_classes(replace(stored, soft_labels=None, label_top_k=None), wnids)
        tensors, own = stored.codes or {}, codes.tensors()
        recorded = (stored.manifest.get("prior") or {}).get("sha256")
        for what, one, other in (
            ("codes per class", stored.labels.tolist(), codes.labels.tolist()),
            ("codes", _shapes(tensors), _shapes(own)),
            ("frozen weights of the prior", recorded, identify(prior)["sha256"]),
        ):
            if one != other:
                raise self._refusal(what)
        prior.load_trained(stored.decoder or {})
        codes.load_state_dict({**codes.state_dict(), **tensors})

    def networks(self, spec: DataSpec) -> set[str]:
        """Return those that the set has seen."""
        return {*Manifest.read(find_artefact(self.path) / NAME).seen_networks}

    def _refusal(self, what: str) -> UserError:
        return UserError(
            f"initializer.path ({self.path}) holds other {what} than this run has; give the data, images_per_class, "
            "codes and prior of the run that made it"
        )


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
