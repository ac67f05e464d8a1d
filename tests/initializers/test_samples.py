"""Plain samples, mode guidance and loss guidance against chains written out with diffusers' table."""

import pytest
import torch
from by_hand import Hand, draws_seed, started
from initializer_conformance import core_set
from small_world import CLASSES, NARROW, SPEC
from torch.nn import functional as F

from ldd.errors import UserError
from ldd.images import to_bytes
from ldd.initializers import KMeansCentroids, LossGuidance, ModeGuidance, PriorSamples
from ldd.networks import ConvNet
from ldd.priors.sampling import PriorSampler
from ldd.runtime.seeding import generator, seeded


def noise_of(info, count=2):
    return torch.randn(count, 4, 8, 8, generator=generator(draws_seed(), "prior sample", info.wnid)).double()


def test_plain_samples(prior):
    found = started(PriorSamples(num_steps=7, guidance_scale=2.0), prior)
    for info in CLASSES:
        expected = Hand(prior, 2 + info.label, 2.0, 7).down(noise_of(info), 7)
        assert (expected - found[info.label]).abs().max() < 1e-9


def test_plain_samples_are_those_of_the_command(prior):
    """`latentdd prior sample --seed 3` at the same steps and guidance, byte for byte."""
    found = started(PriorSamples(num_steps=3, guidance_scale=1.5, sample_seed=3), prior.float())
    for info in CLASSES:
        drawn = PriorSampler(per_class=2, num_steps=3, guidance_scale=1.5, seed=3).images(prior, info)
        with torch.no_grad():
            assert torch.equal(to_bytes(prior.decode(found[info.label])), drawn)


@pytest.mark.parametrize("stop", [None, 2, 0])
def test_mode_guidance(prior, stop):
    """x0 + pull (m - x0) down to the stop step; modes are the centroids of k-means."""
    settings = {"num_steps": 5, "guidance_scale": 2.0}
    found = started(ModeGuidance(pull=0.3, stop_step=stop, **settings), prior)
    modes = started(KMeansCentroids(strength=0), prior)
    last = 2 if stop is None else stop
    for info in CLASSES:
        mode = modes[info.label]
        hand = Hand(prior, 2 + info.label, 2.0, 5)
        expected = hand.down(noise_of(info), 5, lambda x0, k, m=mode: 0.3 * (m - x0) if k >= last else 0.0)
        assert (expected - found[info.label]).abs().max() < 1e-9


@pytest.mark.parametrize("channels", [None, 3])
def test_mode_guidance_as_mgd3_samples(prior, channels):
    """DDPM's step, written out by its posterior, with the pull times its deviation on the state."""
    settings = {"num_steps": 5, "guidance_scale": 2.0, "stop_step": 2, "form": "ancestral"}
    found = started(ModeGuidance(pull=0.3, channels=channels, **settings), prior)
    modes = started(KMeansCentroids(strength=0), prior)
    for info in CLASSES:
        hand = Hand(prior, 2 + info.label, 2.0, 5)
        draws = generator(draws_seed(), "prior sample", info.wnid)
        x = torch.randn(2, 4, 8, 8, generator=draws).double()
        for k, t in zip(range(4, -1, -1), hand.timesteps, strict=True):
            abar, end = hand.abar(t), hand.abar(t - hand.stride)
            beta, e = 1 - abar / end, hand.noise(x, t, 2.0)
            x0 = (x - (1 - abar).sqrt() * e) / abar.sqrt()
            deviation = ((1 - end) / (1 - abar) * beta).sqrt()
            x = end.sqrt() * beta / (1 - abar) * x0 + (1 - beta).sqrt() * (1 - end) / (1 - abar) * x
            if k:
                x = x + deviation * torch.randn(2, 4, 8, 8, generator=draws).double()
            if k >= 2:
                way = modes[info.label] - x0
                x[:, :channels] += deviation * 0.3 * way[:, :channels]
        assert (x - found[info.label]).abs().max() < 1e-9


def test_without_pull_the_samples_are_plain_and_with_all_of_it_they_are_the_modes(prior):
    settings = {"num_steps": 4, "guidance_scale": 1.0}
    plain = started(PriorSamples(**settings), prior)
    assert torch.equal(started(ModeGuidance(pull=0.0, **settings), prior), plain)
    modes = started(KMeansCentroids(strength=0), prior)
    found = started(ModeGuidance(pull=1.0, stop_step=0, **settings), prior)
    # The last step ends at abar = 0.9985, with that much of the noise.
    assert (found - modes).abs().max() < 0.04 * (plain - modes).abs().max() + 0.2
    assert (found - modes).norm() < 0.2 * (plain - modes).norm()


def matched(prior, real, seed, k, label, gradient_of):
    """Gradient of the loss between three real images and the clean latents of a class under the network of step k."""
    with seeded(seed, "guidance", k, "network"):
        network = NARROW(3, 32).double()
    drawn = real.draw(label, 3, generator(seed, "guidance", k, "real", label)).double()

    def see(images):
        mean, std = (torch.tensor(value).double().view(3, 1, 1) for value in (SPEC.mean, SPEC.std))
        return ((images + 1) / 2 - mean) / std

    def gradient(x0):
        leaf = x0.clone().requires_grad_()
        images = prior.decode(leaf)
        images = images + (images.clamp(-1, 1) - images).detach()
        return torch.autograd.grad(gradient_of(network, see(drawn), see(images), label), leaf)[0]

    return gradient


def dm(network, real, synthetic, label):
    return sum(
        (a - b) ** 2
        for a, b in zip(network.embed(real).mean(0), network.embed(synthetic).mean(0), strict=True)
    )


def dc(network, real, synthetic, label):
    def of(images, create_graph):
        loss = F.nll_loss(F.log_softmax(network(images), 1), torch.full((len(images),), label))
        return torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)

    total = 0.0
    for a, b in zip(of(real, False), of(synthetic, True), strict=True):
        if a.ndim > 1:
            for one, other in zip(a.reshape(len(a), -1), b.reshape(len(b), -1), strict=True):
                total = total + 1 - one @ other / (one.norm() * other.norm() + 1e-6)
    return total


@pytest.mark.parametrize(("loss", "formula"), [("distribution", dm), ("gradient", dc)])
def test_loss_guidance(prior, loss, formula):
    """x0 - rate dL/dx0 at the chosen steps alone, all latents of a class together."""
    guidance = LossGuidance(
        loss, rate=0.05, first_step=2, last_step=1, real_batch=3, network=NARROW, augmentation=()
    )
    settings = {"num_steps": 4, "guidance_scale": 1.0}
    found = started(PriorSamples(guidance=guidance, chunk_size=1, **settings), prior)
    plain, real, seed = started(PriorSamples(**settings), prior), core_set(), draws_seed()
    noises = {0: noise_of(CLASSES[0])}
    for label, noise in noises.items():

        def correct(x0, k, label=label):
            if k not in (1, 2):
                return 0.0
            return -0.05 * matched(prior, real, seed, k, label, formula)(x0)

        expected = Hand(prior, 2 + label, 1.0, 4).down(noise, 4, correct)
        assert (expected - found[label]).abs().max() < 1e-9
        assert (expected - plain[label]).abs().max() > 1e-4


def test_loss_guidance_lowers_the_loss(prior):
    """Of the final latents under a network of its own."""
    settings = {"num_steps": 10, "guidance_scale": 1.0}
    guidance = LossGuidance(
        rate=200.0, first_step=9, last_step=0, real_batch=8, network=NARROW, augmentation=()
    )
    real, losses = core_set(), []
    with seeded(9, "judge"):
        judge = NARROW(3, 32).double()
    for guide in (None, guidance):
        latents = started(PriorSamples(guidance=guide, **settings), prior)
        with torch.no_grad():
            images = prior.decode(latents.flatten(0, 1)).clamp(-1, 1)
            features = judge.embed(SPEC.normalise(images)).unflatten(0, (3, 2)).mean(1)
            wanted = [
                judge.embed(SPEC.normalise(real.of_class(k).double() / 127.5 - 1)).mean(0) for k in range(3)
            ]
        losses.append(float((features - torch.stack(wanted)).square().sum()))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PriorSamples(num_steps=0), r"initializer.num_steps \(0\) must be at least 1"),
        (lambda: ModeGuidance(pull=-0.1), r"initializer.pull \(-0.1\) must lie in \[0, 1\]"),
        (
            lambda: ModeGuidance(num_steps=10, stop_step=10),
            r"stop_step \(10\) must be a step from 0 \(the last\) to 9",
        ),
        (
            lambda: LossGuidance(first_step=3, last_step=4),
            r"counted down from first_step \(3\) to last_step \(4\)",
        ),
        (lambda: LossGuidance(rate=float("nan")), r"guidance.rate \(nan\) must be a number of 0 or more"),
        (
            lambda: PriorSamples(num_steps=45, guidance=LossGuidance()),
            r"guidance.first_step \(45\) must be one of the sampler's steps, 44 down to 0",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_what_loss_guidance_cannot_do(prior):
    settings = {"first_step": 0, "last_step": 0}
    batch = LossGuidance(
        network=lambda k, size: ConvNet(k, size, width=4, norm="batch"), real_batch=2, **settings
    )
    with pytest.raises(UserError, match="batch normalisation needs the images of all classes"):
        started(PriorSamples(num_steps=1, guidance=batch), prior)
    many = LossGuidance(network=NARROW, real_batch=9, **settings)
    with pytest.raises(UserError, match=r"guidance.real_batch \(9\) is more than the 8 real images"):
        started(PriorSamples(num_steps=1, guidance=many), prior)
