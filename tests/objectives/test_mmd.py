"""MMD of Gaussian codes through a trained decoder: against its formula, shared by ranks, descending."""

import warnings
from functools import partial

import pytest
import torch
from d3_world import TINY, assert_same, gaussian_model, gradients, total
from small_runs import fit

from ldd.codes import GaussianCodes, PointCodes
from ldd.errors import UserError
from ldd.networks import ConvNet
from ldd.objectives import MaximumMeanDiscrepancy, RBFMixture, Sinkhorn
from ldd.priors import DeconvolutionPrior, PixelPrior
from ldd.runtime.seeding import seeded

PUBLISHED = RBFMixture((1.0, 2.0, 4.0, 8.0, 16.0), "absolute", "none")


def mmd(**arguments):
    return MaximumMeanDiscrepancy(**{"network": TINY, "samples": 6, "discrepancy": PUBLISHED} | arguments)


def test_term_is_the_sum_over_classes_of_draws_and_real_images(data, experts):
    """Every draw decoded on its own, features by the last weights of the expert that the step drew."""
    objective = mmd(trajectories=experts)
    model = gaussian_model(data, objective)
    step = model.context(data.core_set, 4)
    (term,) = objective.terms(step)
    found = objective._search.find(step).experts
    expert = int(torch.randint(2, (), generator=step.generator("mmd expert")))
    network, weights = TINY(3, 32).double(), found.read(expert, [3])[0].double()
    torch.nn.utils.vector_to_parameters(weights, network.parameters())
    expected = 0
    for label in range(3):
        draws = [
            model.synthesis(torch.tensor([row]), step.generator("mmd" if not i else f"mmd {i}"))
            for row in (2 * label, 2 * label + 1)
            for i in range(3)
        ]
        synthetic = network.embed(data.spec.normalise(torch.cat(draws)))
        real = network.embed(data.spec.normalise(step.real(label, 6)))
        expected = expected + PUBLISHED(synthetic[None], real[None]).distance[0]
    assert abs(term.value - expected) < 1e-9 * expected.abs()
    assert_same(gradients(model, term.value), gradients(model, expected))
    assert 0 < term.metrics["mmd_kernel"] <= 1


@pytest.mark.parametrize(
    "discrepancy", [PUBLISHED, RBFMixture(), Sinkhorn()], ids=["rbf", "median", "sinkhorn"]
)
@pytest.mark.parametrize("arguments", [{}, {"num_classes": 2}], ids=["all", "two classes"])
def test_ranks_add_up_to_one(data, discrepancy, arguments):
    """Codes' and decoder's gradients, also where a rank has no class in this step."""
    objective = mmd(discrepancy=discrepancy, augmentation=["flip", "crop"], **arguments)
    model = gaussian_model(data, objective)

    def run(rank, world_size):
        (term,) = objective.terms(model.context(data.core_set, 1, rank, world_size))
        return {"mmd": term.value.detach(), **term.metrics}, gradients(model, term.value)

    whole, parts = run(0, 1), [run(rank, 3) for rank in range(3)]
    for logged, _ in parts:  # each is summed over ranks, in the order in which it is logged
        assert [(name, value.dtype) for name, value in logged.items()] == [
            (name, value.dtype) for name, value in whole[0].items()
        ]
    for name, value in whole[0].items():
        assert abs(value - sum(logged[name] for logged, _ in parts)) < 1e-9 * value.abs(), name
    assert_same(total([part[1] for part in parts]), whole[1])


def test_chunks_and_recomputation_draw_the_same(data):
    found = []
    for arguments in ({"chunk_size": 100}, {"chunk_size": 1}, {"checkpointing": "always"}):
        objective = mmd(real_chunk=4)
        model = gaussian_model(data, objective, **arguments)
        (term,) = objective.terms(model.context(data.core_set, 0))
        found.append(gradients(model, term.value))
    for other in found[1:]:
        assert_same(other, found[0])


def test_fewer_classes_estimate_the_same(data):
    """The mean over steps of two classes out of three is the loss over all of them, on the same images."""
    objective = mmd(num_classes=2)
    model = gaussian_model(data, objective)
    with torch.no_grad():
        step = model.context(data.core_set, 0)
        whole = next(mmd().terms(step)).value
        pairs = []
        for pair in torch.combinations(torch.arange(3)):
            objective._draw_classes = lambda context, pair=pair: pair
            pairs.append(next(objective.terms(step)).value)
    assert abs(sum(pairs) / 3 - whole) < 1e-9 * whole.abs()
    drawn = {
        frozenset(mmd(num_classes=2)._draw_classes(model.context(data.core_set, i)).tolist())
        for i in range(30)
    }
    assert len(drawn) == 3


def test_weight_and_mean(data):
    model = gaussian_model(data, mmd())
    step = model.context(data.core_set, 0)
    with torch.no_grad():
        whole = next(mmd().terms(step)).value
        assert abs(next(mmd(weight=3.0, reduce="mean").terms(step)).value - whole) < 1e-12


def test_identical_images(data):
    """Point codes at the step's own real images: nothing above zero, and Sinkhorn without gradient."""
    for discrepancy in (PUBLISHED, Sinkhorn()):
        objective = mmd(discrepancy=discrepancy, real_batch=2)
        model = gaussian_model(data, objective, prior=PixelPrior(32), codes=PointCodes)
        step = model.context(data.core_set, 0)
        for label in range(3):
            model.codes.set_latents(torch.tensor([2 * label, 2 * label + 1]), step.real(label, 2))
        (term,) = objective.terms(step)
        gradient = gradients(model, term.value)["codes.latents"]
        if discrepancy is PUBLISHED:
            assert term.value <= 1e-12
        else:
            assert abs(term.value) < 1e-6
            assert gradient.abs().max() < 1e-4


def test_epochs_of_the_experts(data, experts):
    def weights(step, **arguments):
        objective = mmd(trajectories=experts, **arguments)
        model = gaussian_model(data, objective)
        network = objective._draw_network(model.context(data.core_set, step))
        values = torch.nn.utils.parameters_to_vector(network.parameters()).float()
        recording = objective._search.find(model.context(data.core_set, step)).experts
        return next(
            (expert, epoch)
            for expert in range(2)
            for epoch in range(4)
            if torch.equal(recording.read(expert, [epoch])[0], values)
        )

    assert {weights(step) for step in range(6)} == {(0, 3), (1, 3)}
    assert {weights(step, expert_epoch=2, num_experts=1) for step in range(3)} == {(0, 2)}
    assert {weights(step, expert_epoch="random")[1] for step in range(12)} == {1, 2, 3}


def test_without_experts_the_network_is_new_each_step(data):
    objective = mmd()
    model = gaussian_model(data, objective)
    for step in range(2):
        found = objective._draw_network(model.context(data.core_set, step))
        with seeded(0, "mmd network", step):
            expected = TINY(3, 32).double()
        for one, other in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


def test_twenty_steps_lower_the_loss(data, experts, tmp_path):
    """Under experts and draws the run has not seen; latents, spread and decoder all move."""

    def run(steps, folder):
        objective = mmd(
            discrepancy=RBFMixture(), trajectories=experts, samples=20, lr_latents=0.1, lr_decoder=0.01
        )
        prior = DeconvolutionPrior("small", 32, width=16, latent_width=8)
        return fit(prior, objective, tmp_path / folder, steps, data, codes=GaussianCodes, images_per_class=2)

    start, end = run(0, "start"), run(20, "end")

    def loss(model):
        with torch.no_grad():
            steps = (model.context(data.core_set, step) for step in range(100, 120))
            return sum(next(model.objective.terms(step)).value.item() for step in steps)

    assert loss(end) < 0.7 * loss(start)
    for before, after in zip(start.parameters(), end.parameters(), strict=True):
        assert not before.numel() or not torch.equal(before, after)


def test_vanishing_kernels_are_told(data):
    tiny = mmd(discrepancy=RBFMixture((1e-3,), "absolute", "none"))
    with pytest.warns(UserWarning, match="kernels between synthetic and real features are nearly zero"):
        next(tiny.terms(gaussian_model(data, tiny).context(data.core_set, 0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = mmd(discrepancy=RBFMixture())
        next(fine.terms(gaussian_model(data, fine).context(data.core_set, 0)))


class TestRefuses:
    def first(self, data, objective, **arguments):
        return next(objective.terms(gaussian_model(data, objective, **arguments).context(data.core_set, 0)))

    def test_batch_normalisation(self, data):
        with pytest.raises(UserError, match="batch normalisation would mix classes and ranks"):
            self.first(data, mmd(network=partial(ConvNet, depth=2, width=4, norm="batch")))

    def test_a_single_sample(self, data):
        objective = mmd(samples=6)
        model = gaussian_model(data, objective, prior=PixelPrior(32), codes=PointCodes)
        step = model.context(data.core_set, 0)
        step.num_codes, keep = 3, torch.tensor([0, 2, 4])
        step.rows_on_host, step.labels_on_host = step.rows_on_host[keep], step.labels_on_host[keep]
        with pytest.raises(UserError, match=r"got 1 synthetic and 1 real ones; use GaussianCodes"):
            next(objective.terms(step))

    def test_too_few_epochs(self, data, experts):
        with pytest.raises(UserError, match=r"has 3 epochs, but expert_epoch \(7\) takes epoch 7"):
            self.first(data, mmd(trajectories=experts, expert_epoch=7))

    @pytest.mark.parametrize(
        "name", ["samples", "real_batch", "num_classes", "num_experts", "real_chunk", "expert_epoch"]
    )
    def test_numbers(self, name):
        with pytest.raises(UserError, match=rf"objective.{name} \(0\) must be at least 1"):
            mmd(**{name: 0})
