"""Plans from measured bytes, kept between runs; the bytes that tensors hold at one time, counted."""

import json

import pytest
import torch
from small_runs import NARROW, matching

from ldd.distiller.memory import Cost, MemoryPlan, make_plan, peak_bytes, recall_plan
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.objectives import GradientMatching
from ldd.priors import PixelPrior
from ldd.runtime.devices import peak_memory_mib

COST = Cost(fixed=50, per_image=100)


@pytest.mark.parametrize(
    ("chunk_size", "checkpointing", "budget", "expected"),
    [
        ("auto", "auto", 1050, MemoryPlan(10, False)),  # 50 bytes and 10 images of 100
        ("auto", "auto", 1049, MemoryPlan(9, True)),
        ("auto", "never", 350, MemoryPlan(3, False)),
        ("auto", "always", 4000, MemoryPlan(10, True)),
        ("auto", "auto", 10, MemoryPlan(1, True)),
        (4, "auto", 10, MemoryPlan(4, True)),  # a number is honoured
        (4, "auto", 4000, MemoryPlan(4, False)),
    ],
)
def test_plan(chunk_size, checkpointing, budget, expected):
    assert make_plan(chunk_size, checkpointing, num_images=10, cost=COST, budget=budget) == expected


def test_peak_bytes_counts_what_lives_at_one_time():
    x = torch.randn(100, requires_grad=True)
    assert peak_bytes(lambda: x * 2) == 400
    assert peak_bytes(lambda: x.view(10, 10)[0]) == 0  # no storage of its own
    assert peak_bytes(lambda: x.detach().add_(0)) == 0

    def one_after_the_other():
        for _ in range(5):
            torch.ones(100)

    assert peak_bytes(one_after_the_other) == 400

    def with_backward():
        y = x.sin()
        z = y.sin()
        torch.autograd.grad(z.sum(), x)

    # y, z, the gradient of y, cos(x) and their product at the end; the sum and its gradient are 4 bytes each.
    assert peak_bytes(with_backward) == 5 * 400 + 8


def test_cost_is_linear_in_the_images():
    def run(n):
        fixed = torch.ones(1000)
        return [fixed, torch.ones(n, 250)]

    assert Cost.measure(run, most=10) == Cost(4000, 1000)
    assert Cost.measure(run, most=1) == Cost(0, 5000)


def test_plans_are_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []

    def measure():
        measured.append(True)
        return COST

    def recall(free, **facts):
        return recall_plan(
            {"prior": "a", **facts}, measure, lambda cost: make_plan("auto", "auto", 100, cost, free)
        )

    assert recall(1050) == MemoryPlan(10, True)
    assert recall(1950) == MemoryPlan(
        10, True
    )  # somewhat more memory is free: the same plan, the same rounding
    assert recall(2050) == MemoryPlan(20, True)  # twice as much: anew
    assert recall(1050) == MemoryPlan(10, True)  # the kept one no longer fits
    assert recall(50_000) == MemoryPlan(100, False)
    assert len(measured) == 1
    assert recall(1050, image_size=64) == MemoryPlan(10, True)
    assert len(measured) == 2
    path = tmp_path / "latentdd" / "memory_plans.json"
    assert len(json.loads(path.read_text())) == 2
    path.write_text("{broken")
    assert recall(1050) == MemoryPlan(10, True)
    assert len(measured) == 3


@pytest.mark.parametrize("objective", [matching(), GradientMatching(real_batch=4, network=NARROW)])
def test_a_step_takes_no_more_than_planned(monkeypatch, tmp_path, digits, objective):
    """Chunks found for a budget keep the decoding's bytes within it, and twice the memory doubles the chunk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for free in (4e6, 8e6):
        monkeypatch.setattr("ldd.distiller.memory.free_bytes", lambda device, free=free: free)
        model = Distiller(PixelPrior(32), objective, digits.spec, images_per_class=20)
        step = model.context(digits.core_set, 0)
        next(objective.terms(step))
        found.append(model.planner.plans["codes"])
    assert found[0].checkpoint
    assert found[0].chunk < 200
    assert abs(found[1].chunk - 2 * found[0].chunk) <= 0.1 * found[1].chunk + 1


def test_chunk_size_is_checked(digits):
    with pytest.raises(UserError, match=r"chunk_size \(-1\)"):
        Distiller(PixelPrior(32), matching(), digits.spec, chunk_size=-1)


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mib(torch.device("cpu"))
    held = torch.ones(int(before + 100) * 2**18)  # 4 bytes each
    assert peak_memory_mib(torch.device("cpu")) > before + 50
    assert held.sum() > 0
