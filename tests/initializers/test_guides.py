"""Joint, entropy and transport guidance, and modes in other spaces, against chains and formulas written out."""

import pytest
import torch
from by_hand import Hand, draws_seed, started
from initializer_conformance import core_set
from small_world import CLASSES, NARROW, SPEC
from tiny_prior import tiny_autoencoder
from torch import nn

from ldd.errors import UserError
from ldd.initializers import (
    AutoencoderFeatures,
    EntropyGuidance,
    JointGuidance,
    ModeGuidance,
    PriorSamples,
    PublishedFeatures,
    TrainedFeatures,
    TransportGuidance,
)
from ldd.initializers.base import ClassStart
from ldd.initializers.guides import transport_plan
from ldd.initializers.kmeans import clusters_of, principal
from ldd.networks.scoring import ScoringNetwork
from ldd.runtime.seeding import derive_seed, generator

TRAINING = ScoringNetwork(network=NARROW, epochs=2, batch_size=12)
SETTINGS = {"num_steps": 5, "guidance_scale": 2.0}


def noise_of(info, count=2):
    return torch.randn(count, 4, 8, 8, generator=generator(draws_seed(), "prior sample", info.wnid)).double()


def encodings_of(prior, label):
    return prior.encode(core_set().of_class(label).double() / 127.5 - 1)


class Moved(Hand):
    """A chain whose states, or whose noise, somebody changes."""

    def down(self, x, move=lambda *_: 0.0, noise=lambda x, x0, e, *_: e, correct=lambda x0, k: 0.0):
        for k, t in zip(range(len(self.timesteps) - 1, -1, -1), self.timesteps, strict=True):
            a, b = self.abar(t).sqrt(), (1 - self.abar(t)).sqrt()
            e = self.noise(x, t, self.scale)
            e = noise(x, (x - b * e) / a, e, a, b, k)
            x0 = (x - b * e) / a
            x0 = x0 + correct(x0, k)
            after = self.abar(t - self.stride)
            x = after.sqrt() * x0 + (1 - after).sqrt() * e
            x = x + move(x, after.sqrt(), k)
        return x


def test_joint_guidance_moves_by_both_gradients(prior):
    """Of the determinant by the adjugate of a 2 x 2 matrix, of the mean by hand; finite differences check the first."""
    found = started(PriorSamples(**SETTINGS, guidance=JointGuidance(7.0, 50.0, 0.1, last_step=1)), prior)
    for info in CLASSES:
        mean = encodings_of(prior, info.label).mean(0)

        def energy(z, mean=mean):
            one, two = z.flatten(1)
            cosine = (one @ two) / (one.norm() * two.norm())
            return -(((1 + 0.1) ** 2 - cosine**2).log())

        def move(z, signal, k, mean=mean, energy=energy):
            if k < 1:
                return 0.0
            leaf = z.clone().requires_grad_()
            (away,) = torch.autograd.grad(energy(leaf), leaf)
            pull = 2 * (z.mean(0) - signal * mean) / (len(z) * mean.numel())
            return -7.0 * away - 50.0 * pull

        expected = Moved(prior, 2 + info.label, 2.0, 5).down(noise_of(info), move)
        assert (expected - found[info.label]).abs().max() < 1e-7


def test_joint_guidance_spreads_a_class_and_brings_its_mean_to_the_real_one(prior):
    plain = started(PriorSamples(num_steps=6), prior, per_class=4)
    spread = started(PriorSamples(num_steps=6, guidance=JointGuidance(20.0, 0.0)), prior, per_class=4)
    pulled = started(PriorSamples(num_steps=6, guidance=JointGuidance(0.0, 200.0)), prior, per_class=4)

    def cosines(latents):
        unit = torch.nn.functional.normalize(latents.flatten(2), dim=2)
        return (unit @ unit.mT).square().sum()

    assert cosines(spread) < cosines(plain)
    means = torch.stack([encodings_of(prior, info.label).mean(0) for info in CLASSES])
    assert (pulled.mean(1) - means).norm() < (plain.mean(1) - means).norm()


def test_entropy_guidance_changes_the_predicted_noise(prior):
    """e - rate b grad_z H, with x0 = (z - b e) / a and e constant, in every term of the step."""
    guidance = EntropyGuidance(rate=3.0, first_step=3, last_step=1, training=TRAINING, chunk_size=1)
    found = started(PriorSamples(**SETTINGS, guidance=guidance), prior)
    real, seed = core_set(), draws_seed()
    network = TRAINING.trained(real.images, real.labels, SPEC, seed, "entropy guidance").eval().double()
    mean, std = (torch.tensor(value).double().view(3, 1, 1) for value in (SPEC.mean, SPEC.std))
    for info in CLASSES:

        def noise(x, x0, e, a, b, k):
            if not 1 <= k <= 3:
                return e
            z = x.clone().requires_grad_()
            images = prior.decode((z - b * e) / a)
            clamped = images.detach().clamp(-1, 1) + images - images.detach()
            chances = network(((clamped + 1) / 2 - mean) / std).softmax(1)
            (slope,) = torch.autograd.grad(-(chances * chances.log()).sum(), z)
            return e - 3.0 * b * slope

        expected = Moved(prior, 2 + info.label, 2.0, 5).down(noise_of(info), noise=noise)
        assert (
            expected - found[info.label]
        ).abs().max() < 1e-6  # the classifier is trained in single precision


def sinkhorn_by_hand(points, targets, masses, epsilon, iterations):
    """In the plain domain, with scalings u and v."""
    costs = ((points[:, None] - targets[None]).flatten(2) ** 2).mean(2)
    kernel = (-costs / epsilon).exp()
    v, rows = torch.ones(len(targets)).double(), torch.full((len(points),), 1 / len(points)).double()
    for _ in range(iterations):
        u = rows / (kernel @ v)
        v = masses / (kernel.T @ u)
    return u[:, None] * kernel * v[None]


def test_the_plan_is_sinkhorns():
    drawing = generator(3)
    points, targets = (torch.randn(n, 2, 3, generator=drawing).double() for n in (4, 6))
    masses = torch.rand(6, generator=drawing).double()
    masses /= masses.sum()
    for iterations in (1, 5, 200):
        found = transport_plan(points, targets, masses, 0.1, iterations)
        assert (found - sinkhorn_by_hand(points, targets, masses, 0.1, iterations)).abs().max() < 1e-12
    assert (found.sum(0) - masses).abs().max() < 1e-9
    assert (found.sum(1) - 0.25).abs().max() < 1e-6


@pytest.mark.parametrize("centroids", [0, 3])
def test_transport_guidance_knows_the_finished_samples(prior, centroids):
    guidance = TransportGuidance(0.4, 30.0, 5, centroids, real_batch=6, first_step=4, last_step=1)
    found = started(PriorSamples(**SETTINGS, guidance=guidance), prior, per_class=3)
    for info in CLASSES:
        order = torch.randperm(8, generator=generator(draws_seed(), "encoded", info.wnid))[:6]
        targets = encodings_of(prior, info.label)[order]
        masses = torch.full((6,), 1 / 6).double()
        if centroids:
            targets, members = clusters_of(targets, 3, derive_seed(draws_seed(), "transport", info.wnid))
            masses = torch.tensor([len(member) / 6 for member in members]).double()
        drawing, finished = generator(draws_seed(), "prior sample", info.wnid), []
        for place in range(3):

            def correct(x0, k, targets=targets, masses=masses, finished=finished):
                if k < 1:
                    return 0.0
                plan = sinkhorn_by_hand(torch.cat([*finished, x0]), targets, masses, 30.0, 5)[-1]
                wanted = sum(share * target for share, target in zip(plan / plan.sum(), targets, strict=True))
                return 0.4 * (wanted - x0)

            start = torch.randn(1, 4, 8, 8, generator=drawing).double()
            made = Moved(prior, 2 + info.label, 2.0, 5).down(start, correct=correct)
            assert (made[0] - found[info.label, place]).abs().max() < 1e-7
            finished.append(made)


def test_modes_in_another_space_are_means_of_the_images_nearest_to_a_centroid_there(prior):
    """Principal components by the eigenvectors of the covariance, nearest images by sorting."""
    features = TrainedFeatures(TRAINING)
    initializer = ModeGuidance(pull=0.3, stop_step=0, features=features, average=2, components=3, **SETTINGS)
    found = started(initializer, prior)
    real, seed = core_set(), draws_seed()
    network = TRAINING.trained(real.images, real.labels, SPEC, seed, "feature space")
    for info in CLASSES:
        seen = TRAINING.features(network, real.of_class(info.label), SPEC).double()
        centred = seen - seen.mean(0)
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        reduced = principal(seen, 3)
        by_eigenvectors = centred @ vectors[:, -3:].flip(1)
        assert (reduced.abs() - by_eigenvectors.abs()).abs().max() < 1e-6
        centres, members = clusters_of(reduced, 2, derive_seed(seed, "k-means", info.wnid))
        modes = []
        for centre, member in zip(centres, members, strict=True):
            far = sorted(member.tolist(), key=lambda i, c=centre, r=reduced: float((r[i] - c).norm()))[:2]
            modes.append(torch.stack([encodings_of(prior, info.label)[i] for i in far]).mean(0))
        modes = torch.stack(modes)
        expected = Moved(prior, 2 + info.label, 2.0, 5).down(
            noise_of(info), correct=lambda x0, k, m=modes: 0.3 * (m - x0)
        )
        assert (expected - found[info.label]).abs().max() < 1e-7


def test_features_of_an_autoencoder_and_of_a_published_network(prior, tmp_path):
    torch.manual_seed(0)
    model = tiny_autoencoder()
    model.save_pretrained(tmp_path / "other")
    real = core_set()
    start = ClassStart(CLASSES[1], 2, prior, real, SPEC, 0, torch.empty(0).double())
    images = real.of_class(1)
    with torch.no_grad():
        latents = model.encode(images.float() / 127.5 - 1).latent_dist.mode()
    expected = ((latents - 0.1) * 0.7).flatten(1)
    assert (AutoencoderFeatures(str(tmp_path / "other"))(images, start) - expected).abs().max() < 1e-4
    from torchvision.models import resnet18

    network = resnet18(num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "resnet.pt")
    network.fc = nn.Identity()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        wanted = network((images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    found = PublishedFeatures("resnet18", str(tmp_path / "resnet.pt"))(images, start)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_what_is_out_of_range():
    with pytest.raises(UserError, match=r"guidance.ridge \(0\) must be a number above 0"):
        JointGuidance(ridge=0)
    with pytest.raises(UserError, match=r"steps are counted down from first_step \(1\) to last_step \(2\)"):
        EntropyGuidance(first_step=1, last_step=2)
    with pytest.raises(UserError, match=r"guidance.epsilon \(0\)"):
        TransportGuidance(epsilon=0)
    with pytest.raises(
        UserError, match=r"guidance.first_step \(45\) must be one of the sampler's steps, 9 down"
    ):
        PriorSamples(num_steps=10, guidance=TransportGuidance())
    with pytest.raises(UserError, match=r"initializer.average \(0\)"):
        ModeGuidance(average=0)
