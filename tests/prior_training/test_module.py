"""Training a prior: losses fall, a stopped run resumes exactly, the folder loads, samples are those of the folder."""

import json
import os
import signal
import time

import pytest
import torch
from lightning import Callback, Trainer
from PIL import Image
from processes import run_ranks, torchrun_variables

from ldd.artefact.picture import draw_grid
from ldd.augmentation.affine import AffineViews
from ldd.callbacks import LastCheckpoints
from ldd.data import DistillationData, RandomPruner
from ldd.errors import UserError
from ldd.images import ClassInfo, DataSpec
from ldd.prior_training.architectures import AutoencoderShape, UNetShape
from ldd.prior_training.latents import CHUNK
from ldd.prior_training.module import PriorTraining
from ldd.prior_training.pictures import SamplePictures, draw_class
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior
from ldd.priors.folder import read_learned
from ldd.runtime.seeding import generator

TINY = {
    "autoencoder": AutoencoderShape(channels=(4, 8), norm_groups=4),
    "unet": UNetShape(
        channels=(8, 16), attention=(False, True), conditioning_dim=8, norm_groups=4, middle=False
    ),
    "autoencoder_steps": 12,
    "autoencoder_batch_size": 16,
    "autoencoder_lr": 1e-2,
    "batch_size": 32,
    "lr": 1e-2,
    "augmentation": AffineViews(shift=0.05, rotation=5),
    "views": 2,
}


class Losses(Callback):
    def __init__(self):
        self.autoencoder, self.denoiser = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        metrics = trainer.callback_metrics
        if "train/loss" in metrics:
            self.denoiser.append(float(metrics["train/loss"]))
        else:
            self.autoencoder.append(float(metrics["train/autoencoder_loss"]))


def fit(data, total, folder, ckpt_path=None, precision="32-true", callbacks=(), ranks=1, **changes):
    model, losses = PriorTraining(data_spec=data.spec, **{**TINY, **changes}), Losses()
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        use_distributed_sampler=False,
        max_steps=total,
        logger=False,
        enable_checkpointing=any(isinstance(callback, LastCheckpoints) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[losses, *callbacks],
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, losses, trainer


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    model, losses, trainer = fit(data, 60, folder)
    trainer.save_checkpoint(folder / "run.ckpt")
    model.save_prior(folder / "prior", command="latentdd prior train --config tiny.yaml")
    return model, losses, folder


def test_both_losses_fall(trained):
    _, losses, _ = trained
    assert (len(losses.autoencoder), len(losses.denoiser)) == (12, 48)
    assert sum(losses.autoencoder[-3:]) < 0.7 * sum(losses.autoencoder[:3])
    assert sum(losses.denoiser[-8:]) < 0.8 * sum(losses.denoiser[:8])


def test_the_folder_loads_and_holds_what_was_trained(trained, data):
    model, _, folder = trained
    prior = LatentDiffusionPrior(str(folder / "prior"))
    assert prior.image_size == 16
    assert prior.latent_shape == (4, 8, 8)
    assert prior.rows(data.classes).tolist() == list(range(10))
    assert (prior.embed(torch.arange(10))[:, 0] != prior.null(10)[:, 0]).any(1).all()
    for name, saved in prior.unet.state_dict().items():
        averaged = model.average.module.unet.state_dict()[name]
        assert (saved - averaged).abs().max() <= 1e-3 * averaged.abs().max() + 1e-6, name  # float16
    assert '"clip_sample": false' in (folder / "prior" / "scheduler" / "scheduler_config.json").read_text()
    images = data.test_images.draw(3, 8, generator(0))
    assert prior.encode(images).std() == pytest.approx(
        1, abs=0.35
    )  # scaled by the spread of training latents


def test_the_model_card_states_the_facts(trained, data):
    _, _, folder = trained
    card = (folder / "prior" / "README.md").read_text()
    for fact in ("`latentdd prior train --config tiny.yaml`", "CC BY 4.0", "seed**: 0", "48 steps of 32",
                 "12 steps of 16", data.spec.fingerprint, "of training"):  # fmt: skip
        assert fact in card
    assert "not measured" not in card
    described = json.loads((folder / "prior" / "prior.json").read_text())
    assert described["null_class"] == 10
    assert described["classes"][7] == {"id": 7, "wnid": "digit-7", "name": "7"}
    assert described["data"] == dict(data.fingerprints)
    learned = read_learned(folder / "prior")
    assert torch.equal(learned, data.contents_of("core_set"))
    hashes = {int(data.source.sha256(item)[:15], 16) for item in data.source.items("train")}
    assert {*learned.tolist()} == hashes
    assert not torch.isin(data.contents_of("test"), learned).any()
    assert not [
        path for path in (folder / "prior").rglob("*") if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")
    ]


@pytest.mark.parametrize("stop", [6, 20])
def test_a_stopped_run_resumes_as_if_it_had_not_stopped(trained, data, tmp_path, stop):
    whole, losses, _ = trained

    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "part.ckpt")
                trainer.should_stop = True

    model = PriorTraining(data_spec=data.spec, **TINY)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", max_steps=60, num_sanity_val_steps=0, callbacks=[Stop()], default_root_dir=tmp_path,
            **quiet).fit(model, datamodule=data)  # fmt: skip
    resumed, rest, _ = fit(data, 60, tmp_path, ckpt_path=tmp_path / "part.ckpt")
    assert len(rest.autoencoder) + len(rest.denoiser) == 60 - stop
    assert rest.denoiser == losses.denoiser[-len(rest.denoiser) :]
    for name, value in whole.average.state_dict().items():
        assert value.equal(resumed.average.state_dict()[name]), name


def test_a_finished_run_that_is_resumed_writes_the_same_prior(trained, data, tmp_path):
    """After its last checkpoint a run may be killed before the prior is written; no step is left then."""
    _, _, folder = trained
    check_resumed_at_its_end(data, 60, folder / "run.ckpt", folder / "prior", tmp_path)


def check_resumed_at_its_end(data, total, checkpoint, prior, folder, **changes):
    resumed, rest, _ = fit(data, total, folder, ckpt_path=checkpoint, **changes)
    assert not rest.autoencoder + rest.denoiser
    resumed.save_prior(folder / "prior", command="latentdd prior train --config tiny.yaml")
    written = {path.relative_to(prior): path.read_bytes() for path in prior.rglob("*") if path.is_file()}
    again = folder / "prior"
    assert {path.relative_to(again) for path in again.rglob("*") if path.is_file()} == written.keys()
    assert {name for name, content in written.items() if (again / name).read_bytes() != content} == set()


def test_test_images_are_never_read(data, tmp_path):
    class Untouchable:
        def __getattr__(self, name):
            raise AssertionError("prior training read the test split")

    guarded = DistillationData(image_size=16)
    guarded.setup()
    guarded.test_images = Untouchable()
    fit(guarded, 14, tmp_path)


def test_a_pre_trained_autoencoder_stays_as_it_is(trained, data, tmp_path):
    _, _, folder = trained
    before = AutoencoderPrior(str(folder / "prior"))
    model, losses, trainer = fit(data, 5, tmp_path, autoencoder=str(folder / "prior"), autoencoder_steps=0)
    assert (len(losses.autoencoder), len(losses.denoiser)) == (0, 5)
    for name, value in before.state_dict().items():
        assert value.equal(model.frozen.state_dict()[name]), name
    trainer.save_checkpoint(tmp_path / "frozen.ckpt")
    state = torch.load(tmp_path / "frozen.ckpt", weights_only=False)["state_dict"]
    assert not [key for key in state if "autoencoder" in key or "frozen" in key]
    model.save_prior(tmp_path / "prior")
    after = AutoencoderPrior(str(tmp_path / "prior"))
    images = data.test_images.draw(0, 2, generator(0))
    assert (after.encode(images) - before.encode(images)).abs().max() < 1e-5
    assert "pre-trained" in (tmp_path / "prior" / "README.md").read_text()


def same_weights(first, second):
    return all(value.equal(second.state_dict()[name]) for name, value in first.state_dict().items())


def test_cached_latents_change_nothing(trained, data, tmp_path):
    whole, losses, _ = trained
    for _ in range(2):
        model, found, _ = fit(data, 60, tmp_path, cache_dir=str(tmp_path / "latents"))
        assert found.denoiser == losses.denoiser
        assert same_weights(model.average, whole.average)
    assert len(list((tmp_path / "latents").glob("latents-16px-*.bin"))) == 1


def test_mirror_images_are_a_second_set(data, tmp_path):
    model, _, _ = fit(data, 13, tmp_path, views=1, augmentation=None, mirror=True)
    latents, n = model._latents, len(data.train_images)
    assert latents.shape == (2 * n, 4, 8, 8)
    assert model._rows.equal(data.train_images.labels.repeat(2))
    images = (data.train_images.images[:5] / 127.5 - 1).flip(-1)
    scale = model.autoencoder.config.scaling_factor
    with torch.no_grad():
        expected = model.autoencoder.encode(images).latent_dist.mode() * scale
    assert (latents[n : n + 5] - expected).abs().max() < 1e-5


def test_a_pruned_core_set_is_what_is_learned(tmp_path):
    pruned = DistillationData(image_size=16, pruner=RandomPruner(0.25))
    pruned.setup()
    pruned.train_images = None
    model, _, _ = fit(pruned, 14, tmp_path)
    assert len(model._latents) == 2 * len(pruned.core_set) < 600
    key = pruned.core_set_key()
    pruned.core_set = pruned.core_set.select(torch.arange(100))
    assert pruned.core_set_key() != key


def test_bfloat16(trained, data, tmp_path):
    """Networks run in half precision, weights and averages do not, and the losses are those of float32 but for that."""
    _, losses, _ = trained
    seen = set()

    class Note(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 1:
                module.denoiser.unet.conv_in.register_forward_hook(lambda _, __, out: seen.add(out.dtype))

    model, found, _ = fit(data, 60, tmp_path, precision="bf16-mixed", callbacks=[Note()])
    assert torch.bfloat16 in seen
    assert {tensor.dtype for tensor in model.average.module.state_dict().values()} == {torch.float32}
    assert model._latents.dtype == torch.float32
    assert found.autoencoder[0] == pytest.approx(losses.autoencoder[0], rel=0.02)
    assert sum(found.denoiser[-8:]) == pytest.approx(sum(losses.denoiser[-8:]), rel=0.05)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions_are_refused(data, tmp_path, precision):
    with pytest.raises(UserError, match=rf"trainer\.precision={precision} .*; use 32-true or bf16-mixed"):
        fit(data, 14, tmp_path, precision=precision)


def of_rank(folder, ranks):
    """Losses and averaged weights of one rank; 25 of 32 latents and 9 of 16 images are not halves."""
    torch.set_num_threads(1)
    data = DistillationData(image_size=16)
    folder = folder / str(ranks)
    model, losses, _ = fit(
        data, 40, folder, ranks=ranks, batch_size=25, autoencoder_batch_size=9, cache_dir=str(folder / "cache"),
        callbacks=[SamplePictures(every_n_steps=20, per_class=1, num_steps=2)],
    )  # fmt: skip
    weights = {name: value.numpy() for name, value in model.average.state_dict().items()}
    measured = [model.measured.text(name) for name in ("loss", "val_loss", "val_autoencoder_loss")]
    return losses.autoencoder + losses.denoiser, weights, measured


def test_two_ranks_train_as_one(tmp_path):
    (losses, weights, measured), *_ = [of_rank(tmp_path, 1)]
    both = run_ranks(of_rank, tmp_path, 2, environments=torchrun_variables(2))
    # Each of the ranks logs (rank 0) or keeps (both) what one alone does, but for the order of sums.
    for name, value in both[0][1].items():
        assert (value == both[1][1][name]).all(), name
        assert abs(value - weights[name]).max() < 2e-4, name
    assert both[0][0] == pytest.approx(losses, rel=1e-4)
    assert [float(text) for text in both[0][2]] == pytest.approx([float(text) for text in measured], rel=1e-3)
    # One process writes: one cache, one picture a time, no leftovers.
    assert sorted(path.name for path in (tmp_path / "2" / "samples").iterdir()) == [
        "step-000020.png",
        "step-000040.png",
    ]
    assert sorted(path.suffix for path in (tmp_path / "2" / "cache").iterdir()) == [".bin", ".json"]
    with pytest.raises(AssertionError, match="2 ranks cannot share batches of 1 latents and 16 images"):
        run_ranks(too_many_ranks, tmp_path, environments=torchrun_variables(2))


def too_many_ranks(folder):
    fit(DistillationData(image_size=16), 14, folder, ranks=2, batch_size=1)


def test_samples_are_those_of_the_saved_prior(trained, data, tmp_path):
    """Up to the half precision of the folder."""
    model, _, folder = trained
    prior = LatentDiffusionPrior(str(folder / "prior"))
    for guidance in (1.0, 2.0):
        drawn = draw_class(model, 3, 4, generator(1), num_steps=5, guidance_scale=guidance)
        latents = prior.sample(torch.full((4,), 3), generator(1), num_steps=5, guidance_scale=guidance)
        with torch.no_grad():
            expected = (prior.decode(latents).clamp(-1, 1) + 1) * 127.5
        assert (drawn.float() - expected).abs().mean() < 1
    assert PriorTraining(data_spec=data.spec, **TINY).averaged is None


def test_sample_pictures(data, tmp_path):
    samples = SamplePictures(every_n_steps=8, per_class=2, num_steps=2)
    model, _, _ = fit(data, 18, tmp_path, callbacks=[samples])
    pictures = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in pictures] == [
        "step-000016.png",
        "step-000018.png",
    ]  # step 8 is the autoencoder's
    images = [
        draw_class(model, i, 2, generator(0, "prior sample", f"digit-{i}"), num_steps=2, guidance_scale=2)
        for i in range(10)
    ]
    expected = draw_grid(torch.cat(images), torch.arange(10).repeat_interleave(2), data.classes)
    assert Image.open(pictures[-1]).tobytes() == expected.tobytes()
    fit(data, 14, tmp_path / "off", callbacks=[SamplePictures(every_n_steps=0)])
    assert not (tmp_path / "off" / "samples").exists()
    for arguments, message in (({"every_n_steps": -1}, "must be at least 0"), ({"per_class": 11}, "must be 1 to 10"),
                               ({"guidance_scale": -1}, "guidance_scale=-1 must be")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            SamplePictures(**arguments)
    with pytest.raises(UserError, match="num_steps=2000 exceeds the 1000 timesteps"):
        fit(data, 14, tmp_path, callbacks=[SamplePictures(num_steps=2000)])


def spec(image_size=16):
    return DataSpec([ClassInfo(0, 0, "a", "a")], image_size, (0.5,) * 3, (0.5,) * 3, "0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoencoder_steps": 0}, "autoencoder_steps=0 leaves the autoencoder untrained"),
        (
            {"autoencoder": "{latent_chanels: 4}"},
            "model.autoencoder: Group 'autoencoder' does not accept .*latent_chanels",
        ),
        ({"autoencoder": "some/folder"}, "autoencoder_steps=12 with a pre-trained autoencoder.*use 0"),
        ({"class_dropout": 1.0}, r"class_dropout=1\.0 is not a share"),
        ({"augmentation": None}, "views=2 needs an augmentation"),
        ({"data_spec": spec(15)}, r"needs a data\.image_size that is a multiple of 2, not 15"),
        ({"data_spec": spec(18)}, "needs latents with a side that is a multiple of 2, not 9"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        PriorTraining(**{"data_spec": spec(), **TINY, **changes})


def test_too_few_steps_and_saving_too_early_are_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.max_steps=12 leaves no step for the denoiser"):
        fit(data, 12, tmp_path)
    with pytest.raises(UserError, match="has not been trained for a single step"):
        PriorTraining(data_spec=data.spec, **TINY).save_prior(tmp_path / "prior")
    assert not (tmp_path / "prior").exists()


def test_a_signal_while_latents_are_encoded_stops_at_once_and_nothing_is_encoded_twice(
    trained, data, tmp_path, monkeypatch
):
    """The checkpoint is of the step before; the next run goes on at the part that was being encoded."""
    encoded, plain, cache = [], PriorTraining._encoder, str(tmp_path / "latents")
    whole, losses, _ = trained

    def encoder(self, images, tell=None):
        if tell is not None and len(encoded) == tell:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
            raise AssertionError("not stopped")
        encoded.append(images)
        return plain(self, images)

    def run(tell, **arguments):
        monkeypatch.setattr(PriorTraining, "_encoder", lambda self, images: encoder(self, images, tell))
        return fit(data, 60, tmp_path, cache_dir=cache, callbacks=[LastCheckpoints(1000)], **arguments)

    parts = -(-len(data.train_images) // CHUNK)
    with pytest.raises(SystemExit):
        run(tell=parts + 2)  # all of them once to measure their scale, and two more
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == TINY["autoencoder_steps"]
    model, found, _ = run(tell=None, ckpt_path=last)
    assert len(encoded) == parts + 2 * parts + 1  # and the selection split
    assert (
        len(list((tmp_path / "latents").iterdir())) == 2
    )  # file and index: nothing is left of the measuring
    assert found.denoiser == losses.denoiser
    assert same_weights(model.average, whole.average)
