"""Several objectives in a step: in turn, as a sum, with shared or own optimizers."""

import shutil
from functools import partial

import pytest
import torch
from d3_world import TINY, gaussian_model
from small_runs import NARROW, fit, matching

from ldd.artefact.set import DistilledSet
from ldd.codes import GaussianCodes
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.experts.recording import record_experts
from ldd.objectives import Alternating, GradientMatching, RBFMixture, TrajectoryMatching
from ldd.priors import DeconvolutionPrior, PixelPrior
from ldd.runs.folder import find_last
from tests.objectives.test_mmd import mmd

RATES = {"lr_latents": 0.1, "lr_conditioning": 0.1, "lr_decoder": 0.01}


def trajectory(experts, **arguments):
    return TrajectoryMatching(
        experts,
        **{"network": TINY, "syn_steps": 3, "lr_step_size": 1e-4, "augmentation": []} | RATES | arguments,
    )


def both(experts, first=None, second=None, **arguments):
    return Alternating(
        [
            trajectory(experts, **first or {}),
            mmd(trajectories=experts, discrepancy=RBFMixture(), **RATES | (second or {})),
        ],
        **arguments,
    )


def decoder():
    return DeconvolutionPrior("small", 32, width=8, latent_width=6)


def run(objective, folder, steps, data, **arguments):
    return fit(
        decoder(), objective, folder, steps, data, codes=GaussianCodes, images_per_class=2, **arguments
    )


def state_of(model):
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name.startswith(("codes.", "prior.", "objective.")) and isinstance(value, torch.Tensor)
    }


def test_each_loss_steps_before_the_next_is_computed(data, experts, tmp_path):
    """Against a loop written out with three plain optimizers."""
    model = run(both(experts), tmp_path / "run", 3, data)
    objective = both(experts)
    other = gaussian_model(data, objective, prior=decoder(), dtype=torch.float32)
    start = run(both(experts), tmp_path / "start", 0, data)
    other.load_state_dict(start.state_dict())
    codes = torch.optim.SGD(
        [
            {"params": [other.codes.latents], "lr": 0.1},
            {"params": [other.codes.log_variance], "lr": 0.01},
        ],
        momentum=0.5,
    )
    weights = torch.optim.Adam(other.prior.parameters(), lr=0.01, weight_decay=1e-5)
    alpha = torch.optim.SGD([objective.objectives[0].step_size], lr=1e-4, momentum=0.5)
    for step in range(3):
        context = other.context(data.core_set, step)
        for child, optimizers in zip(
            objective.objectives, ((codes, weights, alpha), (codes, weights)), strict=True
        ):
            for optimizer in (codes, weights, alpha):
                optimizer.zero_grad()
            next(child.terms(context)).value.backward()
            for optimizer in optimizers:
                optimizer.step()
    assert model.trainer.global_step == 3
    for name, value in state_of(other).items():
        assert not value.numel() or (value - state_of(model)[name]).abs().max() < 1e-6, name
    logged = model.trainer.callback_metrics
    assert {
        f"train/{name}" for name in ("loss", "trajectory", "mmd", "mmd_kernel", "step_size", "deviation")
    } <= logged.keys()
    assert abs(logged["train/loss"] - logged["train/trajectory"] - logged["train/mmd"]) < 1e-5


def test_resumed_runs_are_bit_identical_and_the_artefact_holds_the_decoder(data, experts, tmp_path):
    unbroken = run(both(experts, every=[1, 2]), tmp_path / "whole", 5, data)
    run(both(experts, every=[1, 2]), tmp_path / "half", 2, data)
    last = find_last(tmp_path / "half")
    resumed = run(both(experts, every=[1, 2]), tmp_path / "half", 5, data, ckpt_path=last)
    expected, found = state_of(unbroken), state_of(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    loaded = DistilledSet.load(tmp_path / "half" / "distilled")
    assert (tmp_path / "half" / "distilled" / "decoder.safetensors").is_file()
    fresh = decoder()
    fresh.load_trained(loaded.decoder)
    assert all(
        torch.equal(value, unbroken.prior.state_dict()[name]) for name, value in fresh.state_dict().items()
    )


def test_experts_recorded_while_a_run_stands_still_take_no_part_in_it(data, tmp_path):
    """A run that reads all of a recording ends with the bits of an unbroken one; of other experts it is refused."""
    root = str(tmp_path / "experts")
    made = partial(record_experts, data, TINY, epochs=3, learning_rate=0.05, progress=False)
    made(num_experts=2, out=root)
    unbroken = run(both(root), tmp_path / "whole", 5, data)
    run(both(root), tmp_path / "half", 2, data)
    made(num_experts=5, out=root)
    last = find_last(tmp_path / "half")
    resumed = run(both(root), tmp_path / "half", 5, data, ckpt_path=last)
    expected, found = state_of(unbroken), state_of(resumed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    fresh = state_of(run(both(root), tmp_path / "five", 5, data))
    assert not all(torch.equal(fresh[name], value) for name, value in expected.items())
    shutil.rmtree(root)
    made(num_experts=2, momentum=0.9, out=root)
    with pytest.raises(UserError, match=r"are not those that this run began with .*'momentum': 0.0"):
        run(both(root), tmp_path / "half", 6, data, ckpt_path=find_last(tmp_path / "half"))


def test_the_sum_is_one_step(data, experts):
    """Its gradient is the sum of both, and each is logged."""
    objective = both(experts, mode="sum")
    model = gaussian_model(data, objective)
    objective.double()
    step = model.context(data.core_set, 0)
    (term,) = objective.terms(step)
    parameters = [model.codes.latents, *model.prior.parameters(), objective.objectives[0].step_size]
    found = torch.autograd.grad(term.value, parameters)
    terms = [next(child.terms(step)) for child in objective.objectives]
    expected = torch.autograd.grad(terms[0].value + terms[1].value, parameters)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-9 * other.abs().max()
    assert term.optimizers == ("codes", "step_size 0")
    assert abs(term.report - terms[0].report - terms[1].value) < 1e-12
    assert {"trajectory", "step_size", "mmd", "mmd_kernel"} == set(term.metrics)


def test_the_sum_of_two_of_one_kind_reports_both(data):
    """Their terms have one name, under which the last is logged; the loss is of both."""
    objective = Alternating([mmd(samples=4, **RATES), mmd(samples=4, weight=3.0, **RATES)], mode="sum")
    step = gaussian_model(data, objective).context(data.core_set, 0)
    (term,) = objective.terms(step)
    one, other = (next(child.terms(step)).value for child in objective.objectives)
    assert abs(other - 3 * one) < 1e-6 * abs(other)
    assert abs(term.report - one - other) < 1e-6 * abs(other)
    assert abs(term.value - term.report) < 1e-6 * abs(other)


def test_sum_of_objectives_with_different_numbers_of_terms_runs(data, tmp_path):
    model = run(
        Alternating([matching(network=TINY, **RATES), mmd(**RATES)], mode="sum", every=[1, 3]),
        tmp_path,
        2,
        data,
    )
    assert model.trainer.global_step == 2
    assert model.codes.latents.isfinite().all()


def test_every(data, experts):
    objective = both(experts, every=[1, 3])
    model = gaussian_model(data, objective)
    objective.double()
    names = [[t.name for t in objective.terms(model.context(data.core_set, step))] for step in range(4)]
    assert names == [["trajectory", "mmd"], ["trajectory"], ["trajectory"], ["trajectory", "mmd"]]


def test_optimizers_are_shared_or_own(data, experts):
    shared = both(experts)
    model = gaussian_model(data, shared)
    assert list(shared.optimizers(model.codes, model.prior)) == ["codes", "decoder", "step_size 0"]
    own = both(experts, share_optimizers=False, second={"lr_latents": 7.0})
    optimizers = own.optimizers(model.codes, model.prior)
    assert list(optimizers) == ["codes 0", "decoder 0", "step_size 0", "codes 1", "decoder 1"]
    assert [optimizers[f"codes {i}"].param_groups[0]["lr"] for i in (0, 1)] == [0.1, 7.0]
    assert len(own.experts()) == 2
    assert own.matching_networks() == (TINY, TINY)


def test_own_optimizers_run(data, experts, tmp_path):
    model = run(both(experts, share_optimizers=False, second={"lr_decoder": 1e-3}), tmp_path, 2, data)
    steps = {name: optimizer for name, optimizer in model._optimizers.items() if name.startswith("decoder")}
    assert len(steps) == 2
    assert all(float(state["step"]) == 2 for o in steps.values() for state in o.state.values())


def test_refuses(data, experts):
    model = gaussian_model(data, mmd())
    text = r"MaximumMeanDiscrepancy has other settings for the codes than those before it \(lr 0.1 and 7.0\)"
    with pytest.raises(UserError, match=text):
        both(experts, second={"lr_latents": 7.0}).optimizers(model.codes, model.prior)
    with pytest.raises(UserError, match=r"objective.objectives: 1 given; two or more can alternate"):
        Alternating([mmd()])
    with pytest.raises(UserError, match=r"objective.every \(\[1\]\) must have a number"):
        both(experts, every=[1])
    with pytest.raises(UserError, match=r"objective.every \(\[2, 2\]\) .* and a 1 among them"):
        both(experts, every=[2, 2])
    with pytest.raises(UserError, match=r"share_optimizers \(false\): a sum has one step"):
        both(experts, mode="sum", share_optimizers=False)


def test_cycles_of_an_objective_count_its_own_steps(digits):
    """DC in every second step with a network for two of its steps: fresh in steps 0 and 4, trained in 2 and 6."""
    dc = GradientMatching(real_batch=4, network=NARROW, outer_loop=2, augmentation=[])
    both = Alternating([matching(), dc], every=[1, 2], share_optimizers=False)
    model = Distiller(PixelPrior(32), both, digits.spec)
    model.initializer(model.codes, model.prior, digits.core_set, torch.Generator().manual_seed(0))
    fresh = []
    current = dc._current_network

    def noted(context):
        network = current(context)
        plain = context.network(NARROW).state_dict()
        fresh.append(all(torch.equal(plain[name], value) for name, value in network.state_dict().items()))
        return network

    dc._current_network = noted
    for step in range(8):
        list(both.terms(model.context(digits.core_set, step)))
    assert fresh == [True, False, True, False]
