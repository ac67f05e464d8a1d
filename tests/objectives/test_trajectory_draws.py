"""Trajectory matching of distributions: a draw per inner step, exact gradients, shared by ranks."""

import pytest
import torch
from d3_world import TINY, assert_same, gaussian_model, gradients, total
from torch.func import functional_call
from torch.nn import functional as F

from ldd.codes import PointCodes
from ldd.objectives import TrajectoryMatching

ALPHA = 2**-4


def objective_of(experts, **arguments):
    settings = {"network": TINY, "syn_steps": 3, "step_size": ALPHA, "augmentation": [], "unroll": "full"}
    return TrajectoryMatching(experts, **settings | arguments).double()


@pytest.mark.parametrize("batch_syn", [None, 4])
def test_gradients_through_the_draws_of_every_inner_step(data, experts, batch_syn):
    """Against one graph over decodings and student steps."""
    objective = objective_of(experts, batch_syn=batch_syn)
    model = gaussian_model(data, objective)
    step = model.context(data.core_set, 2)
    (term,) = objective.terms(step)
    network = step.network(TINY)
    names, shapes = zip(*((name, value.shape) for name, value in network.named_parameters()), strict=True)
    start, target = objective._draw_expert(step, objective._search.find(step).experts).double()
    theta, alpha = (
        start.clone().requires_grad_(),
        torch.tensor(ALPHA, dtype=torch.float64, requires_grad=True),
    )
    for i, (rows, _) in enumerate(objective._draw_batches(step)):
        images = torch.cat(
            [
                model.synthesis(row[None], step.generator("trajectory" if not i else f"trajectory {i}"))
                for row in rows
            ]
        )
        parts = theta.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        logits = functional_call(network, weights, (data.spec.normalise(images),))
        loss = F.cross_entropy(logits, model.codes.labels[rows])
        theta = theta - alpha * torch.autograd.grad(loss, theta, create_graph=True)[0]
    expected = (theta - target).square().sum() / (start - target).square().sum()
    assert abs(term.report - expected) < 1e-12
    assert_same(gradients(model, term.value), gradients(model, expected))


@pytest.mark.parametrize("arguments", [{}, {"unroll": "constant_memory"}, {"draws": "step"}], ids=str)
def test_ranks_add_up_to_one(data, experts, arguments):
    def run(rank, world_size, images=None):
        objective = objective_of(experts, batch_syn=4, **arguments)
        model = gaussian_model(data, objective)
        step = model.context(data.core_set, 1, rank, world_size)
        gathered = []

        def gather(own, at=None, total=None):
            # What all ranks hold together, as the rank that is alone had it.
            gathered.append(type(step).gather(step, own, at, total) if images is None else images)
            return gathered[-1]

        step.gather = gather
        (term,) = objective.terms(step)
        return term.report, gradients(model, term.value), gathered[0]

    report, whole, images = run(0, 1)
    parts = [run(rank, 2, images) for rank in (0, 1)]
    assert abs(report - sum(part[0] for part in parts)) < 1e-12
    assert_same(total([part[1] for part in parts]), whole)


def test_draws_differ_between_inner_steps_unless_told_otherwise(data, experts):
    for draws, differ in (("inner_step", True), ("step", False)):
        objective = objective_of(experts, draws=draws)
        shown = objective._show(gaussian_model(data, objective).context(data.core_set, 0))
        first, second = (shown.images[places] for places, _ in shown.batches[:2])
        order = [shown.labels[places].argsort() for places, _ in shown.batches[:2]]
        assert torch.equal(shown.labels[shown.batches[0][0]][order[0]], torch.tensor([0, 0, 1, 1, 2, 2]))
        same = {round(float(image.sum()), 9) for image in first} == {
            round(float(image.sum()), 9) for image in second
        }
        assert same is not differ


def test_points_are_shown_once(data, experts):
    objective = objective_of(experts)
    model = gaussian_model(data, objective, codes=PointCodes)
    shown = objective._show(model.context(data.core_set, 0))
    assert len(shown.own) == 6
    assert not model.codes.stochastic
