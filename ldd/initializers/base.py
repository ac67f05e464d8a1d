"""Where codes start."""

from abc import ABC, abstractmethod

import torch

from ldd.codes import Codes
from ldd.data.real import RealImages
from ldd.priors import Prior


class Initializer(ABC):
    """Sets all codes before the first step; with zero steps it is a training-free distiller. Subclasses are final."""

    @abstractmethod
    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Set the latents of `codes` in place.

        Args:
            codes: N codes, class-major, on the prior's device.
            prior: the frozen prior.
            real: the core-set.
            generator: CPU generator; the same on every rank.
        """
