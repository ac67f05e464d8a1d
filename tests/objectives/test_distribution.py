"""DM against its formula, its zero, and its descent."""

from functools import partial

import pytest
import torch
from small_runs import NARROW, fit, matching

from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.networks import ConvNet
from ldd.objectives.distribution import mean_distance
from ldd.priors import PixelPrior


def pixel_step(digits, objective, images_per_class=2):
    """A step on pixel codes that start at real images, in float64."""
    model = Distiller(PixelPrior(32), objective, digits.spec, images_per_class=images_per_class).double()
    model.initializer(model.codes, model.prior, digits.core_set, torch.Generator().manual_seed(5))
    return model, model.context(digits.core_set, 0)


def test_mean_distance_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64)
    synthetic = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    expected = 0.0
    for k in range(3):
        for f in range(5):
            expected += float(sum(real[k, :, f]) / 7 - sum(synthetic[k, :, f]) / 2) ** 2
    assert abs(mean_distance(real, synthetic).item() - expected) < 1e-12


def test_term_equals_a_loop_over_classes(digits):
    objective = matching(real_chunk=3)
    model, step = pixel_step(digits, objective)
    (term,) = objective.terms(step)
    term.value.backward()
    found = model.codes.latents.grad.clone()
    network = step.network(NARROW)
    draws = objective.augmentation.draw(10, step.generator("augmentation"), one_strategy=False)
    images = model.codes.latents.detach().requires_grad_()
    loss = 0
    for label in range(10):
        own = draws[torch.full((4,), label)]
        real = network.embed(objective.augmentation(digits.spec.normalise(step.real(label, 4)), own)).mean(0)
        mine = images[2 * label : 2 * label + 2]
        fake = network.embed(objective.augmentation(digits.spec.normalise(mine), own[torch.arange(2)])).mean(
            0
        )
        loss = loss + (real - fake).pow(2).sum()
    loss.backward()
    assert abs(loss.item() - term.value.item()) < 1e-9 * loss.item()
    assert (images.grad - found).abs().max() < 1e-9 * found.abs().max()


def test_identical_images_give_zero_loss_and_gradient(digits):
    objective = matching()
    model, step = pixel_step(digits, objective, images_per_class=4)
    for label in range(10):
        rows = torch.arange(4 * label, 4 * label + 4)
        model.codes.set_latents(rows, step.real(label, 4))
    (term,) = objective.terms(step)
    term.value.backward()
    assert term.value.item() < 1e-24
    assert model.codes.latents.grad.abs().max() < 1e-12


def test_twenty_steps_lower_the_loss(digits, tmp_path):
    objective = matching(lr_latents=1.0, real_batch=50)
    model = fit(PixelPrior(32), objective, tmp_path / "end", 20, digits)

    def loss(distiller: Distiller) -> float:
        # Under twenty networks and batches that the run has not drawn.
        with torch.no_grad():
            steps = (distiller.context(digits.core_set, step) for step in range(100, 120))
            return sum(next(objective.terms(step)).value.item() for step in steps)

    start = fit(PixelPrior(32), objective, tmp_path / "start", 0, digits)
    assert loss(model) < 0.9 * loss(start)


def joint(**arguments):
    return matching(network=partial(ConvNet, width=8, norm="batch"), **arguments)


def test_batch_normalisation_sees_all_classes_at_once(digits):
    """Against a network written out with the statistics of each whole batch; chunks must not matter."""
    objective = joint(real_chunk=3)
    model, step = pixel_step(digits, objective)
    model.planner.chunk_size = 3
    (term,) = objective.terms(step)
    term.value.backward()
    network = step.network(objective.networks[0])
    draws = objective.augmentation.draw(10, step.generator("augmentation"), one_strategy=False)

    def features(images, per_class):
        labels = torch.arange(10).repeat_interleave(per_class)
        x = objective.augmentation(digits.spec.normalise(images), draws[labels])
        for layer in network.features:
            if isinstance(layer, torch.nn.BatchNorm2d):
                mean = x.mean((0, 2, 3), keepdim=True)
                var = (x - mean).pow(2).mean((0, 2, 3), keepdim=True)
                x = (x - mean) / (var + layer.eps).sqrt()  # weight 1, bias 0 at initialisation
            else:
                x = torch.relu(x) if isinstance(layer, torch.nn.ReLU) else layer(x)
        return x.flatten(1).reshape(10, per_class, -1).mean(1)

    images = model.codes.latents.detach().requires_grad_()
    real = features(torch.cat([step.real(label, 4) for label in range(10)]), 4)
    loss = (real - features(images, 2)).pow(2).sum()
    loss.backward()
    assert abs(loss.item() - term.report.item()) < 1e-9 * loss.item()
    assert (images.grad - model.codes.latents.grad).abs().max() < 1e-9 * images.grad.abs().max()


def test_two_ranks_share_the_joint_loss_and_its_gradient(digits):
    """Each rank alone, with the other's images handed to it in place of the collective."""
    gradients, reports = [], []
    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        objective = joint()
        model, _ = pixel_step(digits, objective)
        step = model.context(digits.core_set, 0, rank, world_size)
        step.gather = lambda own, codes=model.codes: codes.latents.detach().clone()
        (term,) = objective.terms(step)
        term.value.backward()
        gradients.append(model.codes.latents.grad)
        reports.append(term.report)
    assert (gradients[0] - gradients[1] - gradients[2]).abs().max() < 1e-12
    assert abs(reports[0] - reports[1] - reports[2]) < 1e-9 * reports[0]


def test_numbers_out_of_range():
    with pytest.raises(UserError, match=r"objective.real_batch \(0\) must be at least 1"):
        matching(real_batch=0)
