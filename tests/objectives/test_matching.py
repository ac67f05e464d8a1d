"""Nested budgets of gradient and distribution matching."""

from functools import partial

import pytest
import torch
from small_runs import NARROW, fit, matching

from ldd.errors import UserError
from ldd.objectives import GradientMatching
from ldd.priors import PixelPrior
from tests.objectives.test_distribution import pixel_step

MAKERS = [matching, partial(GradientMatching, real_batch=4, network=NARROW)]
IDS = ["distribution", "gradient"]


def loss_of(term):
    return (term.value if term.report is None else term.report).item()


@pytest.mark.parametrize("make", MAKERS, ids=IDS)
def test_nested_budgets_are_the_mean_over_prefixes(digits, make):
    """Of the plain loss of the first one, the first two and all three images of each class, with its gradient."""
    model, step = pixel_step(digits, make(budgets=(2, 1)), images_per_class=3)
    (term,) = model.objective.terms(step)
    term.value.backward()
    images, losses = model.codes.latents.detach().requires_grad_(), []
    for size in (1, 2, 3):
        plain, step = pixel_step(digits, make(), images_per_class=size)
        rows = [3 * label + place for label in range(10) for place in range(size)]
        plain.codes.set_latents(torch.arange(10 * size), images.detach()[rows])
        (part,) = plain.objective.terms(step)
        part.value.backward()
        losses.append(loss_of(part))
        images.grad = torch.zeros_like(images) if images.grad is None else images.grad
        images.grad[rows] += plain.codes.latents.grad / 3
    assert abs(loss_of(term) - sum(losses) / 3) < 1e-9 * loss_of(term)
    assert (model.codes.latents.grad - images.grad).abs().max() < 1e-9 * images.grad.abs().max()


@pytest.mark.parametrize("make", MAKERS, ids=IDS)
def test_budgets_beyond_the_set_are_refused_before_the_first_step(digits, tmp_path, make):
    with pytest.raises(UserError, match=r"objective.budgets \(0\) must be at least 1"):
        make(budgets=(0, 2))
    with pytest.raises(UserError, match=r"objective.budgets \(3\) must not be above images_per_class \(2\)"):
        fit(PixelPrior(32), make(budgets=(1, 3)), tmp_path, 1, digits, images_per_class=2)
