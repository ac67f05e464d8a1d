"""Guides of all latents of a class: apart from each other, across a classifier's borders, and over the real images."""

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.images import DataSpec, saturate
from ldd.initializers.base import ClassStart
from ldd.initializers.guidance import Guidance
from ldd.initializers.kmeans import clusters_of
from ldd.initializers.spaces import TrainedOnce
from ldd.networks import Network
from ldd.networks.scoring import ScoringNetwork
from ldd.priors import Guide, Moment, StateGuide
from ldd.priors.sampling import CHUNK
from ldd.runtime.seeding import derive_seed


@final
class JointGuidance(Guidance):
    """Repels the latents of a class from each other and pulls their mean to the class's (CGS, CVPR 2026).

    After a guided step all n latents z of the class move by -g,

        g = repulsion grad[-log det(C + ridge I)] + attraction grad[mean-square(mean_i z_i - a mu)],

    C their cosines (n, n), mu the mean encoding of the class's real images and a the share of signal in z. No network
    is differentiated. The paper's best rates are 30 to 300, for latents of 4 x 32 x 32. Relative to a latent of D
    numbers both moves fall as 1 / D or faster, so that smaller latents want less repulsion: 2 for ten of 4 x 8 x 8,
    where 30 tears digits apart. That the rates belong to a mean over elements is our reading; the ridge is ours.

    Args:
        repulsion: rate of the first term.
        attraction: rate of the second.
        ridge: keeps the determinant above 0.
        first_step: the first guided step (the noisiest is num_steps - 1); None takes the noisiest.
        last_step: the last guided one.
        max_images: real images of the class that are encoded, drawn at random; None takes all.
        chunk_size: images encoded at once.

    Raises:
        UserError: a number out of range.
    """

    encodes = True

    def __init__(
        self,
        repulsion: float = 30.0,
        attraction: float = 30.0,
        ridge: float = 1e-3,
        first_step: int | None = None,
        last_step: int = 0,
        max_images: int | None = None,
        chunk_size: int = CHUNK,
    ) -> None:
        super().__init__(first_step, last_step)
        check_not_negative("guidance", repulsion=repulsion, attraction=attraction)
        check_at_least(1, "guidance", max_images=max_images, chunk_size=chunk_size)
        if not 0 < ridge < math.inf:
            raise UserError(f"guidance.ridge ({ridge}) must be a number above 0")
        self.repulsion = repulsion
        self.attraction = attraction
        self.ridge = ridge
        self.max_images = max_images
        self.chunk_size = chunk_size

    def guide(self, start: ClassStart) -> Guide:
        """Return what moves all latents of a class, for `Prior.sample`."""
        return _Joint(self, start.encodings(self.chunk_size, self.max_images).mean(0))


class _Joint(StateGuide):
    def __init__(self, settings: JointGuidance, mean: Tensor) -> None:
        self._settings = settings
        self._mean = mean

    def move(self, at: Moment) -> Tensor:
        """Return -g."""
        if not self._settings.takes(at.k):
            return at.state.new_zeros(())
        settings, leaf = self._settings, at.state.detach().requires_grad_()
        with torch.enable_grad():
            unit = F.normalize(leaf.flatten(1), dim=1)
            cosines = unit @ unit.T + settings.ridge * torch.eye(len(leaf)).to(unit)
            away = (leaf.mean(0) - at.step.end.signal * self._mean.to(leaf)).square().mean()
            value = -settings.repulsion * torch.logdet(cosines) + settings.attraction * away
            (gradient,) = torch.autograd.grad(value, leaf)
        return -gradient


@final
class EntropyGuidance(Guidance):
    """Raises the entropy of a classifier's answer to the decoded samples, towards the borders of classes (UAG).

    At a guided step the predicted noise e becomes e - rate b grad_z H(f(decode(x0))): H is the entropy, in nats, of the
    classifier f, z the noisy latents with share of noise b, x0 the clean latents that z and e imply, and e is held
    constant under the gradient. Known from the reproduction's code; the paper is not found. There f is a ResNet-18,
    trained for 200 epochs.

    Args:
        rate: lambda (published: 10).
        first_step: the first guided step (published: 39 of 49, from timestep 795 of 1000 on).
        last_step: the last guided one.
        training: the classifier, and how it is trained on the core-set, once for all classes.
        chunk_size: images decoded with their graph at once.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        rate: float = 10.0,
        first_step: int | None = 39,
        last_step: int = 0,
        training: ScoringNetwork = ScoringNetwork(),  # noqa: B008 - frozen
        chunk_size: int = 8,
    ) -> None:
        super().__init__(first_step, last_step)
        check_not_negative("guidance", rate=rate)
        check_at_least(1, "guidance", chunk_size=chunk_size)
        self.rate = rate
        self.training = training
        self.chunk_size = chunk_size
        self._network = TrainedOnce(training, "entropy guidance")

    def networks(self, spec: DataSpec) -> set[str]:
        """Return the classifier."""
        return self.training.names(spec)

    def guide(self, start: ClassStart) -> Guide:
        """Return what corrects latents of a class, for `Prior.sample`."""
        network = self._network(start).eval().requires_grad_(False)
        return _Entropy(self, start, network.to(start.like))


class _Entropy(StateGuide):
    def __init__(self, settings: EntropyGuidance, start: ClassStart, network: Network) -> None:
        self._settings, self._start, self._network = settings, start, network

    def move(self, at: Moment) -> Tensor:
        """Return how far the state ends from where it would with the noise as predicted."""
        if not self._settings.takes(at.k):
            return at.state.new_zeros(())
        level, end = at.step.level, at.step.end
        parts = at.clean.split(self._settings.chunk_size)
        slope = torch.cat([self._slope(part) for part in parts]) / level.signal  # x0 = (z - b e) / a
        return (
            self._settings.rate * level.noise * (end.signal * level.noise / level.signal - end.noise) * slope
        )

    def _slope(self, clean: Tensor) -> Tensor:
        """Return the gradient of the entropy with respect to clean latents."""
        leaf, spec = clean.detach().requires_grad_(), self._start.spec
        with torch.enable_grad():
            logits = self._network(spec.normalise(saturate(self._start.prior.decode(leaf))))
            logs = logits.log_softmax(1)
            (gradient,) = torch.autograd.grad(-(logs.exp() * logs).sum(), leaf)
        return gradient


@final
class TransportGuidance(Guidance):
    """Pulls each sample to where optimal transport from the class's samples so far wants it (OT, NeurIPS 2025; DMGD).

    Samples of a class are made one after the other. At a guided step the predicted clean latents x0 of the current one
    and the finished ones, all of one mass, are transported to targets: weighted k-means centroids of a batch of real
    encodings, or the batch itself. With P the entropic plan for costs |x - y|^2 / elements, and P_j its row of the
    current sample, x0 becomes x0 + rate (sum_j P_j y_j / sum_j P_j - x0).

    Args:
        rate: rho (published: 0.05 to 0.5).
        epsilon: entropic temperature (published: 0.1).
        iterations: of Sinkhorn (published: 5).
        centroids: K (published: 10); 0 takes the batch itself.
        real_batch: real images of the class that are encoded, drawn at random.
        first_step: the first guided step (published: 45 of 49).
        last_step: the last guided one (published: 30).
        chunk_size: images encoded at once.

    Raises:
        UserError: a number out of range.
    """

    at_once = 1
    encodes = True

    def __init__(
        self,
        rate: float = 0.1,
        epsilon: float = 0.1,
        iterations: int = 5,
        centroids: int = 10,
        real_batch: int = 256,
        first_step: int | None = 45,
        last_step: int = 30,
        chunk_size: int = CHUNK,
    ) -> None:
        super().__init__(first_step, last_step)
        check_at_least(1, "guidance", iterations=iterations, real_batch=real_batch, chunk_size=chunk_size)
        check_not_negative("guidance", centroids=centroids)
        if not 0 <= rate <= 1:
            raise UserError(f"guidance.rate ({rate}) must lie in [0, 1]")
        if not 0 < epsilon < math.inf:
            raise UserError(f"guidance.epsilon ({epsilon}) must be a number above 0")
        self.rate = rate
        self.epsilon = epsilon
        self.iterations = iterations
        self.centroids = centroids
        self.real_batch = real_batch
        self.chunk_size = chunk_size

    def guide(self, start: ClassStart) -> Guide:
        """Return what corrects the samples of a class, one after the other, for `Prior.sample`."""
        targets = start.encodings(self.chunk_size, self.real_batch)
        masses = targets.new_ones(len(targets))
        if 0 < self.centroids < len(targets):
            seed = derive_seed(start.seed, "transport", start.info.wnid)
            targets, members = clusters_of(targets, self.centroids, seed)
            masses = torch.tensor([float(len(member)) for member in members]).to(targets)
        return _Transport(self, targets, masses / masses.sum())


class _Transport(StateGuide):
    def __init__(self, settings: TransportGuidance, targets: Tensor, masses: Tensor) -> None:
        self._settings, self._targets, self._masses = settings, targets, masses
        self._finished: list[Tensor] = []

    def __call__(self, x0: Tensor, k: int, rows: Tensor) -> Tensor:
        """Return the pull to the current samples' share of the plan."""
        settings = self._settings
        if not settings.takes(k):
            return x0.new_zeros(())
        points, targets = torch.cat([*self._finished, x0]), self._targets.to(x0)
        plan = transport_plan(points, targets, self._masses.to(x0), settings.epsilon, settings.iterations)
        own = plan[-len(x0) :]
        wanted = (own / own.sum(1, keepdim=True)) @ targets.flatten(1)
        return settings.rate * (wanted.view_as(x0) - x0)

    def move(self, at: Moment) -> Tensor:
        """Keep what the last step ends in; move nothing."""
        if at.k == 0:
            self._finished.append(at.state)
        return at.state.new_zeros(())


def transport_plan(
    points: Tensor, targets: Tensor, masses: Tensor, epsilon: float, iterations: int
) -> Tensor:
    """Return Sinkhorn's plan (n, m) from points (n, ...) of equal mass to targets (m, ...) with masses (m,).

    Each iteration fits the points' masses, then the targets', in logarithms; costs are mean squared differences.
    """
    costs = torch.cdist(points.flatten(1), targets.flatten(1)).square() / points[0].numel()
    own = -math.log(len(points))
    f, g = costs.new_zeros(len(points)), costs.new_zeros(len(targets))
    for _ in range(iterations):
        f = epsilon * (own - ((g - costs) / epsilon).logsumexp(1))
        g = epsilon * (masses.log() - ((f[:, None] - costs) / epsilon).logsumexp(0))
    return ((f[:, None] + g - costs) / epsilon).exp()
