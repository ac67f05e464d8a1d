"""The step: exact in chunks and under checkpoints, repeatable, resumable bit for bit, safe when it breaks."""

import pytest
import torch
from lightning.pytorch import Callback
from small_runs import NARROW, fit, matching

from ldd.artefact.set import DistilledSet
from ldd.callbacks import LastCheckpoints
from ldd.data import DistillationData, RandomPruner
from ldd.distiller.module import Distiller
from ldd.errors import NonFiniteError, UserError
from ldd.images import DataSpec, to_bytes
from ldd.initializers import PriorSamples
from ldd.objectives import GradientMatching
from ldd.priors import LatentDiffusionPrior, PixelPrior
from ldd.runs.folder import find_last
from ldd.runtime.seeding import generator


@pytest.fixture
def prior(tiny_prior_path):
    return LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)


def codes_of(model: Distiller) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.codes.state_dict().items()}


def assert_identical(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def gradients(prior, digits, **arguments):
    """Images, and gradients of the codes for one DM term, in float64."""
    model = Distiller(prior, matching(), digits.spec, images_per_class=2, **arguments).double()
    generator = torch.Generator().manual_seed(0)
    model.initializer(model.codes, model.prior, digits.core_set, generator)
    step = model.context(digits.core_set, 0)
    images = step.decode(step.rows)
    (term,) = model.objective.terms(step)
    term.value.backward()
    return images.detach(), model.codes.latents.grad, model.codes.conditioning.grad


@pytest.mark.parametrize("arguments", [{"chunk_size": 3}, {"chunk_size": 1}, {"checkpointing": "always"}])
def test_chunks_and_checkpoints_are_exact(tiny_prior_path, digits, arguments):
    def prior():
        return LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)

    reference = gradients(prior(), digits, chunk_size=20, checkpointing="never")
    for expected, found in zip(reference, gradients(prior(), digits, **arguments), strict=True):
        assert expected.abs().max() > 0
        assert (expected - found).abs().max() < 1e-9 * expected.abs().max()


def test_same_seed_same_codes_other_seed_other_codes(tiny_prior_path, digits, tmp_path):
    runs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
        runs.append(codes_of(fit(prior, matching(), tmp_path / name, 2, digits, seed=seed)))
    assert_identical(runs[0], runs[1])
    assert not torch.equal(runs[0]["latents"], runs[2]["latents"])


def test_prior_is_untouched_and_absent_from_the_checkpoint(prior, digits, tmp_path):
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    model = fit(prior, matching(), tmp_path, 2, digits)
    assert_identical(before, prior.state_dict())
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in saved["state_dict"] if name.startswith("prior.")]
    assert torch.equal(saved["state_dict"]["codes.latents"], model.codes.latents)
    assert saved["global_step"] == 2


@pytest.mark.parametrize(
    "objective",
    [
        matching,
        lambda: GradientMatching(real_batch=4, network=NARROW, outer_loop=3, inner_loop=2),
    ],
    ids=["distribution", "gradient with a trained network"],
)
def test_resume_is_bit_identical(tiny_prior_path, digits, tmp_path, objective):
    def prior():
        return LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)

    unbroken = fit(prior(), objective(), tmp_path / "whole", 5, digits)
    fit(prior(), objective(), tmp_path / "half", 2, digits)
    last = find_last(tmp_path / "half")
    resumed = fit(prior(), objective(), tmp_path / "half", 5, digits, ckpt_path=last)
    assert resumed.global_step == unbroken.global_step == 5
    assert_identical(codes_of(unbroken), codes_of(resumed))


def test_codes_move_and_max_steps_counts_training_steps(prior, digits, tmp_path):
    model = fit(prior, matching(), tmp_path, 3, digits)
    assert model.trainer.global_step == int(model.num_steps_done) == 3
    charged = model.distilled_set().manifest["ledger"]["stages"]["distil"]
    assert charged["steps"] == 3
    assert charged["decodes"] % (3 * len(model.codes)) == 0  # whole sets, every step as many
    assert charged["decodes"] > 0
    start = Distiller(prior, matching(), digits.spec)
    assert not torch.equal(model.codes.conditioning, start.codes.conditioning)
    assert torch.equal(model.codes.noise, start.codes.noise)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "last.ckpt",
        "previous.ckpt",
    ]


def test_no_steps_still_initialises_and_exports(prior, digits, tmp_path):
    model = fit(prior, matching(), tmp_path, 0, digits)
    assert model.codes.latents.abs().max() > 0
    assert DistilledSet.load(tmp_path / "distilled").images_per_class == 1


def test_saved_images_are_the_codes_decoded(prior, digits, tmp_path):
    model = fit(prior, matching(), tmp_path, 1, digits)
    loaded = DistilledSet.load(tmp_path / "distilled")
    with torch.no_grad():
        images = model.synthesis(torch.arange(10))
    assert (loaded.images - (images + 1) * 127.5).abs().max() <= 0.5 + 1e-3
    assert torch.equal(loaded.labels, model.codes.labels)
    assert loaded.manifest["step"] == 1
    assert loaded.manifest["seen_networks"] == ["ldd.networks.convnet.ConvNet"]
    assert loaded.manifest["licences"] == {"prior": "random weights", "data": digits.spec.licence}


def test_non_finite_loss_stops_and_keeps_the_last_good_codes(prior, digits, tmp_path):
    text = (
        r"step \d: the distribution loss of DistributionMatching is .* Lower the objective's learning rates"
    )
    with pytest.raises(NonFiniteError, match=text):
        fit(prior, matching(lr_latents=1e30), tmp_path, 5, digits)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["codes.latents"].isfinite().all()
    assert DistilledSet.load(tmp_path / "distilled").images_per_class == 1


def test_codes_that_a_step_loses_are_found_with_the_next_loss(prior, digits, tmp_path):
    class Loses(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if pl_module.num_steps_done == 2:
                pl_module.finite._largest += (
                    torch.inf
                )  # as if the step had made them so, which its loss need not show

    with pytest.raises(UserError, match=r"after 2 steps the codes are infinite or NaN") as raised:
        fit(prior, matching(), tmp_path, 5, digits, callbacks=(Loses(),))
    assert not isinstance(raised.value, NonFiniteError)  # after which codes would be kept
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "distilled").exists()


def test_a_bad_step_is_undone(prior, digits, tmp_path):
    """Codes, momenta and counters in the checkpoint are those of before the step, as a shorter run leaves them."""

    class Spoils(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            if pl_module.num_steps_done == 2:
                hook = pl_module.codes.latents.register_hook(lambda gradient: gradient * torch.nan)
                self.hooks = [hook]

    good = fit(prior, matching(lr_latents=0.3), tmp_path / "good", 2, digits)
    with pytest.raises(
        NonFiniteError, match=r"step 2: the distribution loss .* gradient norm nan; the codes before"
    ):
        fit(prior, matching(lr_latents=0.3), tmp_path / "bad", 5, digits, callbacks=(Spoils(),))
    found, expected = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("bad", "good")
    )
    assert (found["global_step"], int(found["state_dict"]["num_steps_done"])) == (2, 2)
    for name, value in good.codes.state_dict().items():
        assert torch.equal(found["state_dict"][f"codes.{name}"], value)
    for mine, other in zip(found["optimizer_states"], expected["optimizer_states"], strict=True):
        for row, state in other["state"].items():
            assert torch.equal(mine["state"][row]["momentum_buffer"], state["momentum_buffer"])
    assert DistilledSet.load(tmp_path / "bad" / "distilled").manifest["step"] == 2


def test_precision_of_products_is_that_of_the_run(prior, digits, tmp_path):
    seen = []

    class Looks(Callback):
        def on_train_batch_end(self, *_):
            seen.append(torch.get_float32_matmul_precision())

    for precision in ("auto", "high"):
        folder = tmp_path / precision
        fit(prior, matching(), folder, 1, digits, callbacks=(Looks(),), matmul_precision=precision)
        assert torch.get_float32_matmul_precision() == "highest"
    assert seen == ["highest", "high"]
    manifests = [DistilledSet.load(tmp_path / name / "distilled").manifest for name in ("auto", "high")]
    assert [manifest.matmul_precision for manifest in manifests] == [None, "high"]


def test_more_images_than_a_class_has(prior, digits, tmp_path):
    with pytest.raises(
        UserError,
        match=r"images_per_class \(500\) is more than the \d+ real images of class 'digit-0'; lower it, or add",
    ):
        fit(prior, matching(), tmp_path, 1, digits, images_per_class=500)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wanted", "setting"), [("images_per_class", {"images_per_class": 20}), ("objective.real_batch", {})]
)
def test_more_images_than_pruning_leaves(prior, tmp_path, wanted, setting):
    """The share that the message names works, and the next smaller one does not."""
    objective = matching(real_batch=4 if setting else 20)
    text = rf"{wanted} \(20\) is more than the \d+ real images of class '[\w-]+' after pruning \(of \d+\); lower it"
    with pytest.raises(UserError, match=text) as error:
        fit(prior, objective, tmp_path, 1, DistillationData(pruner=RandomPruner(0.1)), **setting)
    share = float(str(error.value).rpartition("or use at least keep=")[2])
    counts = []
    for keep in (share, round(share - 1e-4, 4)):
        data = DistillationData(pruner=RandomPruner(keep))
        data.setup()
        counts.append(min(data.core_set.counts))
    assert counts == [20, 19]


def test_the_manifest_says_what_pruning_did(prior, digits, tmp_path):
    data = DistillationData(pruner=RandomPruner(0.25), seed=3)
    model = fit(prior, matching(), tmp_path, 1, data)
    record = DistilledSet.load(tmp_path / "distilled").manifest["pruning"]
    assert record == model.distilled_set().manifest["pruning"]
    assert record["images_per_class"] == digits.train_images.counts
    assert record["kept_per_class"] == [n // 4 for n in digits.train_images.counts]
    assert (record["pruner"], record["criterion"], record["seed"]) == ("RandomPruner", "random", 3)
    assert record["data_fingerprint"] == data.prune_table.fingerprint
    assert "pruning" not in fit(prior, matching(), tmp_path / "whole", 1, digits).distilled_set().manifest


def test_settings_that_do_not_fit(digits, prior, tmp_path):
    with pytest.raises(UserError, match=r"data.image_size \(32\) differs from the prior's image_size \(64\)"):
        Distiller(PixelPrior(64), matching(), digits.spec)
    with pytest.raises(UserError, match=r"images_per_class \(0\) must be at least 1"):
        Distiller(prior, matching(), digits.spec, images_per_class=0)
    with pytest.raises(UserError, match=r"chunk_size \(0\) must be 'auto' or at least 1"):
        Distiller(prior, matching(), digits.spec, chunk_size=0)
    with pytest.raises(UserError, match=r"every_n_steps \(0\) must be at least 1"):
        LastCheckpoints(0)


def test_a_class_the_prior_does_not_know(prior, digits):
    other = DataSpec(
        [type(digits.classes[0])(0, 0, "n01440764", "tench")], 32, digits.spec.mean, digits.spec.std, ""
    )
    with pytest.raises(UserError, match="tench"):
        Distiller(prior, matching(), other)


def test_checkpoint_of_another_run(prior, digits, tmp_path):
    fit(prior, matching(), tmp_path / "one", 2, digits)
    with pytest.raises(UserError, match=r"ckpt_path: codes.\w+ is \[10.*this configuration needs \[20"):
        fit(
            prior,
            matching(),
            tmp_path / "two",
            2,
            digits,
            ckpt_path=find_last(tmp_path / "one"),
            images_per_class=2,
        )


def test_float64_runs(tiny_prior_path, digits, tmp_path):
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    model = fit(prior, matching(), tmp_path, 1, digits, precision="64-true")
    assert model.codes.latents.dtype == torch.float64


def test_real_batch_larger_than_a_class(prior, tmp_path):
    with pytest.raises(
        UserError,
        match=r"objective.real_batch \(400\) is more than the \d+ real images of class 'digit-0'; lower it",
    ):
        fit(prior, matching(real_batch=400), tmp_path, 1, DistillationData())


def test_without_steps_the_set_is_the_initialiser_s_own(tiny_prior_path, digits, tmp_path):
    """Plain samples, decoded, byte for byte; codes without conditions and noise; time that is charged."""
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=0)
    start = PriorSamples(num_steps=2, sample_seed=7)
    fit(prior, matching(), tmp_path, 0, digits, initializer=start, images_per_class=2)
    loaded = DistilledSet.load(tmp_path)
    drawn = [
        prior.sample(prior.rows([info]).expand(2), generator(7, "prior sample", info.wnid), num_steps=2)
        for info in digits.classes
    ]
    assert torch.equal(loaded.images, to_bytes(prior.decode(torch.cat(drawn))))
    assert list(loaded.codes) == ["latents"]
    assert loaded.manifest["ledger"]["stages"]["distil"]["seconds"] > 0


def test_codes_without_reverse_process_are_optimised_from_exactly_there(tiny_prior_path, digits, tmp_path):
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=0)
    start = PriorSamples(num_steps=1)
    runs = [
        fit(prior, matching(), tmp_path / str(steps), steps, digits, initializer=start).codes.latents
        for steps in (0, 2)
    ]
    assert 0 < (runs[1] - runs[0]).norm() < runs[0].norm()


def test_a_start_that_the_reverse_process_changes_is_said(prior, digits, tmp_path):
    with pytest.warns(UserWarning, match="max_steps is 0: the set is what the reverse process makes"):
        fit(prior, matching(), tmp_path, 0, digits)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_would_lose_steps_are_refused(digits, tmp_path, precision):
    with pytest.raises(UserError, match=rf"trainer\.precision \({precision}\) .*; use bf16-mixed or 32-true"):
        fit(PixelPrior(32), matching(), tmp_path / "run", 1, digits, precision=precision)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_codes_noise_momenta_and_counters_keep_single_precision(digits, tmp_path, tiny_prior_path, precision):
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    model = fit(prior, matching(), tmp_path / "run", 2, digits, precision=precision)
    least = torch.float32 if precision == "bf16-mixed" else torch.float64
    (optimizer,) = model._optimizers.values()
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(momenta) == 2
    for value in (*model.codes.parameters(), *model.codes.buffers(), model.seconds, *momenta):
        assert value.dtype in (least, torch.int64)
    assert int(model.num_steps_done) == 2
