"""Priors of flow matching and of one step: trained, resumed, shared by ranks, saved and loaded as the others."""

import json
import shutil

import pytest
import torch
from lightning import Callback
from processes import run_ranks, torchrun_variables

from ldd.data import DistillationData
from ldd.errors import UserError
from ldd.prior_training.module import PriorTraining
from ldd.prior_training.pictures import SamplePictures, draw_class
from ldd.priors import LatentDiffusionPrior
from ldd.runtime.seeding import generator
from tests.prior_training.test_module import TINY, check_resumed_at_its_end, fit, same_weights, spec

FLOW = {"path": "flow", "views": 1, "augmentation": None}
ONE = {**FLOW, "steps": "one", "velocity_steps": 10, "guidance": 1.5}
STEPS = TINY["autoencoder_steps"] + 20


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one step")
    samples = SamplePictures(every_n_steps=8, per_class=1)
    model, losses, trainer = fit(data, STEPS, folder, callbacks=[samples], **ONE)
    trainer.save_checkpoint(folder / "run.ckpt")
    model.save_prior(folder / "prior", command="latentdd prior train --config tiny.yaml")
    return model, losses, folder


def check_samples(model, folder, num_steps, guidance):
    prior = LatentDiffusionPrior(str(folder / "prior"))
    drawn = draw_class(model, 3, 4, generator(1), num_steps=num_steps, guidance_scale=guidance)
    latents = prior.sample(torch.full((4,), 3), generator(1), num_steps=num_steps, guidance_scale=guidance)
    with torch.no_grad():
        expected = (prior.decode(latents).clamp(-1, 1) + 1) * 127.5
    assert (drawn.float() - expected).abs().mean() < 1


@pytest.mark.parametrize(("num_steps", "guidance"), [(1, 1.0), (3, 2.0)])
def test_samples_are_those_of_the_saved_prior(trained, num_steps, guidance):
    check_samples(trained[0], trained[2], num_steps, guidance)


def test_a_finished_run_that_is_resumed_writes_the_same_prior(trained, data, tmp_path):
    folder = trained[2]
    check_resumed_at_its_end(data, STEPS, folder / "run.ckpt", folder / "prior", tmp_path, **ONE)


def test_the_folder_says_that_it_takes_one_step(trained):
    _, losses, folder = trained
    assert len(losses.denoiser) == 20
    prior = LatentDiffusionPrior(str(folder / "prior"))
    assert (prior.num_steps, prior.guidance_scale, prior.learned_guidance) == (1, 1.0, 1.5)
    given = LatentDiffusionPrior(str(folder / "prior"), num_steps=4, guidance_scale=2.0)
    assert (given.num_steps, given.guidance_scale) == (4, 2.0)
    card = (folder / "prior" / "README.md").read_text()
    for fact in ("error of the average velocity: training ", "the denoiser's first 10 steps learned velocities",
                 "guidance 1.5", "20 steps of 32"):  # fmt: skip
        assert fact in card
    assert json.loads((folder / "prior" / "prior.json").read_text())["guidance"] == 1.5
    config = json.loads((folder / "prior" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["prediction_type"]) == (
        "FlowMatchEulerDiscreteScheduler",
        "average_velocity",
    )


def test_pictures_are_drawn_in_one_step_once_averages_are_learned(trained):
    pictures = sorted(path.name for path in (trained[2] / "samples").iterdir())
    assert pictures == ["step-000024.png", "step-000032.png"]  # averages begin after step 22


def test_the_network_is_told_both_ends_of_a_step(trained):
    """A chain of two steps is two calls for x - (t - r) u(x, r, t), with t and t - r in the units of the embedding."""
    prior = LatentDiffusionPrior(str(trained[2] / "prior"), num_steps=2, skip="none")
    noise = torch.randn(3, *prior.latent_shape, generator=generator(0))
    tokens = prior.embed(torch.tensor([0, 4, 9]))
    with torch.no_grad():
        x = noise
        for t, r in ((1.0, 0.5), (0.5, 0.0)):
            told = torch.full((3,), 10 * (t - r))
            x = x - (t - r) * prior.unet(x, 10 * t, encoder_hidden_states=tokens, class_labels=told).sample
        ours = prior.denoise(torch.zeros_like(noise), tokens, noise)
    assert (ours - x).abs().max() < 1e-5


@pytest.mark.parametrize("stop", [10, 15])
def test_a_stopped_run_resumes_as_if_it_had_not_stopped(trained, data, tmp_path, stop):
    """Where averages begin, and within them."""
    whole, losses, _ = trained
    stop += TINY["autoencoder_steps"]

    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "part.ckpt")
                trainer.should_stop = True

    fit(data, STEPS, tmp_path, callbacks=[Stop()], **ONE)
    resumed, rest, _ = fit(data, STEPS, tmp_path, ckpt_path=tmp_path / "part.ckpt", **ONE)
    assert rest.denoiser == losses.denoiser[-len(rest.denoiser) :]
    assert same_weights(whole.average, resumed.average)
    assert same_weights(whole.lessons, resumed.lessons)


def of_rank(folder, ranks):
    torch.set_num_threads(1)
    images = DistillationData(image_size=16)
    changes = {**ONE, "batch_size": 25, "autoencoder_batch_size": 9}
    model, losses, _ = fit(images, STEPS, folder / str(ranks), ranks=ranks, **changes)
    weights = {name: value.numpy() for name, value in model.average.state_dict().items()}
    return losses.autoencoder + losses.denoiser, weights


def test_two_ranks_train_as_one(tmp_path):
    losses, weights = of_rank(tmp_path, 1)
    both = run_ranks(of_rank, tmp_path, 2, environments=torchrun_variables(2))
    for name, value in both[0][1].items():
        assert (value == both[1][1][name]).all(), name
        assert abs(value - weights[name]).max() < 5e-4, name
    assert both[0][0] == pytest.approx(losses, rel=1e-3)


def test_bfloat16(trained, data, tmp_path):
    _, losses, _ = trained
    model, found, _ = fit(data, STEPS, tmp_path, precision="bf16-mixed", **ONE)
    assert {tensor.dtype for tensor in model.average.module.state_dict().values()} == {torch.float32}
    assert sum(found.denoiser[10:]) == pytest.approx(sum(losses.denoiser[10:]), rel=0.1)


def test_a_flow_of_many_steps(data, tmp_path):
    model, losses, _ = fit(data, STEPS, tmp_path, **FLOW)
    assert sum(losses.denoiser[-4:]) < 0.8 * sum(losses.denoiser[:4])
    model.save_prior(tmp_path / "prior")
    prior = LatentDiffusionPrior(str(tmp_path / "prior"))
    assert (prior.num_steps, prior.guidance_scale, prior.schedule.prediction_type) == (10, 3.0, "flow")
    check_samples(model, tmp_path, 5, 2.0)
    assert "error of the velocity: training" in (tmp_path / "prior" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "diffusion"}, "steps=one goes along a straight path, not path=diffusion"),
        ({"velocity_steps": 0}, "velocity_steps=0 leaves steps=one no velocities to average"),
        ({"steps": "many"}, "velocity_steps=10 belongs to steps=one"),
        ({"guidance": -1}, "guidance_scale=-1 must be"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        PriorTraining(**{"data_spec": spec(), **TINY, **ONE, **changes})


def test_too_few_steps_are_refused(data, tmp_path):
    with pytest.raises(
        UserError, match=r"after autoencoder_steps=12 and velocity_steps=10; set it to the steps"
    ):
        fit(data, 22, tmp_path, **ONE)


@pytest.mark.parametrize("learned", [0, "much", True])
def test_a_card_with_another_guidance_is_refused(trained, tmp_path, learned):
    shutil.copytree(trained[2] / "prior", tmp_path / "prior")
    change(tmp_path / "prior" / "prior.json", guidance=learned)
    with pytest.raises(UserError, match=r"guidance .* is not a positive number"):
        LatentDiffusionPrior(str(tmp_path / "prior"))


def test_a_scheduler_of_another_prior_is_refused(trained, tmp_path):
    shutil.copytree(trained[2] / "prior", tmp_path / "prior")
    change(tmp_path / "prior" / "scheduler" / "scheduler_config.json", prediction_type="flow")
    with pytest.raises(
        UserError, match="prediction_type='flow' does not go with a network that is told both ends"
    ):
        LatentDiffusionPrior(str(tmp_path / "prior"))


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
