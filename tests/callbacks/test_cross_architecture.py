"""The callback in real Lightning runs, with a stand-in for the distiller."""

import csv
import json
from contextlib import nullcontext

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from small_world import CLASSES, SPEC, SmallData, protocol_file, striped
from torch.utils.data import DataLoader

from ldd.artefact.set import DistilledSet
from ldd.callbacks import CrossArchitecture
from ldd.errors import UserError
from ldd.evaluation import EqualBytes, FullReal, RandomReal
from ldd.students import training_set


class Data(SmallData, L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(range(100), batch_size=None)

    def val_dataloader(self):
        return DataLoader(range(1), batch_size=None)


class StandIn(L.LightningModule):
    """Codes that brighten by one grey level per step."""

    labeller = None

    def __init__(self, codes=None, draw=None):
        super().__init__()
        self.codes = codes
        self.draw = draw
        self.shift = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("num_steps_done", torch.tensor(0))
        self.modes = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def training_step(self, batch, batch_idx):
        self.num_steps_done += 1
        return -self.shift

    def validation_step(self, batch, batch_idx):
        self.modes.append(torch.is_inference_mode_enabled())

    def sample(self, generator):
        return self.draw(generator)

    def distilled_set(self):
        images, labels = striped(1, 3)
        images = (images + self.shift.detach()).round().to(torch.uint8)
        return DistilledSet.from_images(
            images,
            labels,
            CLASSES,
            mean=SPEC.mean,
            std=SPEC.std,
            codes=self.codes,
            seen_networks=["ldd.networks.ViT"],
        )


@pytest.fixture
def protocol(tmp_path):
    return protocol_file(tmp_path, epochs=2)


@pytest.fixture
def run(tmp_path, protocol):
    """`run(max_steps=..., ...)` fits; returns (trainer, callback, module)."""

    def call(verb="fit", callback=None, module=None, ckpt_path=None, **settings):
        callback = callback or CrossArchitecture(
            protocol=protocol, repeats=2, num_workers=1, baselines=[RandomReal(), FullReal()]
        )
        module = module or StandIn()
        defaults = {
            "max_epochs": 1,
            "max_steps": 2,
            "logger": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        }
        trainer = L.Trainer(
            accelerator="cpu",
            callbacks=[callback],
            default_root_dir=tmp_path / "run",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            **defaults | settings,
        )
        getattr(trainer, verb)(module, datamodule=Data(), ckpt_path=ckpt_path)
        return trainer, callback, module

    return call


@pytest.fixture
def rows(tmp_path):
    """The lines of evaluation.csv."""

    def read():
        with (tmp_path / "run" / "evaluation.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return read


ALL = {"distilled", "initial", "random_real", "full_real"}


def test_fit_writes_results_and_initial_codes(run, rows, tmp_path):
    trainer, callback, _ = run(limit_train_batches=2)
    assert {(r["set"], r["step"], r["protocol"]) for r in rows()} == {(name, "2", "small") for name in ALL}
    assert len(rows()) == 2 + 2 + 2 + 1
    images, _ = striped(1, 3)
    assert torch.equal(DistilledSet.load(tmp_path / "run" / "initial").images, images)
    summary = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    mean = sum(float(r["accuracy"]) for r in rows() if r["set"] == "distilled") / 2
    assert summary["accuracy"]["distilled"]["narrow"]["mean"] == pytest.approx(mean)
    assert summary["protocol"] == {"id": "small", "hash": callback.protocol.hash}
    assert trainer.callback_metrics["val/accuracy/narrow"].item() == pytest.approx(mean)
    assert trainer.callback_metrics["val/accuracy/mean_unseen"].item() == pytest.approx(mean)


def test_several_validations_train_the_other_sets_once(run, rows, monkeypatch):
    from ldd.evaluation import records

    trained, honest = [], records.run_students

    def counted(lesson, students, *arguments, **settings):
        trained.append({s.set for s in students})
        return honest(lesson, students, *arguments, **settings)

    monkeypatch.setattr(records, "run_students", counted)
    run(max_steps=3, limit_train_batches=3, val_check_interval=1)
    assert trained == [ALL, {"distilled"}, {"distilled"}]
    assert [(r["step"], r["set"]) for r in rows() if r["set"] == "distilled"] == [
        (str(step), "distilled") for step in (1, 1, 2, 2, 3, 3)
    ]
    assert {r["step"] for r in rows() if r["set"] != "distilled"} == {"3"}
    assert len(rows()) == 6 + 2 + 2 + 1


def test_no_step_at_all(run, rows, tmp_path):
    run(max_steps=0)
    assert {(r["set"], r["step"]) for r in rows()} == {(name, "0") for name in ALL}
    accuracy = {name: [r["accuracy"] for r in rows() if r["set"] == name] for name in ALL}
    assert accuracy["distilled"] == accuracy["initial"]
    assert (tmp_path / "run" / "initial").is_dir()


def test_fit_without_a_validation_evaluates_at_its_end(run, rows):
    run(max_steps=2)  # stops within the epoch of 100
    assert {r["step"] for r in rows()} == {"2"}


def test_resumed_run_keeps_its_initial_codes(run, rows, tmp_path):
    trainer, _, _ = run(max_steps=1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    run(max_steps=3, max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    images, _ = striped(1, 3)
    assert torch.equal(DistilledSet.load(tmp_path / "run" / "initial").images, images)
    assert [r["step"] for r in rows() if r["set"] == "distilled"] == ["1", "1", "3", "3"]
    assert {r["step"] for r in rows() if r["set"] == "initial"} == {"3"}


def test_validate_trains_students_under_inference_mode(run, rows):
    _, _, module = run(max_steps=2, limit_train_batches=2)
    fitted = rows()
    _, _, again = run("validate", module=module)
    assert again.modes[-1] is True
    strip = [{k: v for k, v in r.items() if k != "seconds"} for r in rows()]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in fitted]  # same bits


def test_validate_without_initial_codes_says_so(run, rows):
    with pytest.warns(UserWarning, match="there is no .*initial: this run was started without evaluation"):
        run("validate")
    assert {r["set"] for r in rows()} == ALL - {"initial"}


def test_switched_off(run, tmp_path):
    run(limit_val_batches=0)
    assert not (tmp_path / "run" / "evaluation.csv").exists()
    assert not (tmp_path / "run" / "initial").exists()


def test_sanity_check_is_no_evaluation(run, protocol, rows):
    callback = CrossArchitecture(
        protocol=protocol, repeats=1, num_workers=1, baselines=[RandomReal()], initial=False
    )
    run(callback=callback, max_steps=1, num_sanity_val_steps=1)
    assert {(r["set"], r["step"]) for r in rows()} == {("distilled", "1"), ("random_real", "1")}


def test_any_logger(run, tmp_path):
    run(limit_train_batches=2, logger=CSVLogger(tmp_path / "logs", name="x", version=0))
    with (tmp_path / "logs" / "x" / "version_0" / "metrics.csv").open(newline="") as file:
        logged = [r for r in csv.DictReader(file) if r["val/accuracy/narrow"]]
    assert [(r["step"], bool(r["val/accuracy/mean_unseen"])) for r in logged] == [("2", True)]


def test_table_is_printed(run, capsys):
    run(limit_train_batches=2)
    text = capsys.readouterr().out
    assert "narrow" in text
    assert "random_real" in text


def test_changed_protocol_is_refused_before_any_work(run, tmp_path, protocol):
    run(limit_train_batches=2)
    module = StandIn()
    other = CrossArchitecture(protocol=protocol_file(tmp_path, epochs=3), num_workers=1)
    with pytest.raises(UserError, match=r"protocol small has changed since evaluation\.csv was written"):
        run(callback=other, module=module)
    assert module.num_steps_done == 0


def test_baselines_that_cannot_be_had_are_refused_before_the_first_step(run, protocol):
    module = StandIn()
    baselines = [RandomReal(), EqualBytes(soft=True)]
    with pytest.raises(UserError, match="random_real_bytes_soft needs what labelled the distilled set"):
        run(callback=CrossArchitecture(protocol=protocol, num_workers=1, baselines=baselines), module=module)
    assert module.num_steps_done == 0


def test_a_nested_budget_beyond_the_set_is_refused_before_the_first_step(run, protocol):
    module = StandIn()
    callback = CrossArchitecture(protocol=protocol, num_workers=1, baselines=[], budgets=[2])
    with pytest.raises(UserError, match="budget 2: the set's classes have 1 images or more"):
        run(callback=callback, module=module)
    assert module.num_steps_done == 0


def test_draws_that_memory_cannot_hold_are_refused_before_the_first_step(run, tmp_path, monkeypatch):
    """A number of draws; fresh ones are made in their epochs."""
    protocol = protocol_file(tmp_path, epochs=3, samples=2)
    latents = torch.zeros(3, 4, 2, 2)
    module = StandIn({"latents": latents, "log_variance": latents}, lambda generator: striped(1, 3)[0])
    free = 2 * 2 * 3 * 3 * 32**2  # twice two draws of three images
    for available, refused in ((free, False), (free - 3, True)):
        monkeypatch.setattr(training_set, "free_bytes", lambda device, free=available: free)
        expected = pytest.raises(UserError, match=r"means 2 draws of 3 codes") if refused else nullcontext()
        with expected:
            run(callback=CrossArchitecture(protocol=protocol, repeats=1, num_workers=1), module=module)
        assert module.num_steps_done == 2, "of the run that was not refused"


def test_all_that_can_be_had_unless_told_otherwise(run, rows, protocol, tmp_path):
    """Also where the set is evaluated several times; the stand-in has no prior."""
    run(
        callback=CrossArchitecture(protocol=protocol, repeats=1, num_workers=1),
        max_steps=2,
        limit_train_batches=2,
        val_check_interval=1,
    )
    own = {"distilled", "initial"}
    real = {"random_real", "nearest_real", "easy_real", "full_real", "full_real_steps"}
    assert {r["set"] for r in rows()} == own | real
    left_out = json.loads((tmp_path / "run" / "evaluation.json").read_text())["left_out"]
    assert list(left_out) == ["prior_samples"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, r"evaluation.repeats \(0\) must be at least 1"),
        ({"num_workers": -1}, r"num_workers \(-1\) must be 'auto', 0"),
        ({"protocol": "fast"}, r"protocol \(fast\) is not known"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        CrossArchitecture(**settings)
