"""A folder of images distilled in one call: prior, run and evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from ldd.artefact.set import DistilledSet
from ldd.callbacks import CrossArchitecture, Export, LastCheckpoints, Preview
from ldd.data import DistillationData, FolderSource
from ldd.disk.files import holds_files, read_yaml
from ldd.disk.shipped import configs_folder
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.evaluation import Baseline, PriorSamples, RandomReal, Report
from ldd.evaluation.ahead import Listed, check_evaluation, planned_set
from ldd.images import DataSpec
from ldd.networks import NetworkFactory
from ldd.objectives import DistributionMatching, Objective
from ldd.prior_training.architectures import AutoencoderShape, UNetShape
from ldd.prior_training.module import PriorTraining
from ldd.priors import LatentDiffusionPrior, Prior
from ldd.runs.ahead import check_images
from ldd.runs.ending import ending_of_run
from ldd.runtime.ranks import rank_zero_info
from ldd.students.workers import NumWorkers


class Distilled(NamedTuple):
    """What `distil` gives.

    Attributes:
        set: the distilled set, as it lies in `<out>/distilled`.
        report: its evaluation and the baselines'.
        prior: folder of the prior that was trained for it; None where one was given.
    """

    set: DistilledSet
    report: Report
    prior: Path | None


def distil(
    folder: Path | str,
    images_per_class: int = 1,
    *,
    out: Path | str = "runs/distilled",
    prior: Prior | str | None = None,
    image_size: int = 32,
    steps: int = 100,
    prior_steps: int = 2000,
    objective: Objective | None = None,
    networks: dict[str, NetworkFactory] | None = None,
    protocol: str = "quick",
    repeats: int = 3,
    baselines: Sequence[Baseline] = (),
    seed: int = 0,
    num_workers: NumWorkers = "auto",
) -> Distilled:
    """Distil a folder of images: train a small prior on it, distil through the prior, and evaluate the set.

    The defaults suit about a thousand images of 32 px on a CPU, where training the prior takes most of the time; more
    classes, images and pixels want a GPU. What takes long shows its progress with the time left.

    Args:
        folder: like ImageNet's, `train/<class>/*.jpg` and `val/<class>/*.jpg` (or `test/`).
        images_per_class: IPC.
        out: folder of the run: `prior/`, `distilled/`, `evaluation.csv`, previews and checkpoints; `latentdd report`
            makes a page of it.
        prior: a prior, or folder or hub id of one that knows the classes; None trains a small one on the images.
        image_size: in pixels; a multiple of 8 where the prior is trained here.
        steps: of the distillation.
        prior_steps: of training the prior, a quarter of them for its autoencoder.
        objective: what is matched; None is distribution matching with 32 real images per class and step.
        networks: of the evaluation, by name; None takes the protocol's.
        protocol: how they are trained, see `ldd.evaluate`.
        repeats: networks of each kind for each set.
        baselines: sets to compare with; equally many random real images are always among them.
        seed: of everything random.
        num_workers: worker processes of the evaluation on a CPU.

    Raises:
        UserError: images, prior, numbers or a folder that cannot be used.
    """
    run = Path(out)
    if holds_files(run):
        raise UserError(f"out ({run}) is not empty; name a new folder")
    data = DistillationData(FolderSource, str(folder), image_size=image_size, seed=seed)
    matched = DistributionMatching(real_batch=32) if objective is None else objective
    others = [RandomReal(), *baselines]
    evaluation = CrossArchitecture(networks, protocol, repeats, others, num_workers=num_workers, seed=seed)
    _check(data, images_per_class, matched, evaluation)
    trained = _train_prior(data, run, prior_steps, seed) if prior is None else None
    source = prior if trained is None else str(trained)
    generator = source if isinstance(source, Prior) else LatentDiffusionPrior(str(source))
    model = Distiller(generator, matched, data.spec, images_per_class, seed=seed)
    _trainer(run, steps, [evaluation, Export(), Preview(), LastCheckpoints()]).fit(model, data)
    assert evaluation.report is not None
    ending_of_run(run).tell()
    return Distilled(DistilledSet.load(run), evaluation.report, trained)


def _check(
    data: DistillationData, images_per_class: int, objective: Objective, evaluation: CrossArchitecture
) -> None:
    """Refuse what the run could only refuse once a prior is trained, as far as it does not depend on that."""
    listed, spec = Listed(data), data.spec
    check_images(listed, images_per_class, objective.real_images())
    planned = planned_set(spec, torch.arange(spec.num_classes).repeat_interleave(images_per_class))
    named = [one for one in evaluation.baselines or () if not one.name.startswith(PriorSamples.name)]
    check_evaluation(planned, evaluation.request(listed, baselines=named), None)


def prior_training(spec: DataSpec, settings: Mapping[str, Any], **others: Any) -> PriorTraining:  # noqa: ANN401
    """Return the training that the section `model` of a recipe for small priors describes.

    Args:
        spec: classes and image size.
        settings: the section, read.
        others: settings that go over it.
    """
    shapes = (
        AutoencoderShape(**_arguments(settings["autoencoder"])),
        UNetShape(**_arguments(settings["unet"])),
    )
    given = {name: value for name, value in settings.items() if name not in ("autoencoder", "unet")}
    return PriorTraining(*shapes, spec, **{**given, **others})


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a YAML file, whose lists are tuples for a class."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def _train_prior(data: DistillationData, run: Path, steps: int, seed: int) -> Path:
    """Train a prior as `prior_training/folder` has it on the images, and return its folder."""
    if steps < 2:
        raise UserError(
            f"prior_steps ({steps}) must be at least 2: for the autoencoder, and for the denoiser"
        )
    rank_zero_info(f"training a small prior on {len(data.classes)} classes for {steps} steps")
    settings = read_yaml(configs_folder() / "prior_training" / "folder.yaml")["model"]
    model = prior_training(data.spec, settings, autoencoder_steps=max(1, steps // 4), seed=seed)
    _trainer(run, steps, []).fit(model, data)
    return model.save_prior(run / "prior")


def _trainer(run: Path, steps: int, callbacks: Sequence[L.Callback]) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        max_epochs=1,
        default_root_dir=run,
        devices=1,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
    )
