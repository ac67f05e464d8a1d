"""Choosing codes from a pool that another initialiser makes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ldd.codes import Codes, PointCodes
from ldd.data.pruning.geometry import herd
from ldd.data.real import RealImages
from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.images import DataSpec, Images, rows_by_label, rows_of
from ldd.initializers.base import Initializer, spec_of
from ldd.networks import Network
from ldd.networks.scoring import ScoringNetwork
from ldd.priors import Prior
from ldd.priors.sampling import decoded
from ldd.runtime.seeding import generator as derived

_NEAREST = 1e-6  # smaller distances count as this one
_MOST_ROUNDS = 100


@dataclass(frozen=True)
class Pool:
    """Candidates for all codes: latents (K, G, n, c, h, w) in G groups, and decoded (K, G, n, 3, H, W) uint8."""

    latents: Tensor
    images: Tensor
    real: RealImages
    spec: DataSpec
    seed: int


class PoolSelection(Initializer, ABC):
    """Lets another initialiser make `groups` times as many latents as there are codes, and keeps the best.

    Networks trained on the core-set at the run's image size judge which are best. Subclasses are final.
    """

    def __init__(
        self,
        pool: Initializer,
        groups: int = 5,
        training: ScoringNetwork = ScoringNetwork(),  # noqa: B008 - frozen
    ) -> None:
        check_at_least(1, "initializer", groups=groups)
        if training.image_size is not None:
            raise UserError(
                f"initializer.training.image_size ({training.image_size}) cannot be chosen: the pool has the run's "
                "size; leave it null"
            )
        self.pool = pool
        self.groups = groups
        self.training = training

    @final
    def __call__(self, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator) -> None:
        """Fill a pool and set the latents of `codes` to what is chosen of it."""
        spec = spec_of(real)
        labels, counts = codes.labels.unique(return_counts=True)
        if len(counts.unique()) > 1 or len(labels) != spec.num_classes:
            raise UserError("initializer: choosing from a pool needs as many codes in each class of the data")
        size = int(counts[0])
        latents = self._fill(labels.repeat_interleave(self.groups * size), codes, prior, real, generator)
        images, shape = decoded(prior, latents), (len(labels), self.groups, size)
        seed = int(torch.randint(2**62, (), generator=generator))
        pool = Pool(latents.unflatten(0, shape), images.unflatten(0, shape), real, spec, seed)
        for (_, rows), chosen in zip(rows_by_label(codes.labels), self.choose(pool), strict=True):
            codes.set_latents(rows, chosen)

    def networks(self, spec: DataSpec) -> set[str]:
        """Return the judges, and those of the pool."""
        return self.training.names(spec) | self.pool.networks(spec)

    def _fill(
        self, labels: Tensor, codes: Codes, prior: Prior, real: RealImages, generator: torch.Generator
    ) -> Tensor:
        empty = torch.zeros(len(labels), 0, device=labels.device, dtype=codes.dtype)
        start = empty.new_zeros(len(labels), *prior.latent_shape)
        candidates = PointCodes(labels, start, empty[:, :, None], empty)
        self.pool(candidates, prior, real, generator)
        return candidates.latents.detach()

    def _features(self, pool: Pool, *, unit: bool = False, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Return features (K, G, n, F), of `unit` length or not, and means of real ones (K, F), float64 on the CPU.

        The means are of `most` real images of a class, or of all.
        """
        spec, training = pool.spec, self.training
        network = training.trained(pool.real.at_hand, pool.real.labels, spec, pool.seed, "features")

        def features_of(images: Tensor) -> Tensor:
            features = training.features(network, images, spec).double()
            return torch.nn.functional.normalize(features, dim=-1) if unit else features

        features = features_of(pool.images.flatten(0, 2)).unflatten(0, pool.images.shape[:3])
        real = [features_of(_some(pool, label, most)).mean(0) for label in range(spec.num_classes)]
        return features, torch.stack(real)

    @abstractmethod
    def choose(self, pool: Pool) -> list[Tensor]:
        """Return latents (n, c, h, w) for each of the K classes."""


def _some(pool: Pool, label: int, most: int | None) -> Tensor:
    """Real images of a class: all, or `most` random ones if there are more."""
    images = pool.real.of_class(label)
    if most is None or most >= len(images):
        return images
    return images[torch.randperm(len(images), generator=derived(pool.seed, "real means", label))[:most]]


@final
class SeparatedGroups(PoolSelection):
    """Takes, of several groups per class, the one near its real images and far from other classes' groups (S3 of IMS3).

    Let c_i be the mean feature of the chosen group of class i, r_i the mean feature of its real images (features have
    unit length before the mean, as in the released code), and d = 1 - cos. The choice
    raises -attraction sum_i log d(c_i, r_i) + repulsion sum_{i<j} log d(c_i, c_j): it starts at the groups nearest to
    r_i, and classes choose in turn until none can do better. A network trained on the core-set gives the features
    (published: pre-trained ones).

    Args:
        pool: makes the groups.
        groups: of each class (published: 5).
        attraction: alpha (published: 0.4).
        repulsion: beta (published: 0.9).
        training: the network whose features are taken, and how it is trained.
        max_images: real images of each class in its mean, drawn at random; None takes all (published: 200).

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        pool: Initializer,
        groups: int = 5,
        attraction: float = 0.4,
        repulsion: float = 0.9,
        training: ScoringNetwork = ScoringNetwork(),  # noqa: B008 - frozen
        max_images: int | None = None,
    ) -> None:
        super().__init__(pool, groups, training)
        check_at_least(1, "initializer", max_images=max_images)
        self.max_images = max_images
        check_not_negative("initializer", attraction=attraction, repulsion=repulsion)
        self.attraction = attraction
        self.repulsion = repulsion

    def choose(self, pool: Pool) -> list[Tensor]:
        """Return the chosen groups."""
        features, real = self._features(pool, unit=True, most=self.max_images)
        chosen = separated(features.mean(2), real, self.attraction, self.repulsion)
        return [latents[group] for latents, group in zip(pool.latents, chosen, strict=True)]


def separated(centres: Tensor, real: Tensor, attraction: float, repulsion: float) -> list[int]:
    """Return which group each class takes, of centres (K, G, F) and real means (K, F), see `SeparatedGroups`."""
    unit, target = (torch.nn.functional.normalize(part, dim=-1) for part in (centres, real))
    near = _log_distance(torch.einsum("kgf,kf->kg", unit, target))
    apart = _log_distance(torch.einsum("kgf,lhf->kglh", unit, unit))
    classes = torch.arange(len(unit))
    chosen = near.argmin(1)
    for _ in range(_MOST_ROUNDS):
        before = chosen.clone()
        for label in classes.tolist():
            others = classes[classes != label]
            gain = repulsion * apart[label, :, others, chosen[others]].sum(1) - attraction * near[label]
            if gain.max() > gain[chosen[label]]:
                chosen[label] = gain.argmax()
        if torch.equal(before, chosen):
            break
    return [int(group) for group in chosen]


def _log_distance(cosine: Tensor) -> Tensor:
    return (1 - cosine).clamp(min=_NEAREST).log()


@final
class HerdedOrder(PoolSelection):
    """Puts candidates in the order of herding, so that every prefix is a set for its budget (nested budgets).

    Each pick brings the mean feature of all picks nearest to the mean of the class's real images (Welling, ICML 2009).
    A network trained on the core-set gives the features. With one group nothing is left out: candidates are only put
    in order.

    Args:
        pool: makes the candidates.
        groups: how many times as many as are chosen.
        training: the network whose features are taken, and how it is trained.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        pool: Initializer,
        groups: int = 1,
        training: ScoringNetwork = ScoringNetwork(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(pool, groups, training)

    def choose(self, pool: Pool) -> list[Tensor]:
        """Return the chosen candidates, in order."""
        candidates, real = self._features(pool)
        size, chosen = pool.images.shape[2], []
        for latents, features, target in zip(pool.latents, candidates.flatten(1, 2), real, strict=True):
            picks = herd(features, target, size)
            chosen.append(latents.flatten(0, 1)[picks.to(latents.device)])
        return chosen


@final
class DifficultyMatched(PoolSelection):
    """Takes candidates that are as difficult as the class's real images, from the easiest to the hardest.

    The difficulty of an image is 1 - p, where p is the probability that a network trained on the core-set gives to its
    class. The n candidates are chosen whose difficulties are, taken together, nearest to the n quantiles (i + 1/2) / n
    of the real ones (least sum of absolute differences). DiffGuideSamp, after which this is made, fills the bins of
    the real histogram; here it has as many bins as images. Real images are judged by a network that has not seen them:
    one is trained on each half of the core-set, and candidates get the mean of both.

    Args:
        pool: makes the candidates.
        groups: how many times as many as are chosen (published: 5).
        training: the networks, and how they are trained.

    Raises:
        UserError: a number out of range.
    """

    def choose(self, pool: Pool) -> list[Tensor]:
        """Return the chosen candidates, the easiest first."""
        candidates, real = self._difficulties(pool)
        size = pool.images.shape[2]
        chosen = []
        for label, latents in enumerate(pool.latents):
            quantiles = (torch.arange(size, dtype=torch.float64) + 0.5) / size
            wanted = real[pool.real.labels == label].quantile(quantiles)
            from scipy.optimize import linear_sum_assignment

            _, places = linear_sum_assignment((wanted[:, None] - candidates[label]).abs().numpy())
            chosen.append(latents.flatten(0, 1)[torch.from_numpy(places).to(latents.device)])
        return chosen

    def _difficulties(self, pool: Pool) -> tuple[Tensor, Tensor]:
        """Difficulties of the candidates (K, G n) and of the real images (M,), float64."""
        labels, spec = pool.real.labels, pool.spec
        half = torch.empty(len(labels), dtype=torch.bool)
        for label, mine in rows_by_label(labels):
            order = torch.randperm(len(mine), generator=derived(pool.seed, "half", label))
            half[mine] = order % 2 == 0
        flat = pool.images.flatten(0, 2)
        own = torch.arange(spec.num_classes).repeat_interleave(len(flat) // spec.num_classes)
        candidates = torch.zeros(len(flat), dtype=torch.float64)
        real = torch.empty(len(labels), dtype=torch.float64)
        halves = [(half == side).nonzero().flatten() for side in (True, False)]
        for number, (unseen, seen) in enumerate((halves, halves[::-1])):
            network = self.training.build(spec, pool.seed, "half", number)
            of_seen = rows_of(pool.real.at_hand, seen), labels[seen]
            self.training.train(network, *of_seen, spec, pool.seed, "half", number)
            candidates += self._difficulty(network, flat, own, spec) / 2
            real[unseen] = self._difficulty(network, rows_of(pool.real.at_hand, unseen), labels[unseen], spec)
        return candidates.unflatten(0, (spec.num_classes, -1)), real

    def _difficulty(self, network: Network, images: Images, labels: Tensor, spec: DataSpec) -> Tensor:
        return self.training.judged(network, images, labels, spec, _doubt)


def _doubt(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 - p of the class of each image."""
    return 1 - logits.double().softmax(1).gather(1, labels[:, None])[:, 0]
