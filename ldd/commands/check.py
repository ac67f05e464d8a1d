"""`latentdd check`: copies of real images, diversity and coverage, distance of features, what students confuse."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich
import torch
import yaml
from PIL.Image import Image
from rich.table import Table
from rich.text import Text

from ldd.artefact.identity import identity, refuse_other_data, refuse_other_test_split
from ldd.artefact.set import DistilledSet
from ldd.commands.evaluate import find_labeller, stored_sampler
from ldd.data import DistillationData
from ldd.disk.files import atomic_file, check_writable, read_yaml, write_json
from ldd.errors import UserError
from ldd.evaluation import Labels, Protocol, Setting
from ldd.evaluation.baselines.base import RandomReal
from ldd.evaluation.baselines.stored import StoredSet
from ldd.evaluation.checks import (
    CONFUSION_NAME,
    FOLDER,
    JSON_NAME,
    NEIGHBOURS_NAME,
    Confusion,
    by_pixels,
    confusions,
    frechet_distance,
    nearest_real,
    spread_of,
)
from ldd.evaluation.checks.neighbours import COPY_RATIO
from ldd.evaluation.checks.pictures import draw_confusions, draw_neighbours
from ldd.evaluation.courses import teacher_of
from ldd.evaluation.features import ClassifierFeatures, FeatureNetwork, trained_features
from ldd.images import Labelled
from ldd.networks import NetworkFactory
from ldd.runs.verb import run_function
from ldd.runtime.devices import pick_device
from ldd.students.training import Lesson, Student, one_thread
from ldd.students.training_set import draws_for


def check(
    path: str,
    data: DistillationData,
    out: str | None = None,
    networks: dict[str, NetworkFactory] | None = None,
    protocol: str = "quick",
    repeats: int = 1,
    seed: int = 0,
    copy_ratio: float = COPY_RATIO,
    labels: Labels | None = None,
    features: ClassifierFeatures | None = None,
    other_data: bool = False,
) -> None:
    """Check the images of a distilled set: copies of real ones, coverage, features, per-class accuracy.

    Writes checks.json, neighbours.png (each image beside its nearest real ones) and confusion.png. As many random real
    images stand beside the set in every figure of coverage and features.

    Args:
        path: folder of a distilled set, or of a run, whose own data are taken where --data is missing.
        data: real images: training images for copies and coverage, the test split for confusion.
        out: folder for the results; null takes `checks` in the folder of the run or beside the set.
        networks: networks by name whose confusions are counted; null takes the protocol's.
        protocol: name of a shipped protocol, or path of a protocol file.
        repeats: networks of each kind; 0 counts no confusions.
        seed: of everything random.
        copy_ratio: an image is a copy below this share of the usual distance from a real image to the next.
        labels: the teacher of a protocol that has one.
        features: of images, besides their pixels: those of a classifier of torchvision's architectures; null
            trains a small network on the real images.
        other_data: the test split is another than the set was made beside, on purpose.

    Raises:
        UserError: a set, data, protocol or folder that cannot be used.
    """
    if repeats < 0 or not 0 <= copy_ratio < float("inf"):
        raise UserError(f"repeats ({repeats}) and copy_ratio ({copy_ratio}) must be 0 or more")
    distilled = DistilledSet.load(path)
    if not other_data:
        refuse_other_test_split(distilled, data.spec)
    recipe = Protocol.load(protocol)
    folder = Path(out) if out is not None else _beside(Path(path))
    check_writable(folder)
    data.setup()
    refuse_other_data(distilled, data.spec)
    labeller = None if labels is None else find_labeller(labels, distilled, data, recipe, seed, "auto")
    device = pick_device()
    if features is None:
        embed = trained_features(data.train_images, data.spec, seed, device)
    else:
        embed = features.load(data.spec, device)
    report, picture = _image_checks(distilled, data, embed, copy_ratio, seed)
    report |= {"set": identity(distilled), "seed": seed, "test_split_fingerprint": data.spec.fingerprint}
    if repeats:
        factories = recipe.factories() if networks is None else dict(networks)
        lesson = Lesson(data.spec, recipe, factories, seed, teacher_of(recipe, labeller))
        found = _confusions(lesson, distilled, data, repeats, device)
        report["confusion"] = {one.network: one.summary(data.spec.classes) for one in found}
        report["protocol"] = {"id": recipe.id, "hash": recipe.hash}
        with atomic_file(folder / CONFUSION_NAME) as beside:
            draw_confusions(found, data.spec.classes).savefig(beside, format="png", dpi=110)
    with atomic_file(folder / NEIGHBOURS_NAME) as beside:
        picture.save(beside, format="PNG")
    report["classes"] = [info.name for info in data.spec.classes]
    write_json(folder / JSON_NAME, report)
    rich.print(_table(report))
    print(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def _beside(path: Path) -> Path:
    """`checks` in the folder of the run, whether that or its set was named."""
    run = path.resolve().parent if (path / "manifest.json").is_file() else path
    return run / FOLDER


def _image_checks(
    distilled: DistilledSet,
    data: DistillationData,
    features: FeatureNetwork,
    copy_ratio: float,
    seed: int,
) -> tuple[dict[str, Any], Image]:
    """Copies and coverage of the set and of as many random real images, and the picture of neighbours."""
    real = data.train_images
    real_points = features(real.images)
    random = RandomReal().set_for(0, Setting(data, distilled.counts, seed))
    report: dict[str, Any] = {"features": features.name, "images": {}}
    for name, (images, labels) in {
        "distilled": (distilled.images, distilled.labels),
        RandomReal.name: random,
    }.items():
        points = features(images)
        report["images"][name] = {
            **spread_of(points, labels, real_points, real.labels).summary(),
            "frechet_distance": frechet_distance(points, real_points),
        }
    own_points = features(distilled.images)
    measures = {
        "pixels": by_pixels(distilled.images, distilled.labels, real),
        "features": nearest_real(own_points, distilled.labels, real_points, real),
    }
    report["copies"] = {name: found.summary(copy_ratio) for name, found in measures.items()}
    return report, draw_neighbours(distilled.images, real.images, measures, copy_ratio)


def _confusions(
    lesson: Lesson, distilled: DistilledSet, data: DistillationData, repeats: int, device: torch.device
) -> list[Confusion]:
    protocol = lesson.protocol
    epochs, batch_size = protocol.budget(distilled.counts)
    samples = draws_for(protocol, distilled, stored_sampler(distilled, protocol, device), lesson.seed)
    setting = Setting(data, distilled.counts, lesson.seed)
    given = StoredSet("distilled", distilled, samples=samples).set_for(0, setting)
    training = given.to(device)
    split = protocol.test_part(Labelled(data.test_images.images, data.test_images.labels))
    test = Labelled(split.images.to(device), split.labels.to(device))
    students = [
        Student("distilled", name, repeat, epochs, batch_size)
        for name in lesson.factories
        for repeat in range(repeats)
    ]
    with one_thread(device):
        return confusions(lesson, training, test, students)


def _table(report: dict[str, Any]) -> Table:
    """What matters most, for people."""
    table = Table(title="Checks of the images", show_header=True)
    for name in ("check", *report["images"]):
        table.add_column(name, justify="left" if name == "check" else "right")
    for key in ("coverage", "density", "diversity", "frechet_distance"):
        values = [figures[key] for figures in report["images"].values()]
        table.add_row(key.replace("_", " "), *("" if value is None else f"{value:.3f}" for value in values))
    for name, copies in report["copies"].items():
        text = f"{copies['copies']} of {len(copies['images'])}, median ratio {copies['median_ratio']:.2f}"
        table.add_row(f"copies by {name}", text, "")
    for network, confusion in report.get("confusion", {}).items():
        scores = [score for score in confusion["per_class"] if score is not None]
        worst = report["classes"][confusion["per_class"].index(min(scores))]
        text = f"{100 * confusion['accuracy']:.1f} %, worst {worst} {100 * min(scores):.1f} %"
        table.add_row(Text(f"accuracy of {network}"), Text(text), "")
    return table


@contextmanager
def data_of_run(config: Path) -> Iterator[Path]:
    """A file with the section `data` of a run's configuration, while the block lasts.

    Raises:
        UserError: the configuration has none.
    """
    content = read_yaml(config, "give --data")
    section = content.get("data") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{config} has no section data; give --data")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.yaml"
        file.write_text(yaml.safe_dump(section), encoding="utf-8")
        yield file


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb; the data of a run's own config.yaml are taken where none are named."""
    given = any(argument.startswith("--data") for argument in arguments)
    config = Path(arguments[0]) / "config.yaml" if arguments else Path()
    if not given and arguments and not arguments[0].startswith("-") and config.is_file():
        with data_of_run(config) as file:
            run_function(check, verb, [*arguments, "--data", str(file)], data=True)
        return
    run_function(check, verb, arguments, data=True)
