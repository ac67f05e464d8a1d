"""Students' Muon against torch's own over weights laid out as matrices, and against AdamW over the rest."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from ldd.networks import ConvNet
from ldd.students.optimizers import MatrixMuon, student_optimizer
from ldd.students.protocol import Protocol


def trained(network, make_step, steps=3):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6) % 3
    for number in range(steps):
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        make_step(number)
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def fresh():
    torch.manual_seed(0)
    return ConvNet(3, 32, depth=2, width=4)


def test_convolutions_move_as_matrices_and_head_and_vectors_by_adamw():
    network = fresh()
    optimizer = MatrixMuon(list(network.parameters()), 0.02, 0.9, 0.1, decay_vectors=False)
    schedule = LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))

    def step(_):
        optimizer.step()
        schedule.step()

    found = trained(network, step)
    network = fresh()
    weights = [p for p in network.parameters() if p.ndim == 4]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    matrices = [nn.Parameter(p.detach().reshape(len(p), -1).clone()) for p in weights]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    head = torch.optim.AdamW([network.classifier.weight], lr=0.02, weight_decay=0.1)
    rest = torch.optim.AdamW(vectors, lr=0.02, weight_decay=0.0)

    def by_hand(number):
        for matrix, weight in zip(matrices, weights, strict=True):
            matrix.grad = weight.grad.reshape(matrix.shape)
        for one in (muon, head, rest):
            one.param_groups[0]["lr"] = 0.02 / (1 + number)
            one.step()
        for matrix, weight in zip(matrices, weights, strict=True):
            weight.data = matrix.detach().reshape(weight.shape).clone()

    for name, value in trained(network, by_hand).items():
        assert (found[name] - value).abs().max() < 1e-6, name
        assert not torch.equal(value, dict(fresh().named_parameters())[name])


def test_updates_of_matrices_are_nearly_orthogonal():
    """Newton and Schulz's iteration brings the singular values of a step near 1, times the rate and 0.2 sqrt(rows)."""
    weight, head = nn.Parameter(torch.zeros(16, 2, 3, 3)), nn.Parameter(torch.zeros(3, 16))
    optimizer = MatrixMuon([weight, head], 0.5, 0.0, 0.0)
    weight.grad = torch.randn(16, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    head.grad = torch.ones(3, 16)
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach().flatten(1)) / (0.5 * 0.2 * 18**0.5)
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert (head + 0.5).abs().max() < 1e-6  # AdamW's first step is the sign of the gradient


def test_protocols_name_it():
    network, protocol = fresh(), Protocol.load("idc-hard-muon")
    made = student_optimizer(network, protocol, network.parameters())
    assert isinstance(made, MatrixMuon)
    assert made.param_groups[0]["lr"] == 1e-3
