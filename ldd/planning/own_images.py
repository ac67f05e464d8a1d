"""A folder of one's own images: what lies in it, the recipes that suit it, and the minutes that they take here."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import lightning as L
import torch
import yaml

from ldd.data import DistillationData, FolderSource
from ldd.disk.files import atomic_file
from ldd.disk.shipped import configs_folder
from ldd.errors import UserError
from ldd.planning.probes import StepClock
from ldd.planning.run import PlanCLI, plan_run
from ldd.runs.distil import prior_training
from ldd.runtime.devices import available_cores, pick_device
from ldd.runtime.progress import duration
from ldd.runtime.tables import PlainTable, facts_table
from ldd.runtime.trainer import silent

PRIOR, FIT = "prior.yaml", "fit.yaml"
"""Names of the recipes that are written."""

_SIZES = (32, 64, 128)  # pixels that priors are trained for
_LARGEST_ON_CPU = 64
_LOOKED_AT = 200  # images whose sizes and colours stand for all
_SAME = 4  # of 255: channels that differ by no more are grey, whatever compression made of them
_STEPS = (2000, 10_000)  # of training a prior: for few images, and at most
_REAL_BATCH = 32
_PROBED = 6  # steps of each phase that are timed


@dataclass(frozen=True)
class Survey:
    """What a folder of images holds.

    Attributes:
        classes: how many.
        train: number of training images.
        selection: of images for choices.
        test: of test images.
        fewest: training images of the smallest class.
        side: median of the images' short sides, in pixels.
        grey: whether no image looked at has a colour.
        mean: of the pixels, per channel, in [0, 1].
        std: of the pixels, per channel.
    """

    classes: int
    train: int
    selection: int
    test: int
    fewest: int
    side: int
    grey: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, root: str) -> Self:
        """Look at a folder, see `FolderSource`: all names, and some of the training images.

        Raises:
            UserError: a folder of another form, or an unreadable image.
        """
        source = FolderSource(root)
        counts = [len(source.class_items("train", info.label)) for info in source.classes]
        items = source.items("train")
        seen = [source.read(item) for item in items[:: -(-len(items) // _LOOKED_AT)]]
        pixels = torch.cat([image.flatten(1).float() for image in seen], dim=1) / 255
        spread = [(image.amax(0).int() - image.amin(0).int()).amax().item() for image in seen]
        return cls(
            classes=len(source.classes),
            train=len(items),
            selection=len(source.items("selection")),
            test=len(source.items("test")),
            fewest=min(counts),
            side=int(median(min(image.shape[1:]) for image in seen)),
            grey=max(spread) <= _SAME,
            mean=tuple(round(value, 3) for value in pixels.mean(1).tolist()),
            std=tuple(max(round(value, 3), 0.001) for value in pixels.std(1).tolist()),
        )

    @property
    def image_size(self) -> int:
        """The largest of 32, 64 and 128 px that the images fill, on a CPU at most 64."""
        largest = _LARGEST_ON_CPU if pick_device().type == "cpu" else max(_SIZES)
        return max([size for size in _SIZES if size <= min(self.side, largest)], default=min(_SIZES))

    def table(self, image_size: int) -> PlainTable:
        """For a terminal."""
        kind = "grey" if self.grey else "colour"
        facts = {
            "classes": str(self.classes),
            "images": f"{self.train:,} to train, {self.selection:,} to choose, {self.test:,} to test",
            "smallest class": f"{self.fewest:,} to train",
            "short side": f"{self.side} px, {kind}; the recipes take {image_size} px",
        }
        return facts_table("what the folder holds", facts)


@dataclass(frozen=True)
class OwnRecipes:
    """The two recipes for a folder, as text.

    Attributes:
        prior: for `latentdd prior train`.
        fit: for `latentdd fit`.
        run: folder of the run that `fit` makes.
    """

    prior: str
    fit: str
    run: Path

    @classmethod
    def suiting(
        cls, survey: Survey, root: str, licence: str, *, image_size: int, images_per_class: int
    ) -> Self:
        """Fill in the shipped recipes for folders.

        Args:
            survey: of the folder.
            root: the folder, as the recipes name it.
            licence: terms of the images.
            image_size: in pixels.
            images_per_class: IPC.

        Raises:
            UserError: no licence, a size that the networks of the prior cannot have, or more images than a class has.
        """
        if not licence.strip():
            raise UserError(
                "licence is empty; name the terms of your images, which travel into the prior and every set, or "
                "say 'unknown'"
            )
        if image_size % 16 or image_size < 16:
            raise UserError(f"image_size ({image_size}) must be a multiple of 16")
        if not 1 <= images_per_class <= survey.fewest:
            raise UserError(
                f"images_per_class ({images_per_class}) must be 1 to {survey.fewest}, the training images of the "
                "smallest class"
            )
        name = Path(root).absolute().name or "images"
        run, prior_run = Path("runs") / name, Path("runs") / f"{name}_prior"
        steps = min(max(_STEPS[0], survey.train), _STEPS[1])
        data = {"data.root": root, "data.image_size": image_size}
        prior = _filled(
            "prior_training/folder",
            {
                **data,
                "trainer.max_steps": steps,
                "trainer.default_root_dir": str(prior_run),
                "model.autoencoder_steps": steps // 4,
                "model.mirror": not survey.grey,
                "model.licence": licence,
            },
        )
        fit = _filled(
            "folder",
            {
                **data,
                "data.mean": list(survey.mean),
                "data.std": list(survey.std),
                "trainer.default_root_dir": str(run),
                "model.prior.init_args.path_or_hub_id": str(prior_run / "prior"),
                "model.objective.init_args.real_batch": min(_REAL_BATCH, survey.fewest),
                "model.images_per_class": images_per_class,
            },
        )
        return cls(prior, fit, run)

    def minutes(self) -> dict[str, str]:
        """Measure some steps of both recipes here, and say what all of them will take.

        Raises:
            UserError: what the runs would refuse.
        """
        print("measuring some steps of both recipes", flush=True)
        with tempfile.TemporaryDirectory(prefix="latentdd-init-") as folder, silent():
            seconds, prior = _plan_prior(self.prior, Path(folder))
            recipe = Path(folder) / FIT
            recipe.write_text(self.fit, encoding="utf-8")
            arguments = ["--config", str(recipe), "--model.prior.path_or_hub_id", str(prior)]
            plan = plan_run(PlanCLI(Path(folder) / "run", arguments))
        return {
            "prior train": duration(seconds, 0),
            "fit": f"{duration(plan.total_seconds, 0)}, of which {duration(plan.evaluation_seconds, 0)} evaluating",
        }

    @staticmethod
    def refuse_existing(folder: Path) -> None:
        """Raise if one of the files is in a folder already.

        Raises:
            UserError: names it.
        """
        for file in (folder / PRIOR, folder / FIT):
            if file.exists():
                raise UserError(f"{file} exists, and is not overwritten; name another folder with --out")

    def write(self, folder: Path, survey: Survey, minutes: Mapping[str, str]) -> None:
        """Write both files, each with a head that says what it is for and how long it takes.

        Raises:
            UserError: one of them is there already, or the folder cannot be written.
        """
        self.refuse_existing(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kind = "grey" if survey.grey else "colour"
        found = (
            f"{survey.classes} classes, {survey.train:,} training images, short side {survey.side} px, {kind}"
        )
        place = f"On this machine ({pick_device().type}, {available_cores()} cores)"
        for name, text, verb in ((PRIOR, self.prior, "prior train"), (FIT, self.fit, "fit")):
            file = folder / name
            took = f"{place} about {minutes[verb]}." if verb in minutes else "Its time was not measured."
            head = f"# latentdd {verb} --config {file}\n# For {found}. {took}\n"
            with atomic_file(file) as beside:
                beside.write_text(head + text, encoding="utf-8")


def _filled(name: str, values: Mapping[str, Any]) -> str:
    """The text of a shipped recipe with other values, its comments kept but for those of its head."""
    text = (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    places = {path: node for path, node in _values(yaml.compose(text), "") if path in values}
    assert places.keys() == values.keys(), values.keys() - places.keys()
    for path, node in sorted(places.items(), key=lambda one: -one[1].start_mark.index):
        value = yaml.safe_dump(values[path], default_flow_style=True, width=10**6, allow_unicode=True)
        value = value.removesuffix("\n").removesuffix("\n...")
        comment = text[node.end_mark.index :].partition("\n")[0]
        kept = "" if comment.strip() == "# required" else comment
        end = node.end_mark.index + len(comment)
        text = text[: node.start_mark.index] + value + kept + text[end:]
    lines = text.splitlines(keepends=True)
    head = next(at for at, line in enumerate(lines) if not line.startswith("#"))
    return "".join(lines[head:])


def _values(node: yaml.Node | None, path: str) -> list[tuple[str, yaml.Node]]:
    """All values of a recipe by their dotted names."""
    if not isinstance(node, yaml.MappingNode):
        return [] if node is None else [(path, node)]
    return [found for key, value in node.value for found in _values(value, f"{path}.{key.value}".lstrip("."))]


def _plan_prior(recipe: str, folder: Path) -> tuple[float, Path]:
    """Seconds of training the prior that a recipe describes, and a folder with one that has hardly been trained."""
    settings = yaml.safe_load(recipe)
    data = DistillationData(**{**settings["data"], "source": FolderSource})
    first, steps = settings["model"]["autoencoder_steps"], settings["trainer"]["max_steps"]
    model = prior_training(data.spec, settings["model"], autoencoder_steps=_PROBED)
    clock = StepClock()
    trainer = L.Trainer(
        max_steps=2 * _PROBED, max_epochs=1, default_root_dir=folder, devices=1, logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        limit_val_batches=0, callbacks=[clock],
    )  # fmt: skip
    trainer.fit(model, data)
    autoencoder, (encoding, *denoiser) = clock.steps[1:_PROBED], clock.steps[_PROBED:]
    seconds = min(autoencoder) * first + min(denoiser) * (steps - first) + encoding
    return seconds, model.save_prior(folder / "prior")
