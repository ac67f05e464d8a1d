"""Where codes start."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from ldd.codes import Codes
from ldd.data.real import RealImages
from ldd.errors import UserError
from ldd.images import ClassInfo, DataSpec, rows_by_label, to_unit_range
from ldd.priors import Prior
from ldd.runtime import seeding


class Initializer(ABC):
    """Sets all codes before the first step; with zero steps it is a training-free distiller. Subclasses are final.

    Latents are clean ones, such as `Prior.encode` and `Prior.sample` give. A prior with `num_steps: 0` decodes them as
    they are: the set of a run without steps is then the initialiser's own. Any other sends them through its reverse
    process, whose images differ from what the latents themselves decode to.
    """

    @abstractmethod
    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Set the latents of `codes` in place.

        Args:
            codes: N codes, class-major, on the prior's device.
            prior: the frozen prior.
            real: the core-set.
            generator: CPU generator; the same on every rank.
        """

    def networks(self, spec: DataSpec) -> set[str]:
        """Return the dotted names of the networks that guide or choose the codes; they count as seen."""
        return set()


@dataclass(frozen=True)
class ClassStart:
    """One class for which latents are wanted.

    Attributes:
        info: the class.
        count: n, its number of codes.
        prior: the frozen prior.
        real: the core-set, of all classes.
        spec: of the core-set.
        seed: of all draws.
        like: an empty tensor of the codes' device and dtype.
    """

    info: ClassInfo
    count: int
    prior: Prior
    real: RealImages
    spec: DataSpec
    seed: int
    like: Tensor

    def generator(self, purpose: str) -> torch.Generator:
        """Return the CPU generator derived from (seed, purpose, class)."""
        return seeding.generator(self.seed, purpose, self.info.wnid)

    def rows(self, count: int) -> Tensor:
        """Return the class's row of the prior, (count,) int64."""
        return self.prior.rows([self.info]).expand(count)

    def images(self, most: int | None = None) -> Tensor:
        """Return the real images of the class (M, 3, H, W) uint8, `most` random ones if there are more."""
        images = self.real.of_class(self.info.label)
        if most is not None and most < len(images):
            images = images[torch.randperm(len(images), generator=self.generator("encoded"))[:most]]
        return images

    def encodings(self, chunk_size: int, most: int | None = None, *, drawn: bool = False) -> Tensor:
        """Return latents (M, c, h, w) of `images(most)`: the encoder's modes, or `drawn` from its posterior."""
        encode: Callable[[Tensor], Tensor] = self.prior.encode
        if drawn:
            encode = partial(self.prior.draw_encoding, generator=self.generator("posterior"))
        chunks = self.images(most).split(chunk_size)
        return torch.cat([encode(to_unit_range(chunk).to(self.like)) for chunk in chunks])


class ClassInitializer(Initializer, ABC):
    """Sets the codes class by class. Subclasses are final; they say what they need of a prior.

    Attributes:
        encodes: whether it encodes real images.
        samples: whether it samples or inverts.
    """

    encodes: bool = True
    samples: bool = True

    @final
    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Set the latents of each class; its draws follow from one number of `generator` and the class."""
        check_prior(self, prior, encodes=self.encodes, samples=self.samples)
        spec, seed = spec_of(real), int(torch.randint(2**62, (), generator=generator))
        like = torch.empty(0, device=codes.labels.device, dtype=codes.dtype)
        for label, rows in rows_by_label(codes.labels):
            start = ClassStart(spec.classes[label], len(rows), prior, real, spec, seed, like)
            codes.set_latents(rows, self.latents(start))

    @abstractmethod
    def latents(self, start: ClassStart) -> Tensor:
        """Return clean latents (n, c, h, w) of one class."""


def check_prior(initializer: Initializer, prior: Prior, *, encodes: bool, samples: bool) -> None:
    """Raise, before any work, for a prior that cannot do what an initialiser needs."""
    names = f"initializer: {type(initializer).__name__} cannot start codes of {type(prior).__name__}"
    if samples and not prior.can_sample:
        raise UserError(
            f"{names}, which has no diffusion model to sample from; choose a LatentDiffusionPrior, or RealEncodings"
        )
    if encodes and not prior.can_encode:
        raise UserError(f"{names}, which has no encoder; choose another prior, or GaussianLatents")


def spec_of(real: RealImages) -> DataSpec:
    """Return classes and normalisation of a core-set, which must say what they are."""
    if real.spec is None:
        raise UserError(
            "initializer: the core-set does not say what its classes are; use a DistillationData's after "
            "setup, or set its attribute spec"
        )
    return real.spec
