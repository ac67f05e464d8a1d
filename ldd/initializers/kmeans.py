"""Codes that start at the centroids of their class's encodings."""

from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from ldd.errors import UserError, check_at_least
from ldd.images import DataSpec
from ldd.initializers.base import ClassStart
from ldd.initializers.samples import SampledInitializer
from ldd.initializers.spaces import FeatureSpace
from ldd.priors import Guide
from ldd.priors.sampling import CHUNK
from ldd.runtime.seeding import derive_seed

_STARTS = 10  # of which the best counts


@final
class KMeansCentroids(SampledInitializer):
    """Each latent is the centroid of a k-means cluster of its class's encodings, noised and denoised (D4M, CVPR 2024).

    Centroids are means, whose images are blurred; noise up to `strength` of the schedule and ordinary sampling from
    there give each an image of its own. The largest clusters come first. D4M clusters in mini-batches, which
    here would save nothing: the encodings fit into memory.

    Args:
        strength: share of the schedule in [0, 1] that is run (published: 0.7); 0 leaves the centroids as they are,
            which needs no diffusion model.
        num_steps: DDIM steps of the whole schedule.
        guidance_scale: of classifier-free guidance; None takes the prior's own (published for Stable Diffusion: 8).
        max_images: real images of each class that are clustered, drawn at random; None takes all.
        chunk_size: images encoded, and latents sampled, at once.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        strength: float = 0.7,
        num_steps: int = 50,
        guidance_scale: float | None = None,
        max_images: int | None = None,
        chunk_size: int = CHUNK,
    ) -> None:
        super().__init__(num_steps, guidance_scale, chunk_size, max_images)
        if not 0 <= strength <= 1:
            raise UserError(
                f"initializer.strength ({strength}) must be at least 0 (the centroids alone) and at most 1"
            )
        self.samples = strength > 0
        self.strength = strength

    def latents(self, start: ClassStart) -> Tensor:
        """Return centroids (n, c, h, w), or what the prior makes of them."""
        centroids = class_modes(start, self.chunk_size, self.max_images)
        if not self.strength:
            return centroids
        return self.sample(start, clean=centroids, strength=self.strength)


def class_modes(
    start: ClassStart,
    chunk_size: int,
    max_images: int | None,
    space: FeatureSpace | None = None,
    average: int = 1,
    components: int | None = None,
) -> Tensor:
    """Return centroids (n, c, h, w) of the class's encodings, one for each of its codes.

    In another space they are mean encodings of the `average` images nearest to the centroid of each cluster there.
    """
    start.real.require(start.info.label, start.count, "images_per_class")
    if max_images is not None and max_images < start.count:
        raise UserError(
            f"initializer.max_images ({max_images}) is less than the {start.count} clusters of each class; raise it, "
            "or leave it null"
        )
    encodings = start.encodings(chunk_size, max_images)
    seed = derive_seed(start.seed, "k-means", start.info.wnid)
    if space is None:
        return clusters_of(encodings, start.count, seed)[0]
    features = space(start.images(max_images), start)
    if components is not None:
        features = principal(features, components)
    centres, members = clusters_of(features, start.count, seed)
    modes = []
    for centre, member in zip(centres, members, strict=True):
        nearest = (features[member] - centre).square().sum(1).argsort(stable=True)[:average]
        modes.append(encodings[member[nearest].to(encodings.device)].mean(0))
    return torch.stack(modes)


def principal(features: Tensor, components: int) -> Tensor:
    """Return features (M, F) by their first principal components, in double precision; fewer are left as they are."""
    features = features.double()
    if components >= min(features.shape):
        return features
    centred = features - features.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    found: Tensor = left[:, :components] * values[:components]
    return found


def clusters_of(points: Tensor, count: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Return k-means centroids (count, ...) of points (M, ...), largest clusters first, and the places of each one's.

    The best of ten starts counts.
    """
    flat = points.flatten(1).double().cpu().numpy()
    from sklearn.cluster import KMeans  # here: it takes a second, and no other initializer needs it

    found = KMeans(count, n_init=_STARTS, random_state=seed % 2**32).fit(flat)
    sizes = np.bincount(found.labels_, minlength=count)
    order = np.argsort(-sizes, kind="stable")
    centres: Tensor = torch.from_numpy(found.cluster_centers_[order])
    members = [torch.from_numpy(np.flatnonzero(found.labels_ == cluster)) for cluster in order]
    return centres.to(points).view(count, *points.shape[1:]), members


@final
class ModeGuidance(SampledInitializer):
    """Each latent is a sample pulled to a mode of its class: a k-means centroid of its encodings (MGD3, ICML 2025).

    At step k (S - 1 is the noisiest), while k >= `stop_step`, the form `prediction` turns the predicted clean latents
    into x0 + lambda (m - x0) in deterministic steps. MGD3 itself is the form `ancestral`: steps draw new noise of
    deviation sigma, and lambda sigma (m - x0) is added to the state. The same lambda pulls two to four times as hard in
    the first form. `configs/initializer/mode_guided_released.yaml` has the released settings.

    Args:
        pull: lambda, share of the way to the mode at each guided step, in [0, 1] (published, ancestral: 0.1).
        num_steps: S, DDIM steps.
        stop_step: the last guided step, 0 to S - 1; None takes S // 2 (released: 26 of 50, which guides 24 steps).
        guidance_scale: of classifier-free guidance; None takes the prior's own (published for DiT-XL/2: 4).
        max_images: real images of each class that are clustered, drawn at random; None takes all.
        chunk_size: images encoded, and latents sampled, at once.
        features: the space in which images are clustered; None takes the prior's own encodings. After TGDD, which shows
            that this space decides: a mode is then the mean encoding of the images nearest to a centroid there.
        average: how many of a cluster's images that mean takes, fewer where it has fewer (published: 20).
        components: principal components of the features that are clustered (published: 512); None takes all.
        form: `prediction` or `ancestral`, see above.
        channels: the first so many channels of the latents are pulled; None pulls all (released: 3 of DiT's 4).

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        pull: float = 0.1,
        num_steps: int = 50,
        stop_step: int | None = None,
        guidance_scale: float | None = None,
        max_images: int | None = None,
        chunk_size: int = CHUNK,
        features: FeatureSpace | None = None,
        average: int = 20,
        components: int | None = 512,
        form: Literal["prediction", "ancestral"] = "prediction",
        channels: int | None = None,
    ) -> None:
        super().__init__(num_steps, guidance_scale, chunk_size, max_images)
        check_at_least(1, "initializer", average=average, components=components, channels=channels)
        if not 0 <= pull <= 1:
            raise UserError(f"initializer.pull ({pull}) must lie in [0, 1]")
        if stop_step is not None and not 0 <= stop_step < num_steps:
            raise UserError(
                f"initializer.stop_step ({stop_step}) must be a step from 0 (the last) to {num_steps - 1} (the first)"
            )
        self.pull = pull
        self.of_modes = features, average, components
        self.stop_step = num_steps // 2 if stop_step is None else stop_step
        self.ancestral = form == "ancestral"
        self.channels = channels

    def networks(self, spec: DataSpec) -> set[str]:
        """Return those of the space in which images are clustered."""
        return set() if self.of_modes[0] is None else self.of_modes[0].networks(spec)

    def latents(self, start: ClassStart) -> Tensor:
        """Return one sample for each of the class's n modes, (n, c, h, w)."""
        modes = class_modes(start, self.chunk_size, self.max_images, *self.of_modes)

        def guide(places: Tensor) -> Guide:
            wanted = modes[places.to(modes.device)]

            def correction(x0: Tensor, k: int, rows: Tensor) -> Tensor:
                if k < self.stop_step:
                    return x0.new_zeros(())
                way = wanted - x0
                if self.channels is not None:
                    way[:, self.channels :] = 0
                return self.pull * way

            return correction

        return self.sample(start, guide=guide, ancestral=self.ancestral)
