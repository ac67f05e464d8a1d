"""A prior of one step that is taught by a frozen prior of many."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning import Callback

from ldd.errors import UserError
from ldd.prior_training.module import PriorTraining
from ldd.prior_training.teacher import FrozenTeacher
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior
from ldd.priors.folder import LEARNED, read_learned, read_left_out
from ldd.priors.schedule import Interval
from ldd.runtime.seeding import generator
from tests.prior_training.test_module import TINY, fit, same_weights

FROZEN = {"autoencoder_steps": 0, "views": 1, "augmentation": None}
ONE = {**FROZEN, "path": "flow", "steps": "one", "guidance": 2.0}


@pytest.fixture(scope="module", params=["diffusion", "flow"])
def teacher(request, data, tmp_path_factory):
    """Of many steps, on either path."""
    folder = tmp_path_factory.mktemp(request.param)
    model, _, _ = fit(data, 24, folder, path=request.param, views=1, augmentation=None)
    model.save_prior(folder / "prior")
    return str(folder / "prior")


def taught(data, teacher, total, folder, **changes):
    return fit(data, total, folder, autoencoder=teacher, teacher=teacher, **{**ONE, **changes})


@pytest.fixture(scope="module")
def student(data, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    model, losses, trainer = taught(data, teacher, 10, folder)
    trainer.save_checkpoint(folder / "run.ckpt")
    model.save_prior(folder / "prior", command="latentdd prior train --config tiny.yaml")
    return model, losses, folder


def test_what_it_teaches_is_the_guided_velocity(data, teacher):
    """By the U-Net itself and the formulas of the two paths, at timesteps of its table; the null row is not guided."""
    prior = LatentDiffusionPrior(teacher)
    frozen = FrozenTeacher(teacher, data.spec, AutoencoderPrior(teacher, 16), 2.0, 10)
    x, rows = torch.randn(3, *prior.latent_shape, generator=generator(0)), torch.tensor([4, 9, 10])
    of_flow = prior.schedule.prediction_type == "flow"
    if of_flow:
        t = torch.tensor([0.2, 0.5, 0.9])
        told, a, b = 1000 * t, 1 - t, t
    else:
        told = torch.tensor([100, 500, 900])
        abar = prior.schedule._scheduler.alphas_cumprod[told]
        a, b = abar.sqrt(), (1 - abar).sqrt()
        t = b / (a + b)
    a, b, share = (value[:, None, None, None] for value in (a, b, t))
    x_there = x / (1 - share) * a
    tokens = torch.cat([prior.embed(torch.tensor([4, 9])), prior.null(1)])
    with torch.no_grad():
        given, without = (
            prior.unet(x_there, told, encoder_hidden_states=c).sample for c in (tokens, prior.null(3))
        )
        guided = without + 2 * (given - without)
        # a diffusion model's is n - z of the noise that it predicts
        expected = guided if of_flow else guided - (x_there - b * guided) / a
        found = frozen(x, Interval(10 * t, 10 * t), rows)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_folder_takes_one_step_and_has_the_guidance_in_it(student):
    prior = LatentDiffusionPrior(str(student[2] / "prior"))
    assert (prior.num_steps, prior.guidance_scale, prior.learned_guidance) == (1, 1.0, 2.0)
    assert prior.schedule.of_intervals


def test_a_checkpoint_leaves_the_teacher_out_and_resumes_exactly(student, data, teacher, tmp_path):
    whole, losses, folder = student
    state = torch.load(folder / "run.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith(("teacher.", "frozen.", "lessons.teacher")) for name in state)

    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "part.ckpt")
                trainer.should_stop = True

    taught(data, teacher, 10, tmp_path, callbacks=[Stop()])
    resumed, rest, _ = taught(data, teacher, 10, tmp_path, ckpt_path=tmp_path / "part.ckpt")
    assert rest.denoiser == losses.denoiser[-4:]
    assert same_weights(whole.average, resumed.average)


def test_velocities_may_be_learned_first(data, teacher, tmp_path):
    model, _, _ = taught(data, teacher, 4, tmp_path, velocity_steps=2)
    assert model.lessons.target(1) is model.lessons.first
    assert model.lessons.target(2) is model.lessons.last
    assert model.lessons.teacher is None


def test_the_student_knows_what_the_teacher_has_learned(student, data, teacher, tmp_path):
    _, _, folder = student
    own, theirs = data.contents_of("core_set"), read_learned(Path(teacher))
    assert set(theirs.tolist()) == set(own.tolist())
    assert set(read_learned(folder / "prior").tolist()) == set(own.tolist())
    assert "data" not in json.loads((folder / "prior" / "prior.json").read_text())
    assert read_left_out(folder / "prior") == data.spec.fingerprint
    card = (folder / "prior" / "README.md").read_text()
    assert "; taught by a prior under: weights learned from data under: " in card
    assert "its velocities under guidance 2 are what was averaged" in card
    assert "the denoiser learned averages of velocities under guidance 2" in card
    silent = tmp_path / "silent"
    shutil.copytree(teacher, silent)
    (silent / LEARNED).unlink()
    (silent / "README.md").unlink()
    other, _, _ = taught(data, str(silent), 2, tmp_path)
    other.save_prior(tmp_path / "prior")
    assert read_learned(tmp_path / "prior") is None
    assert read_left_out(tmp_path / "prior") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "many"}, "teacher=.* teaches steps=one in the latents of its own autoencoder"),
        (
            {"autoencoder": TINY["autoencoder"], "autoencoder_steps": 3},
            "set steps to one, autoencoder to the teacher",
        ),
        ({"teacher": "embedded:digits-one-step"}, "was made for one or few steps; name a prior of many"),
        ({"autoencoder": "embedded:digits", "teacher": "TEACHER"}, "autoencoder: it must be the teacher's"),
        ({"teacher": None}, "velocity_steps=0 leaves steps=one no velocities to average"),
        ({"teacher": "nowhere/at/all"}, "nowhere/at/all"),
    ],
    ids=["many", "own autoencoder", "few steps", "another", "none", "missing"],
)
def test_what_cannot_be_is_refused(data, teacher, changes, message):
    settings = {**TINY, **ONE, "autoencoder": teacher, "teacher": teacher, **changes}
    settings["teacher"] = teacher if settings["teacher"] == "TEACHER" else settings["teacher"]
    with pytest.raises(UserError, match=message):
        PriorTraining(data_spec=data.spec, **settings)
