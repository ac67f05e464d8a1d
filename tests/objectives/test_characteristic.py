"""NCFM against complex exponentials written out, its min-max, its calibration, ranks, and three kinds of codes."""

import math
from functools import partial

import pytest
import torch
from d3_world import TINY, assert_same, gaussian_model, gradients, total
from small_runs import NARROW, fit
from torch.nn import functional as F

from ldd.errors import UserError
from ldd.networks import ConvNet
from ldd.objectives import CharacteristicMatching
from ldd.objectives.characteristic import SAMPLING, characteristic_distance
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior, PixelPrior
from tests.objectives.test_distribution import pixel_step


def ncfm(**arguments):
    return CharacteristicMatching(
        **{"network": NARROW, "real_batch": 4, "frequencies": 40, "augmentation": ["flip", "crop"]}
        | arguments
    )


def by_hand(real, synthetic, frequencies, amplitude=0.5, phase=0.5):
    """The formula of the docstring, one frequency after the other."""
    terms = []
    for t in frequencies:
        phi_r, phi_s = (torch.exp(1j * (x @ t)).mean() for x in (real, synthetic))
        apart = 2 * (phi_r.abs() * phi_s.abs() - (phi_r * phi_s.conj()).real)
        terms.append((amplitude * (phi_r.abs() - phi_s.abs()) ** 2 + phase * apart.clamp(min=1e-12)).sqrt())
    return torch.stack(terms).mean()


def test_distance_is_the_formula_with_its_gradients():
    generator = torch.Generator().manual_seed(0)
    real, own, t = (
        torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_() for n in (7, 3, 11)
    )
    found, wanted = (make(real, own, t, 0.3, 0.8) for make in (characteristic_distance, by_hand))
    assert abs(found - wanted) < 1e-12
    for one, other in zip(*(torch.autograd.grad(x, (real, own, t)) for x in (found, wanted)), strict=True):
        assert (one - other).abs().max() < 1e-10


def test_equal_samples_are_at_no_distance_and_a_shift_is_all_phase():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([[0.7, 0.0, 0.0]], dtype=torch.float64)
    assert characteristic_distance(x, x, t).item() < 1e-6  # the square root of the floor of the phase
    moved = characteristic_distance(x, x + torch.tensor([1.0, 0, 0]), t, 1.0, 0.5).item()
    norm = torch.exp(1j * (x @ t[0])).mean().abs().item()
    assert abs(moved - math.sqrt(norm**2 * (1 - math.cos(0.7)))) < 1e-9


def test_term_is_the_sum_over_classes(digits):
    objective = ncfm(real_chunk=3)
    model, step = pixel_step(digits, objective)
    (term,) = objective.terms(step)
    network = step.network(NARROW)
    draws = objective.augmentation.draw(10, step.generator("augmentation"), one_strategy=False)
    expected = 0
    for label in range(10):

        def features(images, label=label):
            shared = draws[torch.full((len(images),), label)]
            embedded = network.embed(objective.augmentation(digits.spec.normalise(images), shared))
            return F.normalize(embedded, dim=1)

        real, own = features(step.real(label, 4)), features(step.decode(step.rows[2 * label : 2 * label + 2]))
        t = torch.randn(40, real.shape[1], generator=step.generator("frequencies", label)).double()
        expected = expected + 300 * by_hand(real, own, t)
    assert abs(term.value - expected) < 1e-9 * expected
    assert_same(gradients(model, term.value), gradients(model, expected))


@pytest.mark.parametrize("sampling", [False, True])
def test_ranks_add_up_to_one(data, sampling):
    """Also where a rank has no class, and for the sampling network's weights."""

    def run(rank, world_size):
        objective = ncfm(network=TINY, sampling_network=sampling)
        model = gaussian_model(data, objective)
        weights = (
            [
                p
                for g in objective.optimizers(model.codes, model.prior)[SAMPLING].param_groups
                for p in g["params"]
            ]
            if sampling
            else []
        )
        terms = objective.terms(model.context(data.core_set, 1, rank, world_size))
        found = gradients(model, next(terms).value)
        if sampling:
            for i, gradient in enumerate(torch.autograd.grad(next(terms).value, weights)):
                found[f"sampling {i}"] = gradient
        return found

    whole, parts = run(0, 1), [run(rank, 4) for rank in range(4)]
    added = total(parts)
    for name, value in whole.items():
        assert (added[name] - value).abs().max() < 1e-9 * max(1e-3, value.abs().max()), name


def test_the_sampling_network_climbs_while_the_codes_descend(digits):
    """Against the same frequencies: its step raises the distance, and its frequencies lie in (-1, 1)."""
    objective = ncfm(sampling_network=True, lr_sampling=1.0)
    model, step = pixel_step(digits, objective)
    optimizers = objective.optimizers(model.codes, model.prior)
    first, second = objective.terms(step)
    assert first.optimizers == ("codes",)
    assert second.optimizers == (SAMPLING,)
    assert abs(second.report - first.value) < 1e-9 * first.value
    second.value.backward()
    assert model.codes.latents.grad is None
    optimizers[SAMPLING].step()
    again, _ = objective.terms(step)
    assert again.value > first.value
    frequencies = objective._draw_frequencies(step, 0, torch.empty(1, 128).double())
    assert frequencies.shape == (40, 128)
    assert frequencies.abs().max() <= 1
    assert torch.equal(frequencies[:3], frequencies[3:6])  # 40 frequencies are 16 times 3, cut


def test_a_resumed_min_max_goes_on_with_the_same_bits(digits, tmp_path):
    objective = partial(
        ncfm, sampling_network=True, lr_sampling=0.1, network=[NARROW, partial(ConvNet, width=4)]
    )
    whole = fit(PixelPrior(32), objective(), tmp_path / "whole", 4, digits)
    fit(PixelPrior(32), objective(), tmp_path / "parts", 2, digits)
    (last,) = (tmp_path / "parts").rglob("*.ckpt")
    resumed = fit(PixelPrior(32), objective(), tmp_path / "parts", 4, digits, ckpt_path=last)
    assert torch.equal(whole.codes.latents, resumed.codes.latents)
    state, again = whole.objective.get_extra_state(), resumed.objective.get_extra_state()
    assert {name.partition(".")[0] for name in state} == {"128", "64"}
    assert all(torch.equal(value, again[name]) for name, value in state.items())


@pytest.mark.parametrize("prior", [PixelPrior, AutoencoderPrior, LatentDiffusionPrior])
def test_steps_lower_the_distance_of_pixels_latents_and_codes(prior, digits, tmp_path, tiny_prior_path):
    places = {AutoencoderPrior: (str(tiny_prior_path),), LatentDiffusionPrior: (str(tiny_prior_path),)}
    made = prior(*places.get(prior, (32,)), **({"num_steps": 1} if prior is LatentDiffusionPrior else {}))
    objective = ncfm(lr_latents=0.03, real_batch=16, frequencies=64, augmentation=[])
    model = fit(made, objective, tmp_path / "end", 15, digits)

    def loss(distiller):
        with torch.no_grad():
            steps = (distiller.context(digits.core_set, step) for step in range(100, 105))
            return sum(next(objective.terms(step)).value.item() for step in steps)

    assert loss(model) < loss(fit(made, objective, tmp_path / "start", 0, digits))


def test_features_of_experts_and_the_calibration(data, experts):
    """The second step is the cross-entropy under the last weights of the expert that it draws."""
    objective = ncfm(network=TINY, trajectories=experts, calibration=0.5, augmentation=[])
    model = gaussian_model(data, objective)
    step = model.context(data.core_set, 2)
    _, term = objective.terms(step)
    found = objective._search.find(step).experts
    expert = int(torch.randint(2, (), generator=step.generator("calibration expert")))
    network = TINY(3, 32).double()
    torch.nn.utils.vector_to_parameters(found.read(expert, [3])[0].double(), network.parameters())
    images = torch.cat(step.decode_batches([step.rows_on_host], purpose="calibration"))
    expected = 0.5 * F.cross_entropy(network(data.spec.normalise(images)), step.labels)
    assert abs(term.value - expected) < 1e-9 * expected
    assert_same(gradients(model, term.value), gradients(model, expected))


def test_what_does_not_fit_together(digits):
    with pytest.raises(UserError, match=r"objective.calibration \(1.0\) needs trained networks"):
        ncfm(calibration=1.0)
    with pytest.raises(UserError, match=r"objective.network: 2 networks, but the experts .* are of one"):
        ncfm(network=[NARROW, NARROW], trajectories="experts")
    objective = ncfm(network=partial(ConvNet, width=4, norm="batch"))
    _, step = pixel_step(digits, objective)
    with pytest.raises(UserError, match=r"set the network's norm to instance"):
        list(objective.terms(step))
