import gc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.func import functional_call, grad
from torch.nn import functional as F

from ldd.codes import PointCodes
from ldd.data import DistillationData
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.experts.recording import record_experts
from ldd.initializers import GaussianLatents
from ldd.networks import ConvNet
from ldd.objectives.trajectory import (
    StudentLoss,
    TrajectoryMatching,
    match_in_constant_memory,
    match_through_all_steps,
)
from ldd.priors import PixelPrior
from ldd.runtime.seeding import generator, seeded

TINY = partial(ConvNet, depth=2, width=4)
STEPS = 4
ALPHA = 2**-4  # exact in float32, which is what the objective is made in


@pytest.fixture(scope="module")
def experts(data, tmp_path_factory):
    """The folder of three tiny experts of three epochs."""
    root = tmp_path_factory.mktemp("experts")
    settings = {"network": TINY, "epochs": 3, "batch_size": 64, "learning_rate": 0.05, "progress": False}
    return str(record_experts(data, num_experts=3, out=str(root), **settings))


class Step:
    """A step over pixels in float64: rank `rank` of `world_size`."""

    stochastic = False

    def __init__(self, data, pixels, step=0, rank=0, world_size=1):
        self.step, self.spec, self.core_set, self.pixels = step, data.spec, data.core_set, pixels
        self.num_codes = len(pixels)
        self.all_labels = torch.arange(self.num_codes) % self.spec.num_classes
        self.classes = torch.arange(rank, self.spec.num_classes, world_size)
        self.rows = self.rows_on_host = (self.all_labels % world_size == rank).nonzero().flatten()
        self.decoded, self.gathered = 0, None
        self.labels = self.all_labels[self.rows]

    def generator(self, purpose, label=None):
        return generator(0, purpose, self.step, label)

    def network(self, factory, purpose="network"):
        with seeded(0, purpose, self.step):
            return factory(self.spec.num_classes, self.spec.image_size).double().requires_grad_(False)

    def decode(self, rows, then=None):
        self.decoded += len(rows)
        return self.pixels[rows]

    def gather(self, values, at=None, total=None):
        everyone = values.new_zeros(total, *values.shape[1:])
        everyone[at] = values.detach()
        self.gathered = everyone
        return everyone

    def normalise(self, images):
        return self.spec.normalise(images)


def pixels_of(n, requires_grad=True):
    pixels = torch.rand(n, 3, 32, 32, dtype=torch.float64, generator=generator(0, "pixels")) * 2 - 1
    return pixels.requires_grad_(requires_grad)


def gradients_of(objective, context):
    """The term, the gradient of the pixels and that of the step size."""
    (term,) = objective.terms(context)
    return term, *torch.autograd.grad(term.value, [context.pixels, objective.step_size])


def objective_of(experts, **arguments) -> TrajectoryMatching:
    return TrajectoryMatching(
        experts, network=TINY, syn_steps=STEPS, **{"step_size": ALPHA} | arguments
    ).double()


def reference(experts, context, *, batch=None, through=False):
    """The loss and its gradients by one graph over all steps; `through` lets it pass through the weights too."""
    objective = objective_of(experts, batch_syn=batch)
    network = context.network(TINY)
    start, target = objective._draw_expert(context, objective._search.find(context).experts).double()
    batches = objective._draw_batches(context)
    shapes = {name: value.shape for name, value in network.named_parameters()}
    images, alpha = context.pixels, torch.tensor(ALPHA, dtype=torch.float64, requires_grad=True)

    def inner(theta, images, rows, draws):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        seen = objective.augmentation(context.spec.normalise(images[rows]), draws)
        return F.cross_entropy(functional_call(network, weights, (seen,)), context.all_labels[rows])

    theta, moved = start, start
    for rows, draws in batches:
        step = alpha * grad(inner)(theta, images, rows, draws)
        moved = moved - step
        theta = moved if through else moved.detach()
    loss = (moved - target).square().sum() / (start - target).square().sum()
    return loss.detach(), *torch.autograd.grad(loss, [images, alpha])


@pytest.mark.parametrize("batch", [None, 4], ids=["all", "batches"])
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("unroll", ["constant_memory", "full"])
def test_gradients_equal_a_reference_graph(data, experts, unroll, step, batch):
    context = Step(data, pixels_of(6), step)
    term, images, alpha = gradients_of(objective_of(experts, unroll=unroll, batch_syn=batch), context)
    loss, true_images, true_alpha = reference(experts, context, batch=batch, through=unroll == "full")
    assert term.optimizers == ("codes", "step_size")
    torch.testing.assert_close(term.report, loss, rtol=0, atol=1e-12)
    assert true_images.abs().max() > 1e-5
    torch.testing.assert_close(images, true_images, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(alpha, true_alpha, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("unroll", ["constant_memory", "full"])
def test_images_that_no_batch_shows_are_not_decoded(data, experts, unroll):
    context = Step(data, pixels_of(40))
    objective = objective_of(experts, unroll=unroll, batch_syn=4)
    term, images, alpha = gradients_of(objective, context)
    loss, true_images, true_alpha = reference(experts, context, batch=4, through=unroll == "full")
    assert context.decoded == 4 * STEPS
    assert (images.flatten(1).abs().amax(1) > 0).sum() == 4 * STEPS
    torch.testing.assert_close(term.report, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(images, true_images, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(alpha, true_alpha, rtol=1e-9, atol=1e-12)


def test_gradient_is_the_published_formula(data, experts):
    """dL/dx = (2/D) [alpha (theta* - theta_0) + alpha^2 G]^T dg_i/dx, summed over the inner steps."""
    objective, context = objective_of(experts, augmentation=[]), Step(data, pixels_of(6))
    _, images, _ = gradients_of(objective, context)
    network, alpha = context.network(TINY), ALPHA
    start, target = objective._draw_expert(context, objective._search.find(context).experts).double()
    loss = StudentLoss(
        network,
        lambda batch, draws: context.normalise(batch),
        context.all_labels,
        [(torch.arange(6), None)] * STEPS,
    )
    thetas, gradients = [start], []
    for i in range(STEPS):
        theta = thetas[-1].clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(theta, context.pixels, i), theta, create_graph=True)[0])
        thetas.append(thetas[-1] - alpha * gradients[-1].detach())
    pull = alpha * (target - start) + alpha**2 * sum(g.detach() for g in gradients)
    pull *= 2 / (start - target).square().sum()
    expected = sum(torch.autograd.grad(g, context.pixels, pull)[0] for g in gradients)
    torch.testing.assert_close(images, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("step_size", "slope"), [(ALPHA, 1.0), (-0.5, 0.01)])
def test_step_size_with_the_offset_of_d3(data, experts, step_size, slope):
    """The student steps with LeakyReLU(alpha) + offset: as one of that step size, whose gradient has the slope."""
    stepped = step_size * slope + 0.03
    objective = objective_of(experts, step_size=1.0, step_size_offset=0.03)
    with torch.no_grad():
        objective.step_size.fill_(step_size)
    found = gradients_of(objective, Step(data, pixels_of(3)))
    plain = objective_of(experts, step_size=1.0)
    with torch.no_grad():
        plain.step_size.fill_(stepped)
    expected = gradients_of(plain, Step(data, pixels_of(3)))
    assert abs(found[0].report - expected[0].report) < 1e-12
    assert (found[1] - expected[1]).abs().max() < 1e-12
    assert abs(found[2] - slope * expected[2]) < 1e-9
    assert found[0].holds == (stepped > 0)


def test_gradients_of_the_full_unroll_by_finite_differences(data, experts):
    objective, context = objective_of(experts, unroll="full"), Step(data, pixels_of(3))
    _, images, alpha = gradients_of(objective, context)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=generator(1))

    def loss(pixels, change):
        moved = objective_of(experts, unroll="full", step_size=ALPHA + change)
        return next(iter(moved.terms(Step(data, pixels)))).report

    h, pixels = 2**-17, context.pixels.detach()
    slope = (loss(pixels + h * direction, 0) - loss(pixels - h * direction, 0)) / (2 * h)
    assert float((images * direction).sum()) == pytest.approx(float(slope), rel=1e-5)
    slope = (loss(pixels, h) - loss(pixels, -h)) / (2 * h)
    assert float(alpha) == pytest.approx(float(slope), rel=1e-5)


def quadratic(theta, images, i):
    """A loss whose gradient, theta + the images' sum in step i, is known."""
    return 0.5 * (theta + images[i].sum()).square().sum()


@pytest.mark.parametrize("match", [match_in_constant_memory, match_through_all_steps])
def test_both_forms_by_hand(match):
    """One weight: theta_2 = (1-a)((1-a)t - a x_0) - a x_1, of which the constant form sees -a x_0 - a x_1 only."""
    t, a, x0, x1, goal = 2.0, 0.1, 0.3, -0.7, 1.5
    start, target = torch.tensor([[t], [goal]], dtype=torch.float64)
    images = torch.tensor([x0, x1], dtype=torch.float64).view(2, 1, 1, 1)
    result = match(quadratic, start, target, images, torch.tensor(a, dtype=torch.float64), 2)
    theta1 = t - a * (t + x0)
    residual = theta1 - a * (theta1 + x1) - goal
    scale = 2 * residual / (t - goal) ** 2
    full = match is match_through_all_steps
    assert float(result.loss) == pytest.approx(residual**2 / (t - goal) ** 2, abs=1e-12)
    expected = [scale * -a * (1 - a if full else 1), scale * -a]
    assert result.images.flatten().tolist() == pytest.approx(expected, abs=1e-12)
    slope = -(t + x0) - (theta1 + x1) + (a * (t + x0) if full else 0)
    assert float(result.step_size) == pytest.approx(scale * slope, abs=1e-12)


@pytest.mark.parametrize("match", [match_in_constant_memory, match_through_all_steps])
def test_a_target_that_the_student_reaches_gives_nothing(data, match):
    context = Step(data, pixels_of(3, requires_grad=False))
    network = context.network(TINY)
    loss = StudentLoss(
        network, lambda batch, draws: batch, context.all_labels, [(torch.arange(3), None)] * STEPS
    )
    start = torch.cat([value.flatten() for value in network.parameters()])
    target, alpha = start, torch.tensor(0.05, dtype=torch.float64)
    for i in range(STEPS):
        theta = target.detach().requires_grad_()
        target = target - alpha * torch.autograd.grad(loss(theta, context.pixels, i), theta)[0]
    result = match(loss, start, target, context.pixels, alpha, STEPS)
    assert float(result.loss) < 1e-28
    assert result.images.abs().max() < 1e-14
    assert abs(float(result.step_size)) < 1e-12


@pytest.mark.parametrize("unroll", ["constant_memory", "full"])
def test_the_quirk_halves_the_gradient_of_the_images_only(data, experts, unroll):
    results = [
        gradients_of(objective_of(experts, unroll=unroll, halved_gradient=halved), Step(data, pixels_of(3)))
        for halved in (False, True)
    ]
    (exact, images, alpha), (quirk, half, same_alpha) = results
    assert torch.equal(images, 2 * half)
    assert torch.equal(alpha, same_alpha)
    assert torch.equal(exact.report, quirk.report)


@pytest.mark.parametrize("batch", [None, 4], ids=["all", "not all are shown"])
@pytest.mark.parametrize("unroll", ["constant_memory", "full"])
def test_ranks_add_up_to_one(data, experts, unroll, batch):
    def run(rank, world_size, images=None):
        context = Step(data, pixels_of(40), 0, rank, world_size)
        if images is not None:
            context.gather = lambda own, at, total: images  # what all ranks hold together
        return gradients_of(objective_of(experts, unroll=unroll, batch_syn=batch), context), context.gathered

    whole, images = run(0, 1)
    ranks = [run(rank, 2, images)[0] for rank in (0, 1)]
    for i in (1, 2):
        torch.testing.assert_close(ranks[0][i] + ranks[1][i], whole[i], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(ranks[0][0].report + ranks[1][0].report, whole[0].report)
    moved, own = ranks[0][1].flatten(1).any(1).nonzero().flatten(), Step(data, pixels_of(40), 0, 0, 2).rows
    assert torch.isin(moved, own).all()
    assert len(moved) == len(own) or batch


def peak_saved_bytes(function):
    """The most bytes that autograd held at once."""
    held, peak = 0, 0

    class Held:
        def __init__(self, tensor):
            nonlocal held, peak
            self.tensor, self.size = tensor, tensor.nbytes
            held += self.size
            peak = max(peak, held)

        def __del__(self):
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda saved: saved.tensor):
        function()
        gc.collect()
    return peak


def test_memory_does_not_grow_with_the_inner_steps(data, experts):
    def peak(unroll, steps):
        objective = TrajectoryMatching(experts, network=TINY, unroll=unroll, syn_steps=steps, augmentation=[])
        objective.double()
        context = Step(data, pixels_of(3))
        objective._search.find(context)
        return peak_saved_bytes(lambda: next(iter(objective.terms(context))))

    assert peak("constant_memory", 8) == peak("constant_memory", 2)
    assert peak("full", 8) > 3 * peak("full", 2)


@pytest.mark.parametrize("unroll", ["constant_memory", "full"])
def test_batch_norm(data, tmp_path, unroll):
    """Running statistics, which change in place, are neither kept nor in the way of a graph."""
    network = partial(ConvNet, depth=2, width=4, norm="batch")
    settings = {"network": network, "epochs": 2, "batch_size": 64, "progress": False, "num_experts": 1}
    folder = str(record_experts(data, out=str(tmp_path), **settings))
    objective = TrajectoryMatching(
        folder, network=network, unroll=unroll, syn_steps=3, max_start_epoch=1
    ).double()
    context = Step(data, pixels_of(3))
    assert gradients_of(objective, context)[1].isfinite().all()
    buffers = dict(objective._search.find(context).network.named_buffers())
    assert all(float(buffers[name]) == 0 for name in buffers if name.endswith("num_batches_tracked"))


def test_draws(data, experts):
    objective = objective_of(experts, batch_syn=4)
    batches = objective._draw_batches(Step(data, pixels_of(6)))
    assert [len(rows) for rows, _ in batches] == [4, 2, 4, 2]
    assert torch.cat([batches[0][0], batches[1][0]]).sort().values.tolist() == list(range(6))
    assert not torch.equal(batches[0][0], batches[2][0])
    found = objective._search.find(Step(data, pixels_of(3))).experts
    seen = set()
    for step in range(60):
        weights = objective._draw_expert(Step(data, pixels_of(3), step), found)
        assert torch.equal(weights, objective._draw_expert(Step(data, pixels_of(3), step), found))
        for expert in range(3):
            for start in range(2):
                if torch.equal(weights, found.read(expert, [start, start + 2])):
                    seen.add((expert, start))
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"syn_steps": 0}, r"objective.syn_steps \(0\) must be at least 1"),
        ({"expert_epochs": 0}, r"objective.expert_epochs \(0\)"),
        ({"max_start_epoch": -1}, r"objective.max_start_epoch \(-1\)"),
        ({"batch_syn": -4}, r"objective.batch_syn \(-4\)"),
        ({"step_size": 0.0}, r"objective.step_size \(0.0\) must be a number above 0"),
        ({"step_size": float("nan")}, r"objective.step_size \(nan\)"),
    ],
    ids=str,
)
def test_refuses_numbers(arguments, message):
    with pytest.raises(UserError, match=message):
        TrajectoryMatching("experts", **arguments)


class TestRefusesInTheFirstStep:
    def terms(self, data, experts, n=3, **arguments):
        arguments = {"network": TINY} | arguments
        return list(TrajectoryMatching(experts, **arguments).double().terms(Step(data, pixels_of(n))))

    def test_missing(self, data, tmp_path):
        with pytest.raises(
            UserError,
            match="does not exist; record some by `latentdd experts --config configs/experts/digits",
        ):
            self.terms(data, str(tmp_path / "gone"))

    def test_too_few_epochs(self, data, experts):
        with pytest.raises(
            UserError,
            match=r"has 3 epochs, but max_start_epoch \(3\) and expert_epochs \(2\) reach epoch 4; lower one of them, "
            "or record experts with --epochs 4 or more",
        ):
            self.terms(data, experts, max_start_epoch=3)

    def test_another_network(self, data, experts):
        with pytest.raises(
            UserError, match=r"does not fit this run: .* 1,047 parameters \(this run: .* 3,153"
        ):
            self.terms(data, experts, network=partial(ConvNet, depth=2, width=10))

    def test_another_resolution(self, experts):
        other = DistillationData(subset=["0", "1", "2"], image_size=64)
        other.setup()
        with pytest.raises(UserError, match=r"was recorded for image_size 32 \(this run: 64\)"):
            self.terms(other, experts)

    def test_another_pruning(self, data, experts):
        pruned = SimpleNamespace(spec=data.spec, core_set=data.core_set.select(torch.arange(0, 300, 2)))
        n = len(data.core_set)
        with pytest.raises(
            UserError, match=rf"a core-set of {n} images \(this run: 150; pruner and data.seed"
        ):
            self.terms(pruned, experts)

    def test_too_many_experts(self, data, experts):
        with pytest.raises(UserError, match="holds the first 3 of 4 experts"):
            self.terms(data, experts, num_experts=4)

    def test_batch_of_more_than_all(self, data, experts):
        with pytest.raises(UserError, match=r"objective.batch_syn \(9\) is more than the 3 synthetic images"):
            self.terms(data, experts, batch_syn=9)

    def test_a_step_size_that_is_no_longer_positive(self, data, experts):
        objective = objective_of(experts)
        with torch.no_grad():
            objective.step_size.fill_(-0.002)
        (term,) = objective.terms(Step(data, pixels_of(3)))
        assert not term.holds  # which nobody has asked the device by then
        assert "step size is -0.002, no longer above 0; lower objective.lr_step" in term.otherwise()
        (good,) = objective_of(experts).terms(Step(data, pixels_of(3)))
        assert good.holds

    def test_experts_that_stand_still(self, data, tmp_path):
        folder = record_experts(
            data, network=TINY, num_experts=1, epochs=2, learning_rate=0.0, out=str(tmp_path), progress=False
        )
        with pytest.raises(UserError, match="the weights are the same after epochs 0 and 2"):
            self.terms(data, str(folder), max_start_epoch=1)


def test_optimizers():
    objective = TrajectoryMatching("experts")
    prior = PixelPrior(32)
    codes = PointCodes(
        torch.arange(2), torch.zeros(2, 3, 32, 32), torch.zeros(2, 0, 0), torch.zeros(2, 3, 32, 32)
    )
    optimizers = objective.optimizers(codes, prior)
    assert [(g["lr"], g["momentum"]) for g in optimizers["codes"].param_groups] == [(1000.0, 0.5)]
    (group,) = optimizers["step_size"].param_groups
    assert (group["params"], group["lr"], group["momentum"]) == ([objective.step_size], 1e-6, 0.5)
    assert objective.step_size.item() == pytest.approx(0.01)
    assert objective.matching_networks() == (ConvNet,)


def test_twenty_steps_lower_the_loss(data, experts, tmp_path):
    """Through the distiller, on pixels that start as noise; the step size is learned and saved."""
    objective = TrajectoryMatching(
        experts,
        lr_latents=300.0,
        network=TINY,
        max_start_epoch=1,
        num_experts=1,
        augmentation=[],
        lr_step_size=1e-4,
    )
    distiller = Distiller(PixelPrior(32), objective, data.spec, initializer=GaussianLatents())
    losses = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            losses.append(float(trainer.callback_metrics["train/trajectory"]))

    trainer = L.Trainer(
        max_steps=20,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[Watch()],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(distiller, data)
    assert len(losses) == 20
    assert losses[-1] < 0.8 * losses[0]
    assert objective.step_size.item() != pytest.approx(0.01, abs=1e-7)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["objective.step_size"], objective.step_size.detach())


def test_shipped_config_has_the_published_constants():
    import yaml

    path = Path(__file__).parents[2] / "configs" / "objective" / "trajectory.yaml"
    arguments = yaml.safe_load(path.read_text())["init_args"]
    published = {"lr_latents": 1000, "lr_conditioning": 1000, "momentum": 0.5, "expert_epochs": 2}
    published |= {"max_start_epoch": 2, "syn_steps": 10, "batch_syn": None, "step_size": 0.01}
    published |= {"lr_step_size": 1e-6, "momentum_step_size": 0.5}
    assert {name: arguments[name] for name in published} == published
    arguments.pop("network")
    TrajectoryMatching(**arguments)
