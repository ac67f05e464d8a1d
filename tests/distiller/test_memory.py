"""Plans from measured bytes, kept between runs; the bytes that tensors hold at one time, counted."""

import json
from functools import partial

import pytest
import torch
from small_runs import NARROW, matching

from ldd.codes import GaussianCodes, PointCodes
from ldd.distiller.memory import Cost, MemoryPlan, PassCosts, kept_mib, make_plan, peak_bytes, recall_plan
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.networks import ViT
from ldd.objectives import GradientMatching
from ldd.priors import LatentDiffusionPrior, PixelPrior
from ldd.runtime.devices import peak_memory_mib
from ldd.runtime.seeding import generator

KEPT, LEAST = Cost(fixed=50, per_image=100), Cost(fixed=50, per_image=20)
COSTS = PassCosts(KEPT, LEAST)


@pytest.mark.parametrize(
    ("chunk_size", "checkpointing", "calls", "budget", "expected"),
    [
        ("auto", "auto", 4, 1050, MemoryPlan(10, 0)),  # 50 bytes and 10 images of 100
        ("auto", "auto", 4, 1049, MemoryPlan(10, 1)),  # each of four calls spares 20 of 80
        ("auto", "auto", 4, 850, MemoryPlan(10, 1)),
        ("auto", "auto", 4, 849, MemoryPlan(10, 2)),
        ("auto", "auto", 4, 250, MemoryPlan(10, 4)),
        ("auto", "auto", 4, 249, MemoryPlan(9, 5)),  # everything, in chunks
        ("auto", "auto", 0, 1050, MemoryPlan(10, 0)),
        ("auto", "auto", 0, 1049, MemoryPlan(10, 1)),
        ("auto", "auto", 0, 240, MemoryPlan(9, 1)),
        ("auto", "never", 4, 350, MemoryPlan(3, 0)),
        ("auto", "always", 4, 4000, MemoryPlan(10, 5)),
        ("auto", "auto", 4, 10, MemoryPlan(1, 5)),
        (4, "auto", 4, 10, MemoryPlan(4, 5)),  # a number is honoured
        (4, "auto", 4, 900, MemoryPlan(4, 1)),  # for all images, of which four are made at a time
        (4, "auto", 4, 4000, MemoryPlan(4, 0)),
    ],
)
def test_plan(chunk_size, checkpointing, calls, budget, expected):
    assert make_plan(chunk_size, checkpointing, 10, calls, COSTS, budget) == expected


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
        return PassCosts(KEPT, KEPT)

    def recall(free, **facts):
        return recall_plan(
            {"prior": "a", **facts}, measure, lambda costs: make_plan("auto", "auto", 100, 0, costs, free)
        )

    assert recall(1050) == MemoryPlan(10, 1)
    # Somewhat more memory is free: the same chunks, the same rounding.
    assert recall(1950) == MemoryPlan(10, 1)
    assert recall(2050) == MemoryPlan(20, 1)  # twice as much: anew
    assert recall(1050) == MemoryPlan(10, 1)  # the kept one no longer fits
    assert recall(50_000) == MemoryPlan(100, 0)
    assert len(measured) == 1
    assert recall(1050, image_size=64) == MemoryPlan(10, 1)
    assert len(measured) == 2
    path = tmp_path / "latentdd" / "memory_plans.json"
    assert len(json.loads(path.read_text())) == 2
    for damaged in ("{broken", '{"a": {"cost": {"fixed": 1, "per_image": 1}, "plan": {"chunk": 1}}}'):
        path.write_text(damaged)  # the second is of an earlier format
        assert recall(1050) == MemoryPlan(10, 1)
    assert len(measured) == 4


def test_less_is_checkpointed_where_memory_is_free_and_chunks_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def recall(free):
        return recall_plan({}, lambda: COSTS, lambda costs: make_plan("auto", "auto", 10, 4, costs, free))

    assert recall(249) == MemoryPlan(9, 5)
    assert recall(500) == MemoryPlan(9, 3)
    assert recall(5000) == MemoryPlan(9, 0)


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
    assert found[0].checkpointed == 1
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


def chained(digits, path, **arguments):
    """A model over a chain of three calls, with codes from the real images."""
    prior = LatentDiffusionPrior(str(path), num_steps=3)
    model = Distiller(prior, matching(), digits.spec, seed=3, **arguments)
    model.initializer(model.codes, prior, digits.core_set, generator(0))
    return model


@pytest.mark.parametrize(("codes", "vq"), [(PointCodes, True), (GaussianCodes, False)])
def test_gradients_have_the_same_bits_however_much_is_checkpointed(
    digits, tiny_prior_folder, tmp_path, codes, vq
):
    folder = tiny_prior_folder(tmp_path / "prior", vq=vq)
    found = []
    for count in (0, 1, 3, 4):
        model = chained(digits, folder, codes=codes)
        model.planner.plans["codes"] = MemoryPlan(4, count)
        (term,) = model.objective.terms(model.context(digits.core_set, 2))
        term.value.backward()
        found.append(
            [
                term.value.detach(),
                *(p.grad for p in model.codes.parameters() if p.requires_grad and p.numel()),
            ]
        )
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def kept_bytes(digits, path, num_steps, checkpointed, purpose="codes"):
    """Bytes that the graph of one image keeps for backward, weights and codes left out."""
    prior = LatentDiffusionPrior(str(path), num_steps=num_steps)
    model = Distiller(prior, matching(), digits.spec)
    model.planner.plans[purpose] = MemoryPlan(1, checkpointed)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    step = model.context(digits.core_set, 0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        images = step.decode(step.rows[:1])
    assert images.requires_grad
    return sum(saved.values())


def test_what_is_kept_grows_by_a_latent_a_step(digits, tiny_prior_path):
    """With every call checkpointed, and by the whole network's activations without."""
    few, many = (kept_bytes(digits, tiny_prior_path, steps, steps) for steps in (3, 9))
    latent = 4 * 8 * 8 * 4
    assert many - few <= 6 * latent
    few, many = (kept_bytes(digits, tiny_prior_path, steps, 0) for steps in (3, 9))
    assert many - few > 6 * 50 * latent
    assert kept_bytes(digits, tiny_prior_path, 9, 10) < 14 * latent  # decoding is made again as well


def test_the_most_that_is_held_does_not_grow_with_the_steps(digits, tiny_prior_path):
    """At one time, backward included."""

    def peak(num_steps):
        prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=num_steps)
        model = Distiller(prior, matching(), digits.spec)
        model.planner.plans["codes"] = MemoryPlan(2, num_steps)
        step = model.context(digits.core_set, 0)
        return peak_bytes(lambda: step.decode(step.rows[:2]).sum().backward())

    assert peak(12) - peak(4) <= 2 * 2 * 8 * 4 * 8 * 8 * 4


def test_plans_of_older_checkpoints(digits, tiny_prior_path):
    """They say whether activations are made again, not how many."""
    model = chained(digits, tiny_prior_path)
    for stored, expected in (
        ((3, True), MemoryPlan(3, 4)),
        ((4, False), MemoryPlan(4, 0)),
        ((5, 2), MemoryPlan(5, 2)),
    ):
        model.planner.load({"memory_settings": ("auto", "auto"), "memory_plans": {"codes": stored}})
        assert model.planner.plans == {"codes": expected}


def test_what_a_graph_keeps_is_counted():
    """`exp` keeps its result, a product the other factor; a tensor that is kept twice is there once."""
    x, w = torch.zeros(2**18, requires_grad=True), torch.ones(2**18)  # 1 MiB each
    assert kept_mib(lambda: x.exp(), []) == 1
    assert kept_mib(lambda: x * w, []) == 1
    assert kept_mib(lambda: x * w, [w]) == 0
    assert kept_mib(lambda: (x * w).exp() * w, []) == 2
    assert kept_mib(lambda: w.exp(), []) == 0, "without a gradient nothing is kept"


def test_plans_are_of_networks_with_these_settings(digits, tiny_prior_path):
    """Attention of twice the heads takes twice the memory."""
    facts = []
    for heads in (4, 8):
        objective = matching(network=partial(ViT, dim=8, depth=1, heads=heads))
        prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=1)
        facts.append(Distiller(prior, objective, digits.spec).planner._facts(torch.device("cpu")))
    assert facts[0]["networks"] != facts[1]["networks"]
