"""Baselines that are chosen: real images near centroids, easy real images, and plain samples of the prior."""

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from ldd.errors import UserError
from ldd.evaluation.baselines.base import Drawn, Setting
from ldd.evaluation.features import pixels, trained_network
from ldd.images import Labelled
from ldd.networks.scoring import judged
from ldd.runtime.ranks import from_first_rank
from ldd.runtime.seeding import derive_seed, generator
from ldd.students.training import one_thread

if TYPE_CHECKING:
    from ldd.priors import Prior


@final
class NearestReal(Drawn):
    """The real images nearest to the centroids of k-means within each class, as many centroids as images.

    Distances are Euclidean between pixels, averaged over squares above 32 px. With one image per class this is the
    image nearest to the class mean; with more, k-means starts anew for each repeat. Each image is taken once, by the
    centroid that is nearest to it; another centroid takes the next nearest image.
    """

    name: str = "nearest_real"

    def pick(self, counts: Sequence[int], setting: Setting, *key: object) -> Labelled:
        """Pick near centroids; k-means starts from (seed, key, label)."""
        self.check_counts(counts, setting)
        real, places, start = setting.data.train_images, [], 0
        for label, (count, there) in enumerate(zip(counts, real.counts, strict=True)):
            if count:
                own = pixels(real.of_class(label))
                places.append(
                    start + nearest_to_centroids(own, count, derive_seed(setting.seed, *key, label))
                )
            start += there
        chosen = from_first_rank(torch.cat(places))
        return Labelled(real.take(chosen), real.labels[chosen])


def nearest_to_centroids(points: Tensor, count: int, seed: int) -> Tensor:
    """Return the rows of `points` (n, F) nearest to the `count` centroids of k-means, (count,) int64, all different."""
    from sklearn.cluster import KMeans  # here: worker processes import this file, and would wait for it

    if count == 1:
        centroids = points.mean(0, keepdim=True)
    else:
        # One thread: the library's sums depend on how many there are.
        with one_thread(torch.device("cpu")):
            found = KMeans(count, n_init=4, random_state=seed % 2**32).fit(points.numpy())
        centroids = torch.from_numpy(found.cluster_centers_).to(points)
    distances = torch.cdist(centroids, points, compute_mode="donot_use_mm_for_euclid_dist")
    chosen = torch.empty(count, dtype=torch.int64)
    for _ in range(count):
        centroid, point = divmod(int(distances.argmin()), len(points))
        chosen[centroid] = point
        distances[centroid], distances[:, point] = inf, inf
    return chosen


@final
class EasyReal(Drawn):
    """The real images of least loss within each class: an easy-first core-set.

    The loss is taken under `ldd.evaluation.features.trained_network`, which learns the whole training split once for
    an evaluation; all repeats get the same images.
    """

    name: str = "easy_real"

    def pick(self, counts: Sequence[int], setting: Setting, *key: object) -> Labelled:
        """Pick the images of least loss; the network follows from the setting's seed."""
        self.check_counts(counts, setting)
        real = setting.data.train_images
        if "losses" not in setting.found:
            setting.found["losses"] = from_first_rank(real_losses(setting))
        by_image, places, start = setting.found["losses"], [], 0
        for count, there in zip(counts, real.counts, strict=True):
            places.append(start + by_image[start : start + there].argsort(stable=True)[:count])
            start += there
        chosen = torch.cat(places)
        return Labelled(real.take(chosen), real.labels[chosen])


def real_losses(setting: Setting) -> Tensor:
    """Return the cross-entropy (M,) of each training image under a network that has learned all of them."""
    real, seed = setting.data.train_images, derive_seed(setting.seed, "easy real")
    network = trained_network(real, setting.data.spec, seed, setting.device)
    loss = partial(F.cross_entropy, reduction="none")
    return judged(network, setting.data.spec, real.at_hand, real.labels, loss, setting.device)


@final
class PriorSamples(Drawn):
    """Plain samples of the prior that the distilled set was made through: its images without any distillation.

    Args:
        num_steps: DDIM steps.
        guidance_scale: of classifier-free guidance; null takes the prior's own.
    """

    name: str = "prior_samples"

    def __init__(self, num_steps: int = 50, guidance_scale: float | None = None) -> None:
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale

    def most(self, setting: Setting) -> Sequence[float]:
        """Return no bound."""
        return [inf] * len(setting.counts)

    def check_counts(self, counts: Sequence[int], setting: Setting) -> None:
        """Refuse a prior that cannot be sampled for the data's classes: it is asked once for one step of one image."""
        if (self, "checked") in setting.found:
            return
        prior = _prior(self.name, setting)
        start = torch.zeros(1, *prior.latent_shape)
        self._drawn(setting, 0, 1, generator(0), start=start, strength=1 / max(1, self.num_steps))
        setting.found[self, "checked"] = True

    def pick(self, counts: Sequence[int], setting: Setting, *key: object) -> Labelled:
        """Sample the prior; the noise of a class follows from (seed, key, label).

        Raises:
            UserError: there is no prior, it does not know the classes or their size, cannot be sampled, or draws NaN.
        """
        images = [
            self._drawn(setting, label, count, generator(setting.seed, *key, label))
            for label, count in enumerate(counts)
            if count
        ]
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return Labelled(from_first_rank(torch.cat(images)), labels)

    @torch.no_grad()
    def _drawn(
        self,
        setting: Setting,
        label: int,
        count: int,
        draws: torch.Generator,
        **rest: Any,  # noqa: ANN401
    ) -> Tensor:
        from ldd.priors.sampling import decoded, sample_class  # here: worker processes import this file

        prior = _prior(self.name, setting)
        device = next((p.device for p in prior.parameters()), torch.device("cpu"))
        classes = setting.data.spec.classes
        row = prior.rows(classes)[label : label + 1].to(device)
        how = {"num_steps": self.num_steps, "guidance_scale": self.guidance_scale, **rest}
        return decoded(prior, sample_class(prior, row, count, draws, **how), classes[label].name)


def _prior(name: str, setting: Setting) -> "Prior":
    """Return the set's prior, where its samples are images of the data's classes at their size."""
    prior, size = setting.prior, setting.data.spec.image_size
    if prior is None:
        raise UserError(
            f"baselines: {name} needs the prior that the set was made through; evaluate within its run, or "
            "give a set whose manifest names a prior of this package"
        )
    if prior.can_sample and not prior.null(1).shape[1]:
        raise UserError(
            f"baselines: {name} needs a prior with classes, and samples of an unconditional one belong to none; leave "
            "it out"
        )
    if prior.image_size != size:
        raise UserError(
            f"baselines: {name} are images of {prior.image_size} px, and the data have {size} px; leave it out"
        )
    return prior
