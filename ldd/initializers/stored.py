"""Codes that start where another run left them."""

from typing import final

import torch

from ldd.artefact.identity import identify
from ldd.artefact.manifest import SUBTASKS
from ldd.artefact.set import DistilledSet
from ldd.codes import Codes
from ldd.data.real import RealImages
from ldd.errors import UserError
from ldd.initializers.base import Initializer, spec_of
from ldd.priors import Prior


@final
class StoredCodes(Initializer):
    """Starts from the codes of an artefact and the decoder trained with them, so that distilling goes on.

    Of a set that `latentdd federate` merged, the codes of all sub-tasks are then optimised together: the optional
    global step in front of a shared frozen prior. Decoders of the sub-tasks cannot be continued as one.

    Args:
        path: folder of a distilled set or of a run, `embedded:NAME`, or `hf://user/name`.

    Raises:
        UserError: no set there; codes, classes, prior or decoder that are not this run's.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Take over codes and decoder; nothing is drawn."""
        stored = DistilledSet.load(self.path)
        tensors, own = stored.codes or {}, codes.tensors()
        theirs = [info.wnid for info in stored.classes]
        ours = [info.wnid for info in spec_of(real).classes]
        recorded = (stored.manifest.get("prior") or {}).get("sha256")
        for what, one, other in (
            ("classes", theirs, ours),
            ("codes per class", stored.labels.tolist(), codes.labels.tolist()),
            ("codes", _shapes(tensors), _shapes(own)),
            ("frozen weights of the prior", recorded, identify(prior)["sha256"]),
        ):
            if one != other:
                raise UserError(
                    f"initializer.path ({self.path}) holds other {what} than this run has; give the data, "
                    "images_per_class, codes and prior of the run that made it"
                )
        if len(stored.manifest.get(SUBTASKS) or []) > 1 and stored.decoder:
            raise UserError(
                f"initializer.path ({self.path}) holds a decoder of each sub-task, which one prior cannot continue; "
                "federate with a frozen prior, or continue the sub-tasks"
            )
        prior.load_trained(stored.decoder or {})
        codes.load_state_dict({**codes.state_dict(), **tensors})


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
