"""Point codes: rows, what is learned, what moves."""

import pytest
import torch

from ldd.codes import PointCodes
from ldd.errors import UserError
from ldd.objectives.matching import sgd_on_codes


def codes(**arguments):
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 2, 3, 3), (4, 1, 5), (4, 2, 3, 3)]
    latents, conditioning, noise = (torch.randn(shape, generator=generator) for shape in shapes)
    return PointCodes(torch.tensor([0, 0, 1, 1]), latents, conditioning, noise, **arguments)


def test_rows_come_back_with_their_gradient():
    found = codes()
    rows = torch.tensor([3, 1])
    batch = found(rows)
    assert torch.equal(batch.labels, torch.tensor([1, 0]))
    assert torch.equal(batch.noise, found.noise[rows])
    (batch.latents.sum() + 2 * batch.conditioning.sum()).backward()
    assert found.latents.grad.flatten(1).sum(1).tolist() == [0, 18, 0, 18]
    assert found.conditioning.grad.flatten(1).sum(1).tolist() == [0, 10, 0, 10]


def test_set_latents_sets_only_those_rows():
    found = codes()
    before = found.latents.clone()
    found.set_latents(torch.tensor([2]), torch.ones(1, 2, 3, 3))
    assert torch.equal(found.latents[2], torch.ones(2, 3, 3))
    assert torch.equal(found.latents[[0, 1, 3]], before[[0, 1, 3]])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["latents", "conditioning"]),
        ({"learn_latents": False}, ["conditioning"]),
        ({"learn_conditioning": False}, ["latents"]),
    ],
)
def test_groups_are_what_is_learned(arguments, expected):
    assert list(codes(**arguments).groups()) == expected
    optimizer = sgd_on_codes(codes(**arguments), {"latents": 3.0, "conditioning": 0.5}, momentum=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [
        {"latents": 3.0, "conditioning": 0.5}[n] for n in expected
    ]


def test_an_unconditional_prior_has_nothing_to_condition():
    empty = PointCodes(
        torch.tensor([0]), torch.zeros(1, 1, 2, 2), torch.zeros(1, 0, 0), torch.zeros(1, 1, 2, 2)
    )
    assert list(empty.groups()) == ["latents"]


def test_nothing_learned_or_no_rate_is_refused():
    with pytest.raises(UserError, match="nothing is learned; set learn_latents or learn_conditioning"):
        sgd_on_codes(codes(learn_latents=False, learn_conditioning=False), {}, 0.5)
    with pytest.raises(UserError, match="no learning rate for the codes' conditioning"):
        sgd_on_codes(codes(), {"latents": 1.0}, 0.5)
