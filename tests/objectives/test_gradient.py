"""DC against a plain loop per class, its zero, its descent and its inner training."""

from functools import partial

import pytest
import torch
from small_runs import NARROW, fit
from torch.nn import functional as F

from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.objectives import GradientMatching
from ldd.objectives.gradient import loss_gradient, row_cosine, squared_error, whole_cosine
from ldd.priors import PixelPrior
from tests.objectives.test_distribution import pixel_step


def objective(**arguments):
    return GradientMatching(**{"real_batch": 4, "network": NARROW} | arguments)


def plain_loss(found: GradientMatching, step, images, distance):
    """The sum over classes, written from the formula with plain autograd."""
    network = step.network(NARROW).requires_grad_(True)
    draws = found.augmentation.draw(10, step.generator("augmentation"), one_strategy=False)
    total = 0
    for label in range(10):
        own = draws[torch.full((4,), label)]
        real = found.augmentation(step.normalise(step.real(label, 4)), own)
        mine = found.augmentation(step.normalise(images[2 * label : 2 * label + 2]), own[torch.arange(2)])
        target = torch.autograd.grad(
            F.cross_entropy(network(real), torch.full((4,), label)), network.parameters()
        )
        logits = network(mine)
        gradient = torch.autograd.grad(
            F.cross_entropy(logits, torch.full((2,), label)), network.parameters(), create_graph=True
        )
        total = total + distance(target, gradient)
    return total


def rows_by_hand(real, synthetic):
    total = 0
    for a, b in zip(real, synthetic, strict=True):
        if a.ndim in (2, 4):
            for row_a, row_b in zip(a.reshape(len(a), -1), b.reshape(len(b), -1), strict=True):
                norms = row_a.pow(2).sum().sqrt() * row_b.pow(2).sum().sqrt()
                total = total + 1 - (row_a * row_b).sum() / (norms + 1e-6)
    return total


@pytest.mark.parametrize("real_chunk", [256, 3])
def test_term_equals_a_plain_loop(digits, real_chunk):
    mine = objective(real_chunk=real_chunk)
    model, step = pixel_step(digits, mine)
    (term,) = mine.terms(step)
    term.value.backward()
    images = model.codes.latents.detach().requires_grad_()
    loss = plain_loss(mine, step, images, rows_by_hand)
    loss.backward()
    assert abs(term.report.item() - loss.item()) < 1e-8
    assert (images.grad - model.codes.latents.grad).abs().max() < 1e-8


def test_distances_by_hand():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 2, 3, 3), (3,), (4, 5), (4,)]
    a = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    b = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    assert abs(row_cosine(a, b, 1e-6) - rows_by_hand(a, b)) < 1e-12
    flat_a, flat_b = (torch.cat([t.reshape(-1) for t in tensors]) for tensors in (a, b))
    assert abs(squared_error(a, b, 0) - (flat_a - flat_b).pow(2).sum()) < 1e-12
    cosine = (flat_a @ flat_b) / (flat_a.pow(2).sum().sqrt() * flat_b.pow(2).sum().sqrt())
    assert abs(whole_cosine(a, b, 0) - (1 - cosine)) < 1e-12


def test_identical_images_give_zero_loss_and_gradient(digits):
    # With the published epsilon a row's own cosine is slightly below 1; without it the zero is exact.
    mine = objective(epsilon=0.0)
    model, step = pixel_step(digits, mine, images_per_class=4)
    for label in range(10):
        model.codes.set_latents(torch.arange(4 * label, 4 * label + 4), step.real(label, 4))
    (term,) = mine.terms(step)
    term.value.backward()
    assert term.report.abs() < 1e-10
    assert model.codes.latents.grad.abs().max() < 1e-10


def test_twenty_steps_lower_the_loss(digits, tmp_path):
    mine = objective(real_batch=50, lr_latents=0.1)
    model = fit(PixelPrior(32), mine, tmp_path / "end", 20, digits)

    def loss(distiller: Distiller) -> float:
        steps = (distiller.context(digits.core_set, step) for step in range(100, 110))
        return sum(next(mine.terms(step)).report.item() for step in steps)

    start = fit(PixelPrior(32), mine, tmp_path / "start", 0, digits)
    assert loss(model) < loss(start)


def test_the_network_is_trained_between_steps_and_then_drawn_anew(digits):
    mine = objective(outer_loop=2, inner_loop=3)
    model, _ = pixel_step(digits, mine)

    def network_at(step_number):
        step = model.context(digits.core_set, step_number)
        fresh = step.network(NARROW).state_dict()
        used = mine._current_network(step).state_dict()
        list(mine.terms(step))
        return fresh, used

    fresh, used = network_at(0)
    assert all(torch.equal(fresh[name], used[name]) for name in fresh)
    fresh, used = network_at(1)
    assert not all(torch.equal(fresh[name], used[name]) for name in fresh)
    fresh, used = network_at(2)
    assert all(torch.equal(fresh[name], used[name]) for name in fresh)


def test_the_network_is_trained_on_the_images_that_were_matched(digits):
    """Those of before the update, which are not made a second time; written out with a plain optimizer."""
    mine = objective(outer_loop=2, augmentation=[], batch_network=20, lr_network=0.1)
    model, step = pixel_step(digits, mine)
    images = model.codes.latents.detach().clone()
    terms = mine.terms(step)
    next(terms).value.backward()
    with torch.no_grad():
        model.codes.latents.sub_(model.codes.latents.grad)
    assert next(terms, None) is None
    assert model.ledger._in_step == len(model.codes)
    network = step.network(NARROW).requires_grad_(True).train()
    loss = F.cross_entropy(network(step.normalise(images)), step.all_labels)
    for parameter, gradient in zip(
        network.parameters(), torch.autograd.grad(loss, network.parameters()), strict=True
    ):
        parameter.data -= 0.1 * gradient
    for name, value in network.named_parameters():
        assert (mine._trained[name] - value).abs().max() < 1e-9


def test_only_the_images_get_gradients(digits):
    """Nobody reads those of the network's weights."""
    mine = objective()
    _, step = pixel_step(digits, mine)
    made = []
    draw = step.network

    def network(factory):
        made.append(draw(factory))
        return made[-1]

    step.network = network
    next(mine.terms(step))
    assert all(parameter.grad is None for parameter in made[0].parameters())


def test_batch_normalisation_keeps_the_statistics_of_real_images(digits):
    """As DC's code: one forward pass of 16 real images of each class in training mode, then evaluation mode."""
    normed = partial(NARROW, norm="batch")
    mine = objective(network=normed)
    _, step = pixel_step(digits, mine)
    found = mine._current_network(step)
    expected = step.network(normed).train()
    with torch.no_grad():
        images = torch.cat([step.real(label, 16) for label in range(10)])
        expected(step.normalise(images))
    for name, value in expected.named_buffers():
        assert (found.get_buffer(name) - value).abs().max() <= 1e-9 * value.abs().max(), name
    before = {name: value.clone() for name, value in found.named_buffers()}
    single = loss_gradient(found, step.normalise(step.real(3, 1)), 3, create_graph=False)
    pair = loss_gradient(found, step.normalise(step.real(3, 1)).expand(2, -1, -1, -1), 3, create_graph=False)
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(single, pair, strict=True))
    assert all(torch.equal(before[name], value) for name, value in found.named_buffers())


def test_loop_counts_are_checked():
    with pytest.raises(UserError, match=r"objective.outer_loop \(0\) must be at least 1"):
        objective(outer_loop=0)
